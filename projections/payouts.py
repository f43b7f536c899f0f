"""What hosts earned as work, and what paid tokens earned as money. The split is economy/allocation."""

from __future__ import annotations

from typing import ClassVar, cast

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.projections.fold import Entry, Fold, Row, add
from sawyer.schemas.events import BucketTokens, HostCredit, InferenceCompleted, TokensExpired, TokensGranted

POOL: str = "pool"


class HostRow(Row):
    """Key `host:<id>`. `work` is what it did; `weight_milli` is the sum of work * sla_milli, by which a pool is split.
    Both are decimal text. `requests`: those it was credited for."""

    rows: int
    work: str
    weight_milli: str
    nodes: list[str]
    requests: int


class EarningRow(Row):
    """Key `grant:<id>`, of grants that money was paid for. earned_uusd + breakage_uusd <= paid_uusd, always."""

    paid_uusd: int
    earned_uusd: int
    breakage_uusd: int = 0


class PoolRow(Row):
    """All grants together, as decimal text: what may be shared is at most `earned_uusd`, before fees and refunds.
    `breakage_uusd` is what was paid for tokens that expired: hosts get nothing of it."""

    earned_uusd: str
    breakage_uusd: str


class Payouts(Fold):
    """The work and money of hosts and grants."""

    name: ClassVar[str] = "payouts"
    row_types: ClassVar[dict[str, type[Row]]] = {"host": HostRow, "grant": EarningRow, POOL: PoolRow}

    @property
    def hosts(self) -> dict[str, HostRow]:
        """Every host that was credited."""
        rows = ((key, row) for key, row in self.rows.items() if isinstance(row, HostRow))
        return {key.removeprefix("host:"): row for key, row in rows}

    @property
    def earnings(self) -> dict[str, EarningRow]:
        """Every grant that was paid for."""
        rows = ((key, row) for key, row in self.rows.items() if isinstance(row, EarningRow))
        return {key.removeprefix("grant:"): row for key, row in rows}

    @property
    def earned_uusd(self) -> int:
        """What all debits have earned."""
        row = self.rows.get(POOL)
        return int(cast("PoolRow", row).earned_uusd) if row else 0

    @property
    def breakage_uusd(self) -> int:
        """What was paid for tokens that expired."""
        row = self.rows.get(POOL)
        return int(cast("PoolRow", row).breakage_uusd) if row else 0

    def apply(self, entry: Entry) -> None:
        """See Fold.apply."""
        body, decided = entry.body, entry.decided
        if isinstance(body, TokensGranted):
            if body.paid_uusd:
                self.put(f"grant:{body.grant}", EarningRow(body.paid_uusd, 0))
            return
        for part in decided.debited or ():
            self._earn(part, breakage=False)
        for part in decided.expired or ():
            self._earn(part, breakage=True)
        if isinstance(body, TokensExpired):
            self._earn(BucketTokens(grant=body.grant, tokens=body.tokens), breakage=True)
        elif isinstance(body, InferenceCompleted) and decided.credits:
            self._credit(decided.credits)

    def _earn(self, part: BucketTokens, *, breakage: bool) -> None:
        """10 uUSD a token turn from deferred into revenue, never more than is left of what was paid."""
        key = f"grant:{part.grant}"
        row = cast("EarningRow | None", self.rows.get(key))
        if row is None:
            return
        amount = min(part.tokens * UUSD_PER_TOKEN, row.paid_uusd - row.earned_uusd - row.breakage_uusd)
        if not amount:
            return
        pool = cast("PoolRow | None", self.rows.get(POOL)) or PoolRow("0", "0")
        if breakage:
            row.breakage_uusd += amount
            pool.breakage_uusd = add(pool.breakage_uusd, amount)
        else:
            row.earned_uusd += amount
            pool.earned_uusd = add(pool.earned_uusd, amount)
        self.changed.add(key)
        self.put(POOL, pool)

    def _credit(self, credits: tuple[HostCredit, ...]) -> None:
        for host, (rows, work, weight_milli) in by_host(credits).items():
            key = f"host:{host}"
            row: HostRow = self.rows.get(key) or HostRow(0, "0", "0", [], 0)  # type: ignore[assignment]
            row.rows += rows
            row.work = add(row.work, work)
            row.weight_milli = add(row.weight_milli, weight_milli)
            row.requests += 1
            self.put(key, row)
        for credit in credits:
            row = self.rows[f"host:{credit.host}"]  # type: ignore[assignment]
            if credit.node not in row.nodes:
                row.nodes = sorted([*row.nodes, credit.node])


def by_host(credits: tuple[HostCredit, ...]) -> dict[str, tuple[int, int, int]]:
    """Host -> (rows, work, weight_milli), summed over its nodes."""
    found: dict[str, tuple[int, int, int]] = {}
    for credit in credits:
        rows, work, weight_milli = found.get(credit.host, (0, 0, 0))
        found[credit.host] = rows + credit.rows, work + credit.work, weight_milli + credit.work * credit.sla_milli
    return found
