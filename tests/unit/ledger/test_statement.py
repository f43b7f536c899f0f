"""Statements: every line of an account and of a host, and sums that agree with the book's projections."""

from __future__ import annotations

from contextlib import closing

import pytest

from sawyer.errors import BookCorrupt
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.host_statement import host_statement
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.state import State
from sawyer.ledger.statement import Period, account_statement

from .stories import tell

JANUARY, FEBRUARY, MARCH = (Period.month(2026, month) for month in (1, 2, 3))


@pytest.fixture(scope="module")
def story(keys, tmp_path_factory):
    from .conftest import Scene

    return SQLiteSource(tell(Scene(keys), tmp_path_factory.mktemp("story")))


def folded(source) -> State:
    state = None
    with closing(source.rows()) as rows:
        for row in rows:
            if not row.is_checkpoint:
                entry = decode_entry(row.state)
                state = state or State(entry.log, "", "")
                state.apply(entry)
    assert state is not None
    return state


def test_statement_of_an_account_tells_everything_once(story) -> None:
    made = account_statement(story, "alice", Period())
    told = [(line.what, line.tokens) for line in made.lines]
    assert told == [
        ("granted", 500_000), ("granted", 1_000), ("granted", 300_000), ("debited", -7), ("debited", -8), ("voided", 0),
        ("abandoned", 0), ("debited", -7), ("expired", -1), ("expired", -977), ("expired", -499_992), ("debited", -8),
    ]  # fmt: skip
    assert [line.seq for line in made.lines] == sorted(line.seq for line in made.lines)
    assert (made.opening, made.granted, made.debited, made.expired) == (0, 801_000, 30, 500_970)
    assert made.closing == made.granted - made.debited - made.expired == made.lines[-1].balance


def test_statement_agrees_with_the_projections(story) -> None:
    made, row = account_statement(story, "alice", Period()), folded(story).balances.account("alice")
    assert (made.granted, made.debited, made.expired) == (row.granted, row.consumed, row.expired)
    assert sum(hold.tokens for hold in made.holds) == row.held
    assert made.closing == row.granted - row.consumed - row.expired


def test_request_is_one_line_with_its_model_tokens_and_grants(story) -> None:
    made = account_statement(story, "alice", Period())
    line = next(line for line in made.lines if line.what == "debited")
    assert (line.model, line.input_tokens, line.output_tokens, line.parts) == ("austen", 5, 2, (("cheap_u", 7),))
    assert line.receipts == ()
    failed = next(line for line in made.lines if line.what == "voided")
    assert (failed.model, failed.reason, failed.parts) == ("austen", "expert_unavailable", ())


def test_receipts_are_told_if_they_are_asked_for(story) -> None:
    made = account_statement(story, "alice", Period(), with_receipts=True)
    receipts = [receipt for line in made.lines for receipt in line.receipts]
    assert [(each.node, each.host, each.counter) for each in receipts] == [("node-a", "bob", n) for n in (1, 2, 3, 4)]
    assert all(each.rows and each.work for each in receipts)


def test_months_follow_each_other_without_a_gap(story) -> None:
    january, february, march = (account_statement(story, "alice", each) for each in (JANUARY, FEBRUARY, MARCH))
    whole = account_statement(story, "alice", Period())
    assert january.opening == 0
    assert (january.closing, february.closing) == (february.opening, march.opening)
    assert [*january.lines, *february.lines] == whole.lines
    assert february.lines
    assert march.lines == []
    assert march.closing == whole.closing


def test_grants_show_what_is_left_of_them_at_the_end_of_the_month(story) -> None:
    grants = {
        each.grant: (each.left, each.debited, each.expired)
        for each in account_statement(story, "alice", JANUARY).grants
    }
    assert grants == {"2026_jan-a": (500_000, 0, 0), "cheap_u": (0, 22, 978), "gift": (300_000, 0, 0)}
    later = {each.grant: each.left for each in account_statement(story, "alice", FEBRUARY).grants}
    assert later == {"2026_jan-a": 8, "gift": 299_992}


