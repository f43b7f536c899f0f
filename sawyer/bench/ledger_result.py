"""What the ledger's benchmark found, in one object: for people who read it and for programs that compare two. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sawyer.bench.machine import Machine
from sawyer.bench.result import Goal
from sawyer.bench.timing import Spread, ratios

GOAL_APPENDS_PER_S: Final = 10_000
GOAL_OVER_PLAIN: Final = 8.0
GOAL_VERIFIED_SHARE: Final = 0.60
GOAL_REPLAY_SHARE: Final = 0.85
GOAL_START_S: Final = 10.0
V: Final = 1
"""Version of the JSON object."""


@dataclass(frozen=True, slots=True)
class Start:
    """A writer's start on a book of so many entries, in seconds. `from_first_s`: without the snapshot and the views."""

    entries: int
    from_snapshot_s: float
    from_first_s: float
    book_bytes: int


@dataclass
class LedgerRounds:
    """What was measured, a value a round; workers -> seconds of the replay, and of its signatures alone."""

    cores: int
    plain_per_s: list[float] = field(default_factory=list)
    append_per_s: list[float] = field(default_factory=list)
    verified_s: list[float] = field(default_factory=list)
    pure_commands_s: list[float] = field(default_factory=list)
    verified_commands: int = 0
    verified_signatures: int = 0
    replay_s: dict[int, list[float]] = field(default_factory=dict)
    pure_s: dict[int, list[float]] = field(default_factory=dict)
    replay_entries: int = 0
    replay_signatures: int = 0
    start: Start | None = None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """A replay with so many workers. `share`: of what its signatures alone cost on as many cores: pure over replay."""

    workers: int
    entries_per_second: Spread
    signatures_per_second: Spread
    pure_signatures_per_second: Spread
    share: Spread


@dataclass(frozen=True, slots=True)
class LedgerResult:
    """`appends_per_second`: durable, of verified commands, 64 clients. `over_plain`: over load, mutate, save with the
    same
    library. `verified_share`: of what the signatures alone cost, read and verified and appended; on all cores."""

    v: int
    goals: tuple[Goal, ...]
    rounds: int
    quick: bool
    machine: Machine
    clients: int
    appends_per_second: Spread
    plain_per_second: Spread
    over_plain: Spread
    verified_per_second: Spread
    verified_signatures_a_command: float
    verified_share: Spread
    replays: tuple[ReplayResult, ...]
    replay_entries: int
    replay_signatures: int
    start: Start | None

    @classmethod
    def of(cls, found: LedgerRounds, machine: Machine, *, quick: bool, clients: int) -> LedgerResult:
        """The numbers of all rounds, and how they stand to the goals."""
        over_plain = Spread.of(ratios(found.append_per_s, found.plain_per_s))
        share = Spread.of(ratios(found.pure_commands_s, found.verified_s))
        replays = tuple(_replay(found, workers) for workers in sorted(found.replay_s))
        appends = Spread.of(found.append_per_s)
        goals = [
            _at_least("appends_per_second", GOAL_APPENDS_PER_S, appends.median),
            _at_least("over_plain", GOAL_OVER_PLAIN, over_plain.median),
            _at_least("verified_share", GOAL_VERIFIED_SHARE, share.median),
            *(_at_least(f"replay_share_{each.workers}", GOAL_REPLAY_SHARE, each.share.median) for each in replays),
        ]
        if found.start is not None:
            took = round(found.start.from_snapshot_s, 2)
            goals.append(Goal("start_s", GOAL_START_S, took, took <= GOAL_START_S))
        return cls(
            v=V,
            goals=tuple(goals),
            rounds=len(found.append_per_s),
            quick=quick,
            machine=machine,
            clients=clients,
            appends_per_second=appends,
            plain_per_second=Spread.of(found.plain_per_s),
            over_plain=over_plain,
            verified_per_second=Spread.of([found.verified_commands / each for each in found.verified_s]),
            verified_signatures_a_command=round(found.verified_signatures / found.verified_commands, 2),
            verified_share=share,
            replays=replays,
            replay_entries=found.replay_entries,
            replay_signatures=found.replay_signatures,
            start=found.start,
        )


def _replay(found: LedgerRounds, workers: int) -> ReplayResult:
    took, pure = found.replay_s[workers], found.pure_s[workers]
    return ReplayResult(
        workers=workers,
        entries_per_second=Spread.of([found.replay_entries / each for each in took]),
        signatures_per_second=Spread.of([found.replay_signatures / each for each in took]),
        pure_signatures_per_second=Spread.of([found.replay_signatures / each for each in pure]),
        share=Spread.of(ratios(pure, took)),
    )


def _at_least(name: str, wanted: float, got: float) -> Goal:
    return Goal(name, wanted, got, got >= wanted)
