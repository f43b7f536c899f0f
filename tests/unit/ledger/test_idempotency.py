"""The same thing said again: one entry, one answer, however late, however often, and whoever forgot it meanwhile."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sawyer.errors import BookCorrupt, SawyerError
from sawyer.ledger import past
from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.past import StoredPast, ended_row
from sawyer.ledger.store import MemoryStore
from sawyer.projections.balances import RequestRow
from sawyer.schemas.events import NodeRows
from sawyer.schemas.messages import LedgerReply


class Disk(MemoryStore):
    """A store whose next write can fail: before anything is written, or after all of it was."""

    fails = ""

    def append(self, rows: Sequence[StoredRow]) -> None:
        fails, self.fails = self.fails, ""
        if fails != "before":
            super().append(rows)
        if fails:
            raise SawyerError(f"the power went {fails} the write")


@dataclass
class Writer:
    """One book in memory, which may forget, fail and be opened again."""

    scene: object
    disk: Disk = field(default_factory=Disk)
    book: Book = field(init=False)

    def __post_init__(self) -> None:
        self.reopen()

    def reopen(self) -> None:
        scene = self.scene
        self.book = Book(self.disk, network=scene.network, operator=scene.operator, ledger_key=scene.keys["ledger"])

    def say(self, *commands: VerifiedCommand) -> list[LedgerReply]:
        return self.book.commit(commands, self.scene.now_ms)


@pytest.fixture
def writer(scene) -> Writer:
    made = Writer(scene)
    assert [reply.error for reply in made.say(*scene.opening())] == [None] * 8
    return made


def forget(writer: Writer) -> None:
    """As after very many other requests."""
    writer.book._past.forget()


def reopen(writer: Writer) -> None:
    writer.reopen()


def nothing(_: Writer) -> None:
    pass


ENDS: dict[str, Callable] = {
    "complete": lambda scene, order: scene.complete(order),
    "void": lambda scene, order: scene.void(order),
    "expire": lambda scene, order: scene.expiry(order),
}
between = pytest.mark.parametrize("between", [nothing, forget, reopen], ids=lambda each: each.__name__)
ended = pytest.mark.parametrize("end", ENDS)


# --- requests ---------------------------------------------------------------------------------------------------------


@between
@ended
def test_end_of_a_request_said_again_is_the_same_entry(writer: Writer, scene, end: str, between) -> None:
    order = scene.order()
    writer.say(scene.reserve(order))
    scene.now_ms += 600_000
    asked = ENDS[end](scene, order)
    first, same_batch = writer.say(asked, asked)
    before = writer.book._state.balances.account("alice")
    size = writer.book.size
    between(writer)
    (later,) = writer.say(asked)
    assert (first.error, first.repeated) == (None, False)
    assert [reply.repeated for reply in (same_batch, later)] == [True, True]
    assert first.entry == same_batch.entry == later.entry
    assert (writer.book.size, writer.book._state.balances.account("alice")) == (size, before)


@between
@ended
def test_reservation_said_again_after_its_request_ended_is_no_second_hold(writer: Writer, scene, end, between) -> None:
    order = scene.order()
    asked = scene.reserve(order)
    writer.say(asked)
    scene.now_ms += 600_000
    writer.say(ENDS[end](scene, order))
    between(writer)
    (again,) = writer.say(asked)
    expected = {"complete": "already_completed", "void": "request_conflict", "expire": "request_conflict"}[end]
    assert again.error.code == expected
    assert writer.book.balance("alice", scene.now_ms).held == 0


@between
def test_bill_of_a_completed_request_is_told_by_memory_and_by_the_book_alike(writer: Writer, scene, between) -> None:
    order = scene.order()
    writer.say(scene.reserve(order), scene.complete(order, output_tokens=2))
    between(writer)
    (again,) = writer.say(scene.reserve(order))
    assert again.error.details == {"entry": "10", "input_tokens": "5", "output_tokens": "2", "billed_tokens": "7"}
    told = writer.book.completed(order.body.request)
    assert (told.entry, told.input_tokens, told.output_tokens, told.billed_tokens) == (10, 5, 2, 7)


@between
def test_other_content_under_a_request_that_ended_is_a_conflict(writer: Writer, scene, between) -> None:
    order = scene.order()
    writer.say(scene.reserve(order), scene.complete(order, output_tokens=2))
    between(writer)
    others = [
        scene.complete(order, output_tokens=3), scene.complete(order, receipts=(), unreceipted=_rows(48)),
        scene.reserve(scene.order(content="ee" * 32)), scene.reserve(scene.order(model="other")),
    ]  # fmt: skip
    codes = [reply.error.code for reply in writer.say(*others)]
    assert codes == ["request_conflict", "request_conflict", "request_conflict", "already_completed"]
    assert writer.book.balance("alice", scene.now_ms).consumed == 7


@between
@pytest.mark.parametrize(("first", "second"), [("complete", "void"), ("void", "complete"), ("expire", "complete")])
def test_request_ends_once(writer: Writer, scene, first: str, second: str, between) -> None:
    order = scene.order()
    writer.say(scene.reserve(order))
    scene.now_ms += 600_000
    writer.say(ENDS[first](scene, order))
    between(writer)
    (reply,) = writer.say(ENDS[second](scene, order))
    assert reply.error.code == ("already_completed" if first == "complete" else "request_conflict")
    balance = writer.book.balance("alice", scene.now_ms)
    assert (balance.consumed, balance.held) == (8 if first == "complete" else 0, 0)


def _rows(rows: int) -> tuple[NodeRows, ...]:
    return (NodeRows(node="node-a", rows=rows),)


def test_request_that_is_reserved_completed_and_reserved_again_in_one_batch(writer: Writer, scene) -> None:
    """formance/stack #1633: one key twice in one batch crashed the writer."""
    order = scene.order()
    reserve, complete = scene.reserve(order), scene.complete(order)
    replies = writer.say(reserve, reserve, complete, reserve, complete, scene.void(order))
    assert [reply.error and reply.error.code for reply in replies] == [
        None, None, None, "already_completed", None, "already_completed",
    ]  # fmt: skip
    assert [reply.repeated for reply in replies] == [False, True, False, False, True, False]
    assert writer.book.balance("alice", scene.now_ms).consumed == 8


