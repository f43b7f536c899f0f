"""`sawyer pricing`: the prices in force, and, for the operator, another one. Owns no rule of what a request costs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.errors import RefusedError, UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.schemas.events import ModelPrice, PricingPublished
    from sawyer.schemas.messages import NetworkReply

app = typer.Typer(help="Show the prices in force; as operator, set one.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Show the prices in force; as operator, set one."""


@app.command("show", epilog="Example: sawyer pricing show --json")
def show_command(
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show the price sheet in force: each model and format, and what a request costs."""
    from sawyer.cli.price_sheet import EXAMPLE, example_cost, factor

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    sheet = asyncio.run(_in_force(settings))
    if as_json:
        output.emit_json(sheet.plain())
        return
    output.line(
        f"sheet {sheet.sheet}: a token in weighs {factor(sheet.input_weight_milli)}, "
        f"a token out {factor(sheet.output_weight_milli)}"
    )
    output.table(
        ("model", "format", "price", "quant", EXAMPLE),
        [
            (each.model, each.format, factor(each.price_milli), factor(each.quant_milli),
             f"{example_cost(sheet, each):,} budget tokens")
            for each in sheet.prices
        ],
        numeric=("price", "quant", EXAMPLE),
    )  # fmt: skip


@app.command("set", epilog="Example: sawyer pricing set austen-8m --price 2.5 --quant 0.8")
def set_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A published model.")],
    format: Annotated[str, typer.Option("--format", help="q4, q8, f32 or f16 (default: the published one).")] = "",
    price: Annotated[str, typer.Option("--price", metavar="N", help="Times the base price; 1 is the base.")] = "",
    quant: Annotated[
        str, typer.Option("--quant", metavar="N", help="Times that, for its format: 0.8 is 20 % off.")
    ] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Publish a price sheet with another price for this model, and all others kept. Only in the operator's home.

    A text token costs weight x price x quant budget tokens, rounded up once a request. What is not given stays. An
    order that names the old sheet is refused, and costs nothing: its client asks for the prices again.
    """
    from sawyer.cli.models import known_format
    from sawyer.cli.price_sheet import EXAMPLE, example_cost, factor, per_mille

    if not price and not quant:
        raise UsageError("nothing to change", hint="Give --price or --quant.")
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    wanted = (
        known_format(format) if format else "",
        per_mille("--price", price) if price else 0,
        per_mille("--quant", quant) if quant else 0,
    )
    before, after, seq = asyncio.run(_set(settings, model, *wanted))
    sheet, changed = after
    if as_json:
        document = {"entry": seq, "sheet": sheet.sheet, "changed": before != changed, "price": changed.plain()}
        output.emit_json({**document, "before": before.plain() if before else None})
        return
    was = f"{example_cost(sheet, before):,}" if before else "no price"
    price, quant = factor(changed.price_milli), factor(changed.quant_milli)
    what = f"{changed.model} in {changed.format}: price {price}, quant {quant}"
    if seq:
        output.line(f"price sheet {sheet.sheet} is entry {seq}: {what}")
    else:
        output.line(f"nothing to publish: {what} is in force already")
    output.line(f"{EXAMPLE}: {was} before, {example_cost(sheet, changed):,} budget tokens now")


async def _in_force(settings: Settings) -> PricingPublished:
    from sawyer.cli.session import connected

    async with connected(settings, "pricing") as (_, network):
        if network.pricing is None:
            raise RefusedError(
                f"{network.network} has published no prices", hint="Its operator sets one: sawyer pricing set MODEL."
            )
        return network.pricing


async def _set(
    settings: Settings, model: str, fmt: str, price_milli: int, quant_milli: int
) -> tuple[ModelPrice | None, tuple[PricingPublished, ModelPrice], int]:
    """The price before; the sheet in force now and the price in it; the entry, 0 if there was nothing to say."""
    from sawyer.cli.operating import operating
    from sawyer.cli.price_sheet import next_sheet, with_price

    async with operating(settings) as (founder, network):
        before, price = _changed(network, model, fmt, price_milli, quant_milli)
        if network.pricing is not None and before == price:
            return before, (network.pricing, price), 0
        sheet = next_sheet(network, with_price(network.pricing, price))
        entry = await founder.record(sheet)
    return before, (sheet, price), entry.seq


def _changed(
    network: NetworkReply, model: str, fmt: str, price_milli: int, quant_milli: int
) -> tuple[ModelPrice | None, ModelPrice]:
    """The price of this model in force, and what it is to be; 0 leaves a factor as it is. Raises UnknownModel."""
    from sawyer.cli.price_sheet import BASE_MILLI, price_in
    from sawyer.schemas.events import ModelPrice

    published = network.format_of(model)
    before = price_in(network.pricing, model, fmt or published)
    held = before or ModelPrice(model=model, format=fmt or published, price_milli=BASE_MILLI, quant_milli=BASE_MILLI)
    return before, held.changed(
        price_milli=price_milli or held.price_milli, quant_milli=quant_milli or held.quant_milli
    )