def test_hold_that_is_open_at_the_end_of_the_month_is_told(story) -> None:
    (hold,) = account_statement(story, "alice", JANUARY).holds
    assert (hold.model, hold.tokens) == ("austen", 8)


def test_use_is_summed_by_model(story) -> None:
    (use,) = account_statement(story, "alice", JANUARY).models
    assert (use.model, use.requests, use.input_tokens, use.output_tokens, use.tokens) == ("austen", 3, 15, 7, 22)


def test_statement_of_a_host_tells_every_credited_receipt(story) -> None:
    made = host_statement(story, "bob", Period())
    assert [(line.node, line.counter) for line in made.lines] == [("node-a", n) for n in (1, 2, 3, 4)]
    assert made.total.receipts == 4
    assert [sums.receipts for sums in made.days] == [1, 1, 1, 1]
    assert [(sums.name, sums.work) for sums in made.models] == [("austen", made.total.work)]
    assert [sums.name for sums in made.nodes] == ["node-a"]


def test_statement_of_a_host_agrees_with_the_projections(story) -> None:
    total, row = host_statement(story, "bob", Period()).total, folded(story).payouts.hosts["bob"]
    assert (total.rows, str(total.work), str(total.weight_milli)) == (row.rows, row.work, row.weight_milli)


def test_statement_of_a_host_of_one_month_holds_that_month(story) -> None:
    assert [len(host_statement(story, "bob", each).lines) for each in (JANUARY, FEBRUARY, MARCH)] == [3, 1, 0]


def test_host_without_credits_has_an_empty_statement(story) -> None:
    made = host_statement(story, "carol", Period())
    assert (made.lines, made.total.work) == ([], 0)


def test_rows_without_a_receipt_are_told_and_credit_nobody(scene, tmp_path) -> None:
    from sawyer.schemas.events import NodeRows

    book = scene.open(tmp_path)
    order = scene.order(1)
    rows = 7 * 8
    steps = [*scene.opening(), scene.reserve(order)]
    steps.append(scene.complete(order, receipts=(), unreceipted=(NodeRows(node="node-b", rows=rows),)))
    assert [reply.error for reply in book.commit(steps, scene.now_ms)] == [None] * len(steps)
    book.close()
    source = SQLiteSource(tmp_path / "book.sqlite")
    made = host_statement(source, "carol", Period())
    assert (made.lines, made.unreceipted_rows) == ([], rows)
    (line,) = [line for line in account_statement(source, "alice", Period(), with_receipts=True).lines if line.receipts]
    assert [(each.node, each.counter, each.work) for each in line.receipts] == [("node-b", 0, 0)]


@pytest.mark.parametrize("name", ["nobody", "node-a", "ali", "alice2"])
def test_nobody_has_no_statement(story, name: str) -> None:
    assert account_statement(story, name, Period()) is None
    assert host_statement(story, name, Period()) is None


def test_account_and_host_are_not_mixed_up(story) -> None:
    assert account_statement(story, "bob", Period()) is None
    assert host_statement(story, "alice", Period()) is None


@pytest.mark.parametrize(("year", "month"), [(2026, 0), (2026, 13), (1969, 12)])
def test_month_that_no_calendar_has_is_refused(year: int, month: int) -> None:
    with pytest.raises(ValueError, match="no month"):
        Period.month(year, month)


def test_month_ends_where_the_next_begins() -> None:
    assert Period.month(2026, 12).end_ms == Period.month(2027, 1).start_ms


def test_book_that_does_not_add_up_makes_no_statement(story, tmp_path) -> None:
    """A debit of more than was ever held."""
    import shutil
    import sqlite3

    copy = shutil.copy(story.path, tmp_path / "book.sqlite")
    with closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute(
            "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic LIKE 'inference.%'",
            (b'"debited":[{"grant":"gift","tokens":8}]', b'"debited":[{"grant":"gift","tokens":9}]'),
        )
    with pytest.raises(BookCorrupt, match="held falls to -1 tokens"):
        account_statement(SQLiteSource(copy), "alice", Period())
