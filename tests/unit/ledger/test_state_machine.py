"""Random lives of a network: whatever is asked in whatever order, no balance falls below zero and no token is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sawyer.errors import RefusedError
from sawyer.ledger.audit import Accounts
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.decide import decide
from sawyer.projections.balances import BucketRow
from sawyer.schemas.events import InferenceRequested
from sawyer.schemas.signed import Signed

REQUESTS = st.integers(1, 12)
ENDS = ("inference.completed.v1", "reservation.voided.v1", "reservation.expired.v1")


class Network(RuleBasedStateMachine):
    """One life. `judge_of_a_new_scene` and `written` come from the test, which has the keys."""

    judge_of_a_new_scene: ClassVar[Callable[[], Any]]
    written: ClassVar[Counter[str]]

    @initialize()
    def open(self) -> None:
        self.judge = type(self).judge_of_a_new_scene()
        self.scene = self.judge.scene
        self.accounts = Accounts()
        self.said: list[VerifiedCommand] = []
        self.grants = 0
        self.orders: dict[int, Signed[InferenceRequested]] = {}
        for asked in self.scene.opening(tokens=40):
            assert self._ask(asked)

    def _some_order(self, data: st.DataObject) -> Signed[InferenceRequested]:
        """One that was reserved once (it may have ended since), or one that never was."""
        known = sorted(self.orders)
        number = data.draw(st.sampled_from([*known, *known, 99]))
        return self.orders.get(number, self.scene.order(99))

    def _ask(self, asked: VerifiedCommand) -> bool:
        """Decide and fold, as the writer does. True if an entry was written."""
        state = self.judge.state
        try:
            decision = decide(state, asked, self.scene.now_ms)
        except RefusedError:
            return False
        if decision.repeated:
            return False
        (entry,) = self.judge.write(asked)
        self.accounts.post(entry)
        self.said.append(asked)
        self.written[asked.kind] += 1
        return True

    @rule(tokens=st.integers(1, 40), days=st.integers(1, 3), paid=st.integers(0, 300))
    def grant(self, tokens: int, days: int, paid: int) -> None:
        self.grants += 1
        asked = self.scene.grant(f"g{self.grants}", tokens, end_ms=days * 600_000, paid_uusd=paid)
        assert self._ask(asked)

    @rule(number=REQUESTS, size=st.integers(1, 6), hold_ms=st.sampled_from([1, 300_000, 600_000]))
    def reserve(self, number: int, size: int, hold_ms: int) -> None:
        before = self.judge.state.balances.available("alice", self.scene.now_ms)
        order = self.scene.order(number, max_tokens=size)
        held = self._ask(self.scene.reserve(order, hold_ms=hold_ms))
        assert not held or before >= 5 + size
        if held:
            self.orders[number] = order

    @rule(data=st.data(), output=st.integers(1, 6))
    def complete(self, data: st.DataObject, output: int) -> None:
        """The output may be longer than ordered."""
        remembered = dict(self.scene.receipts)
        order = self._some_order(data)
        if not self._ask(self.scene.complete(order, output_tokens=output)):
            self.scene.receipts = remembered

    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        self._ask(self.scene.void(self._some_order(data)))

    @rule(data=st.data(), late=st.booleans())
    def expire(self, data: st.DataObject, late: bool) -> None:
        order = self._some_order(data)
        self.scene.now_ms += 600_000 if late else 0
        row = self.judge.state.balances.request(order.body.request)
        due = row is not None and row.status == "held" and row.expires_ms <= self.scene.now_ms
        assert self._ask(self.scene.expiry(order)) == due

    @rule(data=st.data())
    def say_again(self, data: st.DataObject) -> None:
        if self.said:
            assert not self._ask(data.draw(st.sampled_from(self.said)))

    @rule(by_ms=st.sampled_from([1, 59_999, 600_000]))
    def wait(self, by_ms: int) -> None:
        self.scene.now_ms += by_ms

    @invariant()
    def every_bucket_adds_up_and_no_part_is_negative(self) -> None:
        self.accounts.check_rows(self.judge.state)
        buckets = [row for row in self.judge.state.balances.rows.values() if isinstance(row, BucketRow)]
        for bucket in buckets:
            assert min(bucket.available, bucket.held, bucket.consumed) >= 0
        account = self.judge.state.balances.account("alice")
        assert account.granted == sum(bucket.tokens for bucket in buckets)
        assert account.held == sum(bucket.held for bucket in buckets)
        assert account.consumed == sum(bucket.consumed for bucket in buckets)

    @invariant()
    def every_account_of_a_unit_sums_to_zero(self) -> None:
        for unit in ("tokens", "uusd"):
            assert sum(amount for (_, of), amount in self.accounts.sums.items() if of == unit) == 0

    @invariant()
    def held_tokens_belong_to_open_requests(self) -> None:
        balances = self.judge.state.balances
        held = sum(tokens for request in balances.open_requests for _, tokens in balances.request(request).held)
        assert held == balances.account("alice").held


@pytest.mark.timeout(120)
def test_tokens_are_conserved_and_never_negative_in_any_history(scene, judge_of) -> None:
    def judge_of_a_new_scene() -> Any:
        return judge_of(type(scene)(scene.keys))

    written: Counter[str] = Counter()
    changes = {"judge_of_a_new_scene": staticmethod(judge_of_a_new_scene), "written": written}
    machine = type("Opened", (Network,), changes)
    many = settings(max_examples=100, stateful_step_count=40, deadline=None)
    run_state_machine_as_test(machine, settings=many)
    assert min(written[kind] for kind in ENDS) > 0, written
