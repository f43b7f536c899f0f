"""The options of `generate` and `chat` that say how tokens are chosen, and what they mean together."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sawyer.errors import UsageError

if TYPE_CHECKING:
    from sawyer.schemas.models import GenerationDefaults

DEFAULT_MAX_TOKENS: Final = 64
CHAT_MAX_TOKENS: Final = 256
"""Of an answer in a conversation, which ends by itself."""
MAX_SEED: Final = 2**53 - 1

MaxTokensOption = Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="New tokens at most.")]
TemperatureOption = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, max=100.0, metavar="T", help="0 is greedy; higher is more random."),
]
GreedyOption = Annotated[bool, typer.Option("--greedy", help="Always the likeliest token: temperature 0.")]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", min=0, metavar="K", help="Of the K likeliest tokens; 0: all.")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", min=0.001, max=1.0, metavar="P", help="Of the likeliest that hold probability P."),
]
MinPOption = Annotated[
    float | None, typer.Option("--min-p", min=0.0, max=1.0, metavar="P", help="None below P times the likeliest.")
]
PenaltyOption = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        min=0.1,
        max=10.0,
        metavar="X",
        help="Above 1: less likely if it stood before.",
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; may be given again.")
]
SystemOption = Annotated[
    str, typer.Option("--system", metavar="TEXT", help="What the model is told before the conversation.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=0, max=MAX_SEED, metavar="N", help="The same seed gives the same text.")
]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. `seed` None: another one each time. `left`: what nobody chose, and a model's maker may."""

    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    left: tuple[str, ...] = ()

    def options(self, *, model_defaults: bool = False) -> dict[str, Any]:
        """What `AsyncClient.stream` takes. `model_defaults`: what is left is as the model's maker recommends."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "stop": self.stop,
            "seed": secrets.randbelow(MAX_SEED) if self.seed is None else self.seed,
            "logprobs": self.logprobs,
            "model_defaults": self.left if model_defaults else (),
        }


def chosen_sampling(
    *,
    max_tokens: int,
    temperature: float | None,
    greedy: bool,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
    stop: list[str] | None,
    seed: int | None,
    default_temperature: float,
    logprobs: int | None = None,
) -> Sampling:
    """What was asked for. Without a temperature: 0 with --greedy, 1 where an option asks for chance (--top-k, --top-p,
    --min-p, --seed), else the default. Raises UsageError for options that exclude each other."""
    chosen = {
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    left = tuple(name for name, value in chosen.items() if value is None)
    top_k, top_p, min_p = top_k or 0, 1.0 if top_p is None else top_p, min_p or 0.0
    limits = {"--top-k": top_k > 0, "--top-p": top_p < 1, "--min-p": min_p > 0}
    limit = next((name for name, is_given in limits.items() if is_given), "")
    if greedy and temperature is not None:
        raise UsageError("--greedy and --temperature exclude each other", hint="Leave one of them out.")
    if limit and (greedy or temperature == 0):
        raise UsageError(f"{limit} changes nothing about a greedy choice", hint="Give a --temperature above 0.")
    if temperature is None:
        by_chance = bool(limit) or seed is not None
        temperature = 0.0 if greedy else (default_temperature or (1.0 if by_chance else 0.0))
    penalty = 1.0 if repetition_penalty is None else repetition_penalty
    return Sampling(max_tokens, temperature, top_k, top_p, min_p, penalty, tuple(stop or ()), seed, logprobs, left)


def described(said: GenerationDefaults | None) -> str:
    """What a model's maker recommends, in a few words; "" if nothing."""
    told = said.model_dump(exclude_none=True) if said else {}
    return ", ".join(
        f"{name.removesuffix('_milli').replace('_', '-')} {value / 1000 if name.endswith('_milli') else value:g}"
        for name, value in told.items()
    )
