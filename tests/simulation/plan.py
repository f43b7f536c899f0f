"""What happens in one simulation, all drawn from its seed before it begins: the network, the weather, what breaks when,
and who asks for what."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Final, Literal

from simulation.wire import CALM, Weather

from sawyer.schemas.generation import GenerateParams

FaultKind = Literal[
    "node_dies", "node_mute", "node_slow", "node_frozen", "node_lies", "node_cut", "router_dies", "router_cut",
    "bookkeeper_dies", "bookkeeper_cut", "client_cut", "server_goes",
]  # fmt: skip
FAULTS: Final[tuple[FaultKind, ...]] = FaultKind.__args__  # type: ignore[attr-defined]
OFTEN: Final[tuple[FaultKind, ...]] = ("node_lies", "node_lies", "node_lies", "router_dies", "node_dies", "server_goes")
"""Once more for these, each time they stand here."""
Ending = Literal["reads", "leaves", "cancels", "is_cancelled"]
"""How an asking ends: all is read; the stream is left after some pieces; it is cancelled and read on; the task that
asks is cancelled."""

FAULTS_UNTIL_S: Final = 6.0
"""Every fault is over by then, and the weather is calm."""
LASTS_S: Final = (0.05, 2.5)
SLOW_S: Final = (0.05, 3.0)
WAYS_S: Final = ((0.0002, 0.003), (0.0002, 0.003), (0.005, 0.03))
"""What a message takes that nothing befalls: on one site, or between several."""
AROUND_S: Final = 0.15
ACCOUNTS: Final = ("alice", "bob")
ROUTER: Final = "router-1"
BOOKKEEPER: Final = "bookkeeper"
PROMPTS: Final = ("w1 w2 w3", "w9 w10 w11 w12 w13 w14", "w7", "w40 w5 w40 w5 w40", "w20 w21 w22 w23 w24 w25 w26 w27")
LOCAL_SHARE: Final = 0.3
MAX_TOKENS: Final = (1, 2, 5, 8, 12)


@dataclass(frozen=True)
class Fault:
    """Something breaks, and is mended so much later."""

    kind: FaultKind
    who: str
    at_s: float
    lasts_s: float
    slow_s: float = 0.0


@dataclass(frozen=True)
class Asking:
    """One request of a client, and whether it is sent once more under its id when it has ended."""

    account: str
    at_s: float
    params: GenerateParams
    trace: bool
    speculate: bool
    ending: Ending
    after: int
    once_more: bool
    local: bool = False
    """Whether the client runs the trunk itself."""

    @property
    def client(self) -> str:
        """Whose door is asked at: an account has one of each kind."""
        return f"{self.account}, local" if self.local else self.account


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before time begins."""

    seed: int
    nodes: tuple[str, ...]
    weather: Weather
    faults: tuple[Fault, ...]
    askings: tuple[Asking, ...]
    budget_tokens: int
    way_s: tuple[float, float]

    @property
    def is_calm(self) -> bool:
        """Nothing goes wrong: then nothing may fail."""
        return self.weather.is_calm and not self.faults

    @classmethod
    def draw(cls, seed: int, drawn: random.Random) -> Plan:
        """The plan of a seed."""
        nodes = tuple(f"node-{number}" for number in range(1, drawn.choice((2, 3, 3)) + 1))
        calm = drawn.random() < 0.2
        faults = () if calm else _faults(drawn, nodes)
        askings = tuple(_asking(drawn, faults) for _ in range(drawn.randint(1, 5)))
        apart = random.Random(f"local {seed}")  # of its own, so that the rest of a seed's plan is what it was
        askings = tuple(replace(each, local=apart.random() < LOCAL_SHARE) for each in askings)
        weather = CALM if calm or drawn.random() < 0.3 else _weather(drawn)
        budget_tokens = 12 if drawn.random() < 0.1 else 10_000
        return cls(seed, nodes, weather, faults, askings, budget_tokens, drawn.choice(WAYS_S))


def _weather(drawn: random.Random) -> Weather:
    """Often a little of it, sometimes much."""
    return Weather(*(drawn.choice((0.0, 0.003, 0.02, 0.1)) for _ in range(3)))


def _faults(drawn: random.Random, nodes: tuple[str, ...]) -> tuple[Fault, ...]:
    made = []
    for _ in range(drawn.choice((0, 1, 2, 2, 3, 4, 5))):
        kind = drawn.choice((*FAULTS, *OFTEN))
        at_s = max(0.0, drawn.uniform(-0.5, FAULTS_UNTIL_S / 2))
        lasts_s = drawn.uniform(*LASTS_S)
        made.append(Fault(kind, _who(drawn, kind, nodes), at_s, lasts_s, drawn.uniform(*SLOW_S)))
    return tuple(made)


def _who(drawn: random.Random, kind: FaultKind, nodes: tuple[str, ...]) -> str:
    whose, _, _ = kind.partition("_")
    choices = {"node": nodes, "router": (ROUTER,), "bookkeeper": (BOOKKEEPER,), "client": ACCOUNTS, "server": ("",)}
    return drawn.choice(choices[whose])


def _asked_at_s(drawn: random.Random, faults: tuple[Fault, ...]) -> float:
    """At the beginning, at any time, or around the time when something breaks or is mended."""
    times = [0.0, drawn.uniform(0.0, FAULTS_UNTIL_S / 2)]
    times += [fault.at_s for fault in faults for _ in range(2)] + [fault.at_s + fault.lasts_s for fault in faults]
    return max(0.0, drawn.choice(times) + drawn.uniform(-AROUND_S, AROUND_S))


def _asking(drawn: random.Random, faults: tuple[Fault, ...]) -> Asking:
    greedy = drawn.random() < 0.6
    params = GenerateParams(
        prompt=drawn.choice(PROMPTS),
        max_tokens=drawn.choice(MAX_TOKENS),
        temperature_milli=0 if greedy else 900,
        seed=drawn.randint(0, 1),
        stop=("w6",) if drawn.random() < 0.1 else (),
    )
    endings: tuple[Ending, ...] = ("reads", "reads", "reads", "reads", "leaves", "cancels", "is_cancelled")
    return Asking(
        account=drawn.choice(ACCOUNTS),
        at_s=_asked_at_s(drawn, faults),
        params=params,
        trace=drawn.random() < 0.4,
        speculate=drawn.random() < 0.5,
        ending=drawn.choice(endings),
        after=drawn.randint(0, 4),
        once_more=drawn.random() < 0.3,
    )
