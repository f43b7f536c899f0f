"""`sawyer chat`: its options. The conversation itself is in chat_run.py, loaded only when it runs."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from sawyer.cli.generate import HOSTED, ModelOption, TrunkOption, VerboseOption, own_trunk
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, NatsOption
from sawyer.cli.sampling import (
    CHAT_MAX_TOKENS,
    DEFAULT_MAX_TOKENS,
    GreedyOption,
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
from sawyer.errors import EXIT_DONE
from sawyer.settings import Settings

CHAT_TEMPERATURE: Final = 0.8


def chat(
    model: ModelOption = "",
    system: SystemOption = "",
    max_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-tokens",
            min=1,
            metavar="N",
            help="New tokens at most.",
            show_default=f"{CHAT_MAX_TOKENS}; {DEFAULT_MAX_TOKENS} without a chat template",
        ),
    ] = None,
    temperature: TemperatureOption = None,
    greedy: GreedyOption = False,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    min_p: MinPOption = None,
    repetition_penalty: PenaltyOption = None,
    stop: StopOption = None,
    seed: SeedOption = None,
    trunk: TrunkOption = HOSTED,
    verbose: VerboseOption = False,
    account: AccountOption = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Talk with a model, or write a text together with one that has no chat template, line by line.

    Sampled as the model's maker recommends, if he does, else with temperature 0.8; options that are given decide.
    Everything so far is the model's context, and is billed again as input with each answer.

    Ctrl-C stops an answer, Ctrl-D ends; /help lists the commands. From a pipe: a line a turn, and the answers.
    """
    from sawyer.cli.chat_run import Talk, run

    sampling = chosen_sampling(
        max_tokens=max_tokens or CHAT_MAX_TOKENS, temperature=temperature, greedy=greedy, top_k=top_k, top_p=top_p,
        min_p=min_p, repetition_penalty=repetition_penalty, stop=stop, seed=seed, default_temperature=CHAT_TEMPERATURE,
    )  # fmt: skip
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=account, model=model)
    talk = Talk(system, own_trunk(settings, trunk), is_short=max_tokens is None)
    code = run(settings, sampling, talk, verbose=verbose)
    if code != EXIT_DONE:
        raise typer.Exit(code)