# --- everything else --------------------------------------------------------------------------------------------------


def _facts(scene) -> list[VerifiedCommand]:
    return [
        *scene.opening(), scene.rotate("account", "alice", "alice-2"), scene.rotate("node", "node-a", "node-a-2"),
        scene.revoke("node-b"), scene.erase(), scene.add_key("router", "router-2"),
    ]  # fmt: skip


SUPERSEDED = {"node.registered.v1", "account.opened.v1"}
"""Of the facts above, node-a's and alice's keys are others by now; node-b's was revoked."""


@between
def test_every_fact_said_again_is_the_same_entry_or_says_what_replaced_it(writer: Writer, scene, between) -> None:
    facts = _facts(scene)
    first = writer.say(*facts)
    assert [reply.error for reply in first] == [None] * len(facts)
    size = writer.book.size
    between(writer)
    for asked, before, again in zip(facts, first, writer.say(*facts), strict=True):
        if asked.kind in SUPERSEDED:
            assert again.error.code in ("superseded", "not_authorised")
        else:
            assert (again.repeated, again.entry) == (True, before.entry)
    assert writer.book.size == size


@pytest.mark.parametrize("fails", ["before", "after"])
@between
def test_command_whose_answer_was_lost_in_a_failed_write_is_written_once(writer: Writer, scene, fails, between) -> None:
    """`after`: the batch was durable and nobody was told. `before`: nothing was written."""
    order = scene.order()
    batch = [scene.reserve(order), scene.complete(order), scene.grant("more", 10)]
    writer.disk.fails = fails
    with pytest.raises(SawyerError, match="the power went"):
        writer.say(*batch)
    between(writer)
    replies = writer.say(*batch)
    expected = ["already_completed", None, None] if fails == "after" else [None, None, None]
    assert [reply.error and reply.error.code for reply in replies] == expected
    assert [reply.repeated for reply in replies] == [False, fails == "after", fails == "after"]
    balance = writer.book.balance("alice", scene.now_ms)
    assert (balance.granted, balance.consumed, balance.held) == (500_010, 8, 0)
    assert writer.book.size == 11


# --- what memory has forgotten ----------------------------------------------------------------------------------------


