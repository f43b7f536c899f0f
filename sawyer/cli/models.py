"""`sawyer models`: which there are, what is known of one, and splitting a checkpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from sawyer.cli import output
from sawyer.cli.options import ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.output import emit_json, line, stderr
from sawyer.errors import RefusedError, UnreachableError, UsageError
from sawyer.ids import ModelId
from sawyer.schemas.models import Format, Manifest
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.cli.model_list import KnownModel
    from sawyer.schemas.messages import NetworkReply

app = typer.Typer(help="List models, look at one, split a checkpoint into trunk and experts.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """List models, look at one, split a checkpoint into trunk and experts."""


@app.command("ls", epilog="Example: sawyer models ls --json")
def list_command(
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """List the models that the network publishes, those split in this home, and those that come with the package."""
    from sawyer.cli.model_report import row_document, show_table

    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    rows = _known_models(settings)
    if as_json:
        emit_json([row_document(row) for row in rows])
    else:
        show_table(rows)


@app.command("show", epilog="Example: sawyer models show austen-8m")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    format: Annotated[str, typer.Option("--format", help="The format, where there are several.")] = "",
    as_json: JsonOption = False,
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Show a model: shape, parameters, sizes, price, where it is, and what a token of it costs on the wire."""
    from sawyer.cli.model_report import row_document, shape_document, shape_of, show_page

    wanted = known_format(format) if format else None
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds)
    rows = [row for row in _known_models(settings) if row.model == name]
    found = [row for row in rows if wanted is None or row.format in (wanted, "")]
    if not found:
        which = f"{name} in format {wanted}" if rows else name
        raise UsageError(f"there is no model {which} here or on the network", hint="`sawyer models ls` lists them.")
    row = next((each for each in found if each.local), found[0])
    shape = shape_of(row, wanted)
    if as_json:
        emit_json({**row_document(row), **shape_document(shape)})
    else:
        show_page(row, shape, wanted)


@app.command(epilog="Example: sawyer models split ./checkpoint --name my-moe --format q4")
def split(
    source: Annotated[Path, typer.Argument(help="Folder of a Hugging Face checkpoint (config.json, *.safetensors).")],
    name: Annotated[str, typer.Option("--name", help="Model id; by default the folder's name.")] = "",
    format: Annotated[str, typer.Option("--format", help="Format of the experts: f32 or q4.")] = "q4",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; by default in the home.")] = None,
    home: Annotated[Path | None, typer.Option("--home", help="Home directory.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Split a checkpoint into trunk, single experts and a manifest with digests. Started again, it goes on."""
    model = ModelId(name or source.resolve().name.lower())
    folder = out or Settings.load(home=home).home.models / f"{model}-{format}"
    manifest = split_with_progress(source, folder, model, known_format(format))
    size_bytes = sum(file.size_bytes for file in manifest.files)
    if as_json:
        emit_json(
            {"folder": str(folder), "digest": manifest.digest(), "files": len(manifest.files), "bytes": size_bytes}
        )
        return
    line(f"{manifest.model} ({manifest.format})  {len(manifest.files)} files, {size_bytes / 1e6:.1f} MB  {folder}")
    line(f"manifest {manifest.digest()}")


def known_format(text: str) -> Format:
    """Raises UsageError for a format that Sawyer does not write."""
    formats: tuple[Format, ...] = get_args(Format)
    for each in formats:
        if each == text:
            return each
    raise UsageError(f"unknown format {text!r}", hint=f"Formats: {', '.join(sorted(formats, reverse=True))}.")


def split_with_progress(source: Path, out: Path, model: ModelId, format: Format) -> Manifest:
    """Split, with a bar on a terminal's stderr."""
    from sawyer.model.split import SplitProgress
    from sawyer.model.split import split as split_model

    columns = (
        TextColumn("splitting {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(model, total=None)

        def report(step: SplitProgress) -> None:
            bar.update(task, completed=step.bytes_done, total=step.bytes_total)

        return split_model(source, out, model=model, format=format, progress=report)


def _known_models(settings: Settings) -> list[KnownModel]:
    from sawyer.cli.model_list import join, local_models

    network = _network(settings)
    found, wrong = local_models(settings.home)
    for error in wrong:
        output.say(f"left out: {error.message}")
    return join(network, found)


def _network(settings: Settings) -> NetworkReply | None:
    """The network, if it answers; else says so: what is here can be listed all the same."""
    from sawyer.cli.session import connected

    async def ask() -> NetworkReply:
        async with connected(settings, "models") as (_, network):
            return network

    try:
        return asyncio.run(ask())
    except (UnreachableError, RefusedError) as error:
        output.say(f"only what is on this machine: {error.message}")
        return None
