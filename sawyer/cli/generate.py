"""`sawyer generate`: one prompt, one answer. Text on stdout and nothing else; what it cost on stderr."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.cli.sampling import (
    DEFAULT_MAX_TOKENS,
    GreedyOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    SeedOption,
    StopOption,
    SystemOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    chosen_sampling,
)
from sawyer.errors import EXIT_INTERRUPTED, Cancelled, UsageError
from sawyer.settings import Settings

if TYPE_CHECKING:
    from sawyer.cli.session import Consumer
    from sawyer.client.asked import Conversation
    from sawyer.client.stream import TextStream

STDIN: Final = "-"
HOSTED: Final = "hosted"
ModelOption = Annotated[str, typer.Option("--model", metavar="NAME", help="The model; by default the only one.")]
SpeculateOption = Annotated[
    bool,
    typer.Option(
        "--speculate/--no-speculate", help="Let the router compute likely tokens ahead; the text is the same."
    ),
]
TrunkOption = Annotated[
    str,
    typer.Option(
        "--trunk", metavar="WHERE", help="hosted: at a router. local: here, and prompt and text stay on this machine."
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say what it cost, in a pipe too.")]


def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The text to continue; - reads it from stdin.", show_default=False)
    ],
    model: ModelOption = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="Answer PROMPT as a message to the model, with its chat template.")
    ] = False,
    system: SystemOption = "",
    model_defaults: Annotated[
        bool,
        typer.Option("--model-defaults", help="Sample as the model's maker recommends; --chat does so by itself."),
    ] = False,
    max_tokens: MaxTokensOption = DEFAULT_MAX_TOKENS,
    temperature: TemperatureOption = None,
    greedy: GreedyOption = False,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = None,
    stop: StopOption = None,
    seed: SeedOption = None,
    logprobs: Annotated[
        int | None,
        typer.Option("--logprobs", min=0, max=20, metavar="N", help="With --json: each token's, and the N likeliest."),
    ] = None,
    speculate: SpeculateOption = True,
    trunk: TrunkOption = HOSTED,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
    account: AccountOption = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Continue a text, or with --chat answer a message.

    Greedy, unless --temperature or an option that asks for chance is given (then temperature 1), or --model-defaults.

    The text comes on stdout while it is made. Ctrl-C stops it on the network: what was delivered is billed.

    From stdin (-), one newline at the end is not part of the prompt.
    """
    from sawyer.cli.conversation import Dialogue

    _check_places(logprobs is not None and not as_json, bool(system) and not chat)
    sampling = chosen_sampling(
        max_tokens=max_tokens, temperature=temperature, greedy=greedy, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop, seed=seed, default_temperature=0.0, logprobs=logprobs,
    )  # fmt: skip
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=account, model=model)
    text = _stdin() if prompt == STDIN else prompt
    asked = Dialogue(system=system).prompt(text) if chat else text
    options = sampling.options(model_defaults=chat or model_defaults) | {"speculate": speculate}
    if not asyncio.run(
        _generate(settings, own_trunk(settings, trunk), asked, options, as_json=as_json, verbose=verbose)
    ):
        raise typer.Exit(EXIT_INTERRUPTED)


def _check_places(bare_logprobs: bool, bare_system: bool) -> None:
    """Raises UsageError for an option without the other that it belongs to."""
    if bare_logprobs:
        raise UsageError("--logprobs has no place in plain text", hint="Add --json.")
    if bare_system:
        raise UsageError("--system has no place in a text that is continued", hint="Add --chat.")


def own_trunk(settings: Settings, trunk: str) -> Path | None:
    """The folder of the trunk to run here, brought from the network if it must be; None for one at a router. Raises
    UsageError for another word, NoStore, WrongManifest, UnreachableError."""
    from sawyer.cli.model_store import bring_trunk

    if trunk not in (HOSTED, "local"):
        raise UsageError(f"unknown trunk {trunk!r}", hint="Write hosted or local.")
    return None if trunk == HOSTED else bring_trunk(settings)


async def _generate(
    settings: Settings,
    trunk: Path | None,
    asked: str | Conversation,
    options: dict[str, Any],
    *,
    as_json: bool,
    verbose: bool,
) -> bool:
    """False if it was interrupted; then, too, what came and what was billed is told."""
    from sawyer.cli.answer import TextOut, bill_line, stoppable, tell
    from sawyer.cli.session import chosen_model, consumer

    out = TextOut()
    async with consumer(settings, trunk) as me:
        model = chosen_model(me.network, settings["model"])
        stream = me.client.stream(asked, model=model, **options)
        with stoppable(stream) as interrupts:
            try:
                text = await tell(stream, (lambda _: None) if as_json else out.piece)
            except Cancelled:
                output.say("interrupted before it began: nothing was billed")
                return False
            finally:
                out.end()
        assert stream.usage is not None, "the stream ends with the bill, or raises"
        left = (await me.client.balance()).available
        if as_json:
            output.emit_json(_document(me, stream, text, model, left))
        if interrupts.count:
            output.say(f"interrupted: {bill_line(stream.usage, left)}")
        elif verbose or (output.stderr().is_terminal and not as_json):
            output.say(bill_line(stream.usage, left))
        return not interrupts.count


def _document(me: Consumer, stream: TextStream, text: str, model: str, left: int) -> dict[str, object]:
    from sawyer.cli.answer import tokens_per_second

    assert stream.usage is not None
    logprobs = [{"token": each.token, "logprob": each.logprob, "top": each.top} for each in stream.logprobs]
    return {
        "text": text,
        "ids": stream.ids,
        "finish": stream.finish,
        "usage": stream.usage.model_dump(mode="json"),
        "tokens_per_second": round(tokens_per_second(stream.usage), 2),
        "request": stream.request,
        "model": model,
        "network": me.network.network,
        "account": me.account,
        "balance": left,
        **({"logprobs": logprobs} if logprobs else {}),
    }


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"stdin is not UTF-8 text (at byte {error.start})", hint="Convert it first.") from error