def test_memory_remembers_the_last_so_many_requests_and_asks_the_book_for_the_others(
    writer: Writer, scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "MOST_REMEMBERED", 2)
    asked: list[str] = []
    streams = writer.disk.streams

    def watched(names: Sequence[str]) -> dict[str, list[StoredRow]]:
        asked.extend(names)
        return streams(names)

    ends = []
    for number in range(1, 5):
        order = scene.order(number)
        ends.append(scene.complete(order))
        writer.say(scene.reserve(order), ends[-1])
    monkeypatch.setattr(writer.disk, "streams", watched)
    assert [reply.repeated for reply in writer.say(*ends)] == [True] * 4
    assert sorted(asked) == sorted(f"request:{scene.order(number).body.request}" for number in (1, 2))


@ended
def test_row_that_the_book_tells_is_the_row_that_memory_had(writer: Writer, scene, end: str) -> None:
    order = scene.order()
    writer.say(scene.reserve(order))
    scene.now_ms += 600_000
    writer.say(ENDS[end](scene, order))
    request = order.body.request
    remembered = writer.book._state.request(request)
    assert isinstance(remembered, RequestRow)
    assert StoredPast(writer.disk)(request) == remembered


def test_open_and_unknown_requests_have_no_past(writer: Writer, scene) -> None:
    order = scene.order()
    writer.say(scene.reserve(order))
    found = StoredPast(writer.disk)
    assert (found(order.body.request), found("00" * 16)) == (None, None)


def test_stream_that_is_no_request_and_its_end_is_corrupt(writer: Writer, scene) -> None:
    one, two = scene.order(1), scene.order(2)
    writer.say(scene.reserve(one), scene.void(one), scene.reserve(two), scene.void(two))
    rows = {name: writer.disk.streams([f"request:{name}"]) for name in (one.body.request, two.body.request)}
    (first,), (second,) = (list(found.values()) for found in rows.values())
    for wrong in ([first[0], second[1]], [first[1], first[0]], [first[0], first[0]]):
        with pytest.raises(BookCorrupt, match="is not one request and its end"):
            ended_row(wrong)


# --- messages delivered three times in random order -------------------------------------------------------------------

ORDER_REASONS = {
    "refused", "not_authorised", "unknown_account", "unknown_model", "budget_too_small", "wrong_manifest",
    "request_conflict", "already_completed", "superseded",
}  # fmt: skip


def story(scene) -> list[VerifiedCommand]:
    """Members, two grants, six requests of which two fail, a second router and a second sheet: as it was meant."""
    told = [*scene.opening(tokens=40), scene.grant("february", 60, end_ms=31 * 86_400_000), scene.erase()]
    for number in range(1, 7):
        order = scene.order(number)
        end = scene.void(order) if number % 3 == 0 else scene.complete(order, output_tokens=1 + number % 3)
        told += [scene.reserve(order), end]
    return [*told, scene.add_key("router", "router-2")]


def outcome(book: Book) -> tuple[object, ...]:
    """What must not depend on the order in which messages came."""
    state = book._state
    account = state.balances.account("alice")
    hosts = {name: (row.rows, row.work, row.weight_milli, row.requests) for name, row in state.payouts.hosts.items()}
    kinds = Counter({kind: row.entries for kind, row in state.audit.kinds.items()})
    left = sum(bucket.available for bucket in state.balances.buckets("alice"))
    node = state.nodes.nodes["node-a"]
    return (
        account.granted, account.held, account.consumed, left, hosts, kinds, state.payouts.earned_uusd, node.counter,
        node.last_receipt, node.gaps, state.usage.digest(),
    )  # fmt: skip


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_messages_delivered_three_times_in_random_order_come_to_the_same(scene, seed: int) -> None:
    """Whatever came too early is refused for it and sent again by who waits for an answer; nothing counts twice."""
    told = story(type(scene)(scene.keys))
    once = Writer(scene)
    assert [reply.error for reply in once.say(*told)] == [None] * len(told)
    chance = random.Random(seed)
    messages = told * 3
    chance.shuffle(messages)
    writer = Writer(scene)
    while messages:
        batch = [messages.pop() for _ in range(min(len(messages), chance.randint(1, 8)))]
        codes = {reply.error.code for reply in writer.say(*batch) if reply.error is not None}
        assert codes <= ORDER_REASONS
        assert writer.book._state.balances.account("alice") is None or _adds_up(writer.book)
        if not chance.randrange(8):
            writer.reopen()
    writer.say(*told)
    assert outcome(writer.book) == outcome(once.book)


def _adds_up(book: Book) -> bool:
    account = book._state.balances.account("alice")
    left = [bucket.available for bucket in book._state.balances.buckets("alice")]
    return min(left, default=0) >= 0 and account.granted == sum(left) + account.held + account.consumed
