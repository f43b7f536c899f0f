"""What a replay found, and what the book comes to. Pure; how it is found: replaying.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sawyer.economy.allocation import host_pool, split
from sawyer.errors import BookCorrupt, SawyerError
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow
from sawyer.projections.usage import HostDayRow, ModelDayRow

MOST_LISTED: Final = 1000
"""Questionable statements of one key that a report lists; it counts all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that does not hold. `seq` 0: no entry in particular."""

    seq: int
    signer: str
    why: str
    hint: str

    @classmethod
    def of(cls, error: SawyerError) -> Problem:
        return cls(
            seq=int(error.details.get("seq", "0")),
            signer=error.details.get("signer", ""),
            why=error.message,
            hint=error.hint or BookCorrupt.default_hint,
        )


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """Tokens: granted == available + held + consumed + expired, but for what is not spendable at that time: not yet, or
    no more though no entry has ended it."""

    account: str
    available: int
    held: int
    consumed: int
    expired: int
    granted: int


@dataclass(frozen=True, slots=True)
class HostEarnings:
    """`weight_milli` is the work, each part times what it counts for by its latency, per mille. `owed_uusd` is
    provisional: the host's part, by weight, of 70 % of what paid tokens earned, before fees and refunds."""

    host: str
    nodes: tuple[str, ...]
    requests: int
    rows: int
    work: int
    weight_milli: int
    owed_uusd: int


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What consumers bought of a model on one day (UTC). Tokens: text tokens in and out, budget tokens billed."""

    model: str
    day: str
    requests: int
    input_tokens: int
    output_tokens: int
    billed_tokens: int


@dataclass(frozen=True, slots=True)
class HostUse:
    """What a host computed on one day (UTC), as far as it was credited."""

    host: str
    day: str
    requests: int
    rows: int
    work: int


@dataclass(frozen=True, slots=True)
class AsOf:
    """What the first `seq` entries come to at the time `ts_ms`. Money: `earned_uusd` by tokens that were used,
    `breakage_uusd` by those that expired (hosts get nothing of it); `pool_uusd` is the hosts' part of the former."""

    seq: int
    ts_ms: int
    balances: tuple[AccountBalance, ...]
    hosts: tuple[HostEarnings, ...]
    models: tuple[ModelUse, ...]
    host_days: tuple[HostUse, ...]
    pool_uusd: int
    earned_uusd: int
    breakage_uusd: int

    @classmethod
    def of(cls, state: State, ts_ms: int) -> AsOf:
        """What is folded now."""
        pool_uusd = host_pool(state.payouts.earned_uusd)
        models, host_days = _usage(state)
        return cls(
            seq=state.audit.head.seq,
            ts_ms=ts_ms,
            balances=_balances(state, ts_ms),
            hosts=_hosts(state, pool_uusd),
            models=models,
            host_days=host_days,
            pool_uusd=pool_uusd,
            earned_uusd=state.payouts.earned_uusd,
            breakage_uusd=state.payouts.breakage_uusd,
        )


@dataclass(frozen=True, slots=True)
class Questionable:
    """What a key signed between the time since when it may have been in other hands and the entry that revoked it.
    `statements` are receipts, orders and entries; `entries` are the first MOST_LISTED that hold one."""

    key: str
    by: str
    since_ms: int
    revoked_seq: int
    statements: int
    first_seq: int
    last_seq: int
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found.

    `anchored`: verified against a ledger key that the caller brought; without one the book is only consistent with
    itself. `operator_anchored`: founded by the operator key that the caller brought; without one, whoever holds the
    ledger key may have founded it. `trusted_entries`: those whose signatures the caller's checkpoint stood for.
    `signatures`: in entries; `repeated_signatures` of them are of orders that stand in a completion as in their
    reservation, byte for byte, and were verified once. `foreign_snapshots`: entries that commit to rows of another
    Sawyer, which only that could compare. `note`: the newest checkpoint. `views_seq`: the entry up to which live views
    were compared; None if none were, `views_note` says why. `as_of`: the balances, of the last entry unless the caller
    asked for another moment."""

    problem: Problem | None
    anchored: bool
    operator_anchored: bool
    network: str
    operator: str
    mode: str
    entries: int
    trusted_entries: int
    signatures: int
    repeated_signatures: int
    checkpoints: int
    size: int
    root: str
    note: str
    kinds: dict[str, int]
    unknown_kinds: dict[str, int]
    foreign_snapshots: int
    lowest_balance: int
    digests: dict[str, str]
    views_seq: int | None
    views_note: str
    as_of: AsOf
    questionable: tuple[Questionable, ...]
    workers: int
    duration_us: int

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def balances(self) -> tuple[AccountBalance, ...]:
        """Of every account, by name."""
        return self.as_of.balances

    @property
    def hosts(self) -> tuple[HostEarnings, ...]:
        """Every host that was credited, by name."""
        return self.as_of.hosts

    @property
    def pool_uusd(self) -> int:
        """The hosts' part of what was earned."""
        return self.as_of.pool_uusd


def _balances(state: State, ts_ms: int) -> tuple[AccountBalance, ...]:
    rows = {key: row for key, row in state.balances.rows.items() if isinstance(row, AccountRow)}
    named = ((key.removeprefix("account:"), row) for key, row in sorted(rows.items()))
    return tuple(
        AccountBalance(
            account=name,
            available=state.balances.available(name, ts_ms),
            held=row.held,
            consumed=row.consumed,
            expired=row.expired,
            granted=row.granted,
        )
        for name, row in named
    )


def _hosts(state: State, pool_uusd: int) -> tuple[HostEarnings, ...]:
    hosts = state.payouts.hosts
    owed = split(pool_uusd, {host: int(row.weight_milli) for host, row in hosts.items()})
    return tuple(
        HostEarnings(
            host=host,
            nodes=tuple(row.nodes),
            requests=row.requests,
            rows=row.rows,
            work=int(row.work),
            weight_milli=int(row.weight_milli),
            owed_uusd=owed[host],
        )
        for host, row in sorted(hosts.items())
    )


def _usage(state: State) -> tuple[tuple[ModelUse, ...], tuple[HostUse, ...]]:
    models, hosts = [], []
    for key, row in sorted(state.usage.rows.items()):
        _, name, day = key.split(":")
        if isinstance(row, ModelDayRow):
            use = ModelUse(name, day, row.requests, row.input_tokens, row.output_tokens, row.billed_tokens)
            models.append(use)
        elif isinstance(row, HostDayRow):
            hosts.append(HostUse(name, day, row.requests, row.rows, int(row.work)))
    return tuple(models), tuple(hosts)
