"""`sawyer chat`: its options. The conversation itself is in chat_run.py, loaded only when it runs."""

from __future__ import annotations

from typing import Final

import typer

from sawyer.cli.generate import ModelOption, VerboseOption
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, NatsOption
from sawyer.cli.sampling import (
    DEFAULT_MAX_TOKENS,
    GreedyOption,
    MaxTokensOption,
    MinPOption,
    PenaltyOption,
    SeedOption,
    StopOption,
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
    max_tokens: MaxTokensOption = DEFAULT_MAX_TOKENS,
    temperature: TemperatureOption = None,
    greedy: GreedyOption = False,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: PenaltyOption = 1.0,
    stop: StopOption = None,
    seed: SeedOption = None,
    verbose: VerboseOption = False,
    account: AccountOption = "",
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
) -> None:
    """Write a text together with a model, line by line (temperature 0.8, unless another is given).

    Everything so far is the model's context, and is billed again as input with each answer.

    Ctrl-C stops an answer, Ctrl-D ends; /help lists the commands. From a pipe: a line a turn, and the answers.
    """
    from sawyer.cli.chat_run import run

    sampling = chosen_sampling(
        max_tokens=max_tokens, temperature=temperature, greedy=greedy, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, stop=stop, seed=seed, default_temperature=CHAT_TEMPERATURE,
    )  # fmt: skip
    settings = Settings.load(home=home, nats=nats, context=context, creds=creds, account=account, model=model)
    code = run(settings, sampling, verbose=verbose)
    if code != EXIT_DONE:
        raise typer.Exit(code)
