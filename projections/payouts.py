"""What hosts earned as work, and what paid tokens earned as money. The split is economy/allocation."""

from __future__ import annotations

from typing import ClassVar

from sawyer.economy.pricing import UUSD_PER_TOKEN
from sawyer.projections.fold import Entry, Fold, Row
from sawyer.schemas.events import HostCredit, InferenceCompleted, TokensGranted

POOL: str = "pool"


class HostRow(Row):
    """Key `host:<id>`. `work` is a decimal text: a sum may pass 2^53. `requests`: those it was credited for."""

    rows: int
    work: str
    nodes: list[str]
    requests: int


class EarningRow(Row):
    """Key `grant:<id>`, of grants that money was paid for. earned_uusd <= paid_uusd, always."""

    paid_uusd: int
    earned_uusd: int


class PoolRow(Row):
    """All grants together, as decimal text: what may be shared is at most this, before fees and refunds."""

    earned_uusd: str


class Payouts(Fold):
    """The work and money of hosts and grants."""

    name: ClassVar[str] = "payouts"

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[str, HostRow] = {}
        self.earnings: dict[str, EarningRow] = {}
        self.earned_uusd = 0

    def apply(self, entry: Entry) -> set[str]:
        """See Fold.apply."""
        match entry.body:
            case TokensGranted() as body if body.paid_uusd:
                row = EarningRow(body.paid_uusd, 0)
                self.earnings[body.grant] = self.rows[f"grant:{body.grant}"] = row
                return {f"grant:{body.grant}"}
            case InferenceCompleted():
                return self._earn(self.earned_by(entry)) | self._credit(entry.decided.credits or ())
        return set()

    def earned_by(self, entry: Entry) -> dict[str, int]:
        """Grant -> uUSD that this entry turns from deferred into earned: 10 a token, never more than is left of what
        was paid. Ask before the entry is applied."""
        earned: dict[str, int] = {}
        for part in entry.decided.debited or ():
            row = self.earnings.get(part.grant)
            amount = min(part.tokens * UUSD_PER_TOKEN, row.paid_uusd - row.earned_uusd) if row else 0
            if amount:
                earned[part.grant] = amount
        return earned

    def _earn(self, earned: dict[str, int]) -> set[str]:
        if not earned:
            return set()
        for grant, amount in earned.items():
            self.earnings[grant].earned_uusd += amount
            self.earned_uusd += amount
        self.rows[POOL] = PoolRow(str(self.earned_uusd))
        return {POOL, *(f"grant:{grant}" for grant in earned)}

    def _credit(self, credits: tuple[HostCredit, ...]) -> set[str]:
        for credit in credits:
            row = self.hosts.get(credit.host)
            if row is None:
                row = self.hosts[credit.host] = self.rows[f"host:{credit.host}"] = HostRow(0, "0", [], 0)
            row.rows += credit.rows
            row.work = str(int(row.work) + credit.work)
            if credit.node not in row.nodes:
                row.nodes = sorted([*row.nodes, credit.node])
        for host in {credit.host for credit in credits}:
            self.hosts[host].requests += 1
        return {f"host:{credit.host}" for credit in credits}
