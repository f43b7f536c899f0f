"""Random lives of a network, written to a real file: whatever is asked in whatever order, whichever way clocks jump and
processes end, the book says what a much simpler ledger says, no balance ever falls below zero, and replay agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from sawyer.ledger.audit import Accounts
from sawyer.ledger.billing import CLOCK_SLACK_MS, HOLD_LIMIT_MS
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.projections.balances import BucketRow
from sawyer.schemas.events import InferenceRequested
from sawyer.schemas.messages import LedgerReply
from sawyer.schemas.signed import Signed

INPUT = 5
ORDER_MS = 60_000
ACCOUNTS = ("alice", "mallory")
ACTIONS = (
    "grant", "reserve", "reserve", "reserve", "reserve", "complete", "complete", "complete", "void",
    "expire_one_hold_perhaps_too_early", "let_the_ledger_expire_what_is_due", "say_something_again", "wait", "wait",
    "wait", "jump_back", "open_again",
)  # fmt: skip
KINDS = (
    "tokens.granted.v1", "tokens.reserved.v1", "inference.completed.v1", "reservation.voided.v1",
    "reservation.expired.v1", "tokens.expired.v1", "snapshot.taken.v1",
)  # fmt: skip


# --- the simpler ledger -----------------------------------------------------------------------------------------------


@dataclass
class Lot:
    """Tokens of one grant."""

    start_ms: int
    end_ms: int
    left: int
    used: int = 0
    gone: int = 0


@dataclass
class Hold:
    """Tokens of one request, lot by lot; `said` is the order that they are held for."""

    account: str
    said: Signed[InferenceRequested]
    end_ms: int
    parts: list[tuple[Lot, int]]
    open: bool = True


@dataclass
class Purses:
    """Lots by account in the order of their grants, and every hold there ever was. Knows nothing of entries."""

    lots: dict[str, list[Lot]] = field(default_factory=lambda: {account: [] for account in ACCOUNTS})
    holds: dict[int, Hold] = field(default_factory=dict)

    def available(self, account: str, now_ms: int) -> int:
        return sum(lot.left for lot in self.lots[account] if lot.start_ms <= now_ms < lot.end_ms)

    def held(self, account: str) -> int:
        return sum(n for hold in self.holds.values() if hold.open and hold.account == account for _, n in hold.parts)

    def take(self, account: str, tokens: int, now_ms: int) -> list[tuple[Lot, int]]:
        parts = []
        for lot in sorted(self.lots[account], key=lambda lot: lot.end_ms):  # stable: of two alike the first granted
            part = min(tokens, lot.left) if lot.start_ms <= now_ms < lot.end_ms else 0
            lot.left, tokens = lot.left - part, tokens - part
            parts += [(lot, part)] if part else []
        assert tokens == 0
        return parts

    def end(self, hold: Hold, used: int, now_ms: int) -> None:
        hold.open = False
        for lot, part in hold.parts:
            debit = min(used, part)
            used -= debit
            lot.used += debit
            if lot.end_ms <= now_ms:
                lot.gone += part - debit
            else:
                lot.left += part - debit

    def lapse(self, now_ms: int) -> None:
        for lot in (lot for lots in self.lots.values() for lot in lots if lot.end_ms <= now_ms):
            lot.gone, lot.left = lot.gone + lot.left, 0


# --- the lives --------------------------------------------------------------------------------------------------------


class Network(RuleBasedStateMachine):
    """One life. The test brings keys, folders and what is counted over all lives."""

    new_scene: ClassVar[Callable[[], Any]]
    new_folder: ClassVar[Callable[[], Path]]
    written: ClassVar[Counter[str]]

    @initialize()
    def found(self) -> None:
        self.scene, self.folder = type(self).new_scene(), type(self).new_folder()
        self.purses, self.said = Purses(), list[VerifiedCommand]()
        self.book = self.scene.open(self.folder, snapshot_entries=23)
        self.book_ms = 0
        assert all(self._write(asked) for asked in [*self.scene.members(), self.scene.account("mallory")])
        for account in ACCOUNTS:
            self._grant(account, 150, 0, 30 * HOLD_LIMIT_MS, paid=1_500)
        self._grant("alice", 40, 0, 2, paid=0)
        self._reserve("alice", 0, 3, hold_ms=1)
        self.scene.now_ms += 3
        self._expire()

    def teardown(self) -> None:
        if hasattr(self, "book"):
            self.every_prefix_of_the_book_adds_up()
            self.book.close()
            source, views = SQLiteSource(self.folder / "book.sqlite"), self.folder / "views.sqlite"
            report = replay(source, key=self.scene.vkey, operator=self.scene.operator, views=views, workers=1)
            assert (report.problem, report.entries, report.views_seq) == (None, self.book_size, self.book_size)

    def _commit(self, asked: VerifiedCommand) -> LedgerReply:
        self.book_ms = max(self.book_ms, self.scene.now_ms)
        (reply,) = self.book.commit([asked], self.scene.now_ms)
        return reply

    def _write(self, asked: VerifiedCommand) -> bool:
        """True if an entry was written; a refused completion leaves its node's chain of receipts as it was."""
        head_ms, remembered = self.book_ms, dict(self.scene.receipts)
        reply = self._commit(asked)
        new = reply.error is None and not reply.repeated
        if new:
            self.said.append(asked)
            assert reply.entry.ts_ms == self.book_ms
        else:
            self.book_ms = head_ms
            self.scene.receipts = remembered
        return new

    def _grant(self, account: str, tokens: int, start_ms: int, end_ms: int, paid: int) -> None:
        name, now_ms = f"g{len(self.said)}", self.scene.now_ms
        asked = self.scene.grant(name, tokens, account=account, start_ms=start_ms, end_ms=end_ms, paid_uusd=paid)
        assert self._write(asked)
        self.purses.lots[account].append(Lot(now_ms + start_ms, now_ms + end_ms, tokens))

    @rule(action=st.sampled_from(ACTIONS), data=st.data())
    def act(self, action: str, data: st.DataObject) -> None:
        """One rule for all: hypothesis leaves rules out of a life at random, and these need each other."""
        getattr(self, action)(data)

    def grant(self, data: st.DataObject) -> None:
        account, start = data.draw(st.sampled_from(ACCOUNTS)), data.draw(st.sampled_from([0, 0, -5_000, 700_000]))
        length = data.draw(st.sampled_from([5_000_000, 600_000, 60_000, 1]))
        tokens, paid = data.draw(st.integers(1, 60)), data.draw(st.integers(0, 900))
        self._grant(account, tokens, start, start + length, paid)

    def reserve(self, data: st.DataObject) -> None:
        account, size = data.draw(st.sampled_from(ACCOUNTS)), data.draw(st.integers(1, 20))
        number = data.draw(st.integers(1, 40))
        hold_ms = data.draw(st.sampled_from([HOLD_LIMIT_MS, HOLD_LIMIT_MS, 300_000, 1]))
        self._reserve(account, number, size, hold_ms)

    def _reserve(self, account: str, number: int, size: int, hold_ms: int) -> None:
        now_ms, at_ms = self.scene.now_ms, max(self.book_ms, self.scene.now_ms)
        order = self._order(account, number, size)
        fits = (
            number not in self.purses.holds
            and at_ms < now_ms + min(hold_ms, ORDER_MS)
            and now_ms + hold_ms <= at_ms + HOLD_LIMIT_MS + CLOCK_SLACK_MS
            and self.purses.available(account, at_ms) >= INPUT + size
        )
        assert self._write(self.scene.reserve(order, hold_ms=hold_ms)) == fits
        if fits:
            parts = self.purses.take(account, INPUT + size, at_ms)
            self.purses.holds[number] = Hold(account, order, now_ms + hold_ms, parts)

    def _order(self, account: str, number: int, size: int) -> Signed[InferenceRequested]:
        return self.scene.order(number, key=account, by=account, account=account, max_tokens=size)

    def _some_hold(self, data: st.DataObject) -> Hold:
        """One that is open, one that ended, or one that never was."""
        known = sorted(self.purses.holds)
        still = [number for number in known if self.purses.holds[number].open]
        number = data.draw(st.sampled_from([*still, *still, *known, 99]))
        never = Hold("alice", self._order("alice", 99, 3), 0, [], open=False)
        return self.purses.holds.get(number, never)

    def complete(self, data: st.DataObject) -> None:
        """The output may be longer than ordered."""
        hold, output = self._some_hold(data), data.draw(st.integers(1, 22))
        fits = hold.open and output <= hold.said.body.max_tokens
        assert self._write(self.scene.complete(hold.said, output_tokens=output)) == fits
        if fits:
            self.purses.end(hold, INPUT + output, self.book_ms)

    def void(self, data: st.DataObject) -> None:
        hold = self._some_hold(data)
        was_open = hold.open
        assert self._write(self.scene.void(hold.said)) == was_open
        if was_open:
            self.purses.end(hold, 0, self.book_ms)

    def expire_one_hold_perhaps_too_early(self, data: st.DataObject) -> None:
        hold = self._some_hold(data)
        due = hold.open and hold.end_ms <= max(self.book_ms, self.scene.now_ms)
        assert self._write(self.scene.expiry(hold.said)) == due
        if due:
            self.purses.end(hold, 0, self.book_ms)

    def let_the_ledger_expire_what_is_due(self, _: st.DataObject) -> None:
        self._expire()

    def _expire(self) -> None:
        now_ms = self.scene.now_ms
        due = self.book.expire(now_ms)
        assert all(self._write(asked) for asked in due)
        for hold in self.purses.holds.values():
            if hold.open and hold.end_ms <= now_ms:
                self.purses.end(hold, 0, self.book_ms)
        self.purses.lapse(now_ms)
        assert self.book.expire(now_ms) == []

    def say_something_again(self, data: st.DataObject) -> None:
        size = self.book.size
        assert not self._write(data.draw(st.sampled_from(self.said)))
        assert self.book.size == size

    def wait(self, data: st.DataObject) -> None:
        self.scene.now_ms += data.draw(st.sampled_from([1, 1_000, ORDER_MS, HOLD_LIMIT_MS, 2_000_000]))

    def jump_back(self, data: st.DataObject) -> None:
        self.scene.now_ms -= data.draw(st.sampled_from([1, 1_000, ORDER_MS, HOLD_LIMIT_MS]))

    def open_again(self, data: st.DataObject) -> None:
        how = data.draw(st.sampled_from(["closed", "killed", "views lost", "snapshot lost"]))
        if how == "killed":
            self.book._store.close()
            self.book._views.close()
        else:
            self.book.close()
        if how.endswith("lost"):
            name = {"views lost": "views.sqlite", "snapshot lost": "snapshot.bin"}[how]
            (self.folder / name).unlink(missing_ok=True)
        self.book = self.scene.open(self.folder, snapshot_entries=23)

    @invariant()
    def book_and_purses_say_the_same(self) -> None:
        for account in ACCOUNTS:
            told = self.book.balance(account, self.scene.now_ms)
            lots = self.purses.lots[account]
            assert told.available == self.purses.available(account, self.scene.now_ms)
            assert told.held == self.purses.held(account)
            assert told.consumed == sum(lot.used for lot in lots)
            assert told.expired == sum(lot.gone for lot in lots)
            assert told.granted == sum(lot.left + lot.used + lot.gone for lot in lots) + told.held

    @invariant()
    def every_bucket_adds_up_and_no_part_is_negative(self) -> None:
        for row in self.book._state.balances.rows.values():
            if isinstance(row, BucketRow):
                assert min(row.available, row.held, row.consumed, row.expired) >= 0
                assert row.available + row.held + row.consumed + row.expired == row.tokens

    def every_prefix_of_the_book_adds_up(self) -> None:
        """Postings of every entry sum to zero (`post` raises where they do not), and so do all accounts of a unit."""
        accounts, self.book_size = Accounts(), self.book.size
        for raw in self.book.entry_bytes(1, self.book_size):
            entry = decode_entry(raw)
            accounts.post(entry)
            self.written[entry.kind] += 1
            assert accounts.lowest >= 0
        accounts.check_rows(self.book._state)
        for unit in ("tokens", "uusd"):
            assert sum(amount for (_, of), amount in accounts.sums.items() if of == unit) == 0


@pytest.mark.timeout(120)
def test_book_agrees_with_a_simpler_ledger_in_any_history(scene, tmp_path_factory) -> None:
    written: Counter[str] = Counter()
    changes = {
        "new_scene": staticmethod(lambda: type(scene)(scene.keys)),
        "new_folder": staticmethod(lambda: tmp_path_factory.mktemp("life")),
        "written": written,
    }
    machine = type("Opened", (Network,), changes)
    many = settings(max_examples=15, stateful_step_count=40, deadline=None, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=many)  # not shrunk: a life in files takes too long for that
    assert min(written[kind] for kind in KINDS) > 0, written
