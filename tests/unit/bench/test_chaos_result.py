"""The arithmetic of a chaos run: which gap is of which fault, what failed, what changed, what the book must say."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sawyer.bench.chaos_book import BookVerdict, Debit, mismatches
from sawyer.bench.chaos_load import Asked, Known
from sawyer.bench.chaos_result import CALM, ChaosResult, StallTimes, Times, Window, longest
from sawyer.bench.machine import Machine
from sawyer.schemas.messages import Usage

KNOWN = Known("It was", (5, 6, 7, 8))
MACHINE = Machine("a CPU", 2, "Linux", "CPython", "uvloop", 0.0, {})
BOOK = BookVerdict(True, 9, 20, "", 1, 7, 0, (), 0)


def asked(
    *tokens_s: float, ids: tuple[int, ...] = KNOWN.ids, error: str = "", number: int = 1, billed: int = 7
) -> Asked:
    """A request asked at 0 that has three prompt tokens; its bill comes half a second after its last token."""
    usage = Usage(
        input_tokens=3, output_tokens=len(ids), billed_tokens=billed, entry=1, nodes=(), takeovers=(), prefill_us=1,
        decode_us=1,
    )  # fmt: skip
    ended_s = tokens_s[-1] + 0.5 if tokens_s else 1.0
    return Asked(KNOWN, 0.0, f"{number:032x}", list(tokens_s), ended_s, ids, None if error else usage, error, error)


def result(*requests: Asked, book: BookVerdict = BOOK, windows: tuple[Window, ...] = ()) -> ChaosResult:
    return ChaosResult.of(
        requests, windows, (), book, MACHINE, seed=1, seconds=2.0, streams=1, nodes=2, model="austen-8m", quick=True
    )


# --- stalls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("from_s", "to_s", "stall"),
    [
        (1.2, 1.4, 1.0),  # inside a gap: the whole gap counts
        (0.5, 1.5, 1.0),
        (1.5, 2.1, 1.0),  # over two gaps: the longer one
        (2.05, 2.2, 0.25),
        (0.0, 9.0, 1.0),
        (0.0, 0.5, None),  # before the first token
        (3.0, 4.0, None),
        (2.25, 3.0, None),  # it begins as the last token comes
    ],
)
def test_stall_is_the_longest_gap_that_meets_the_fault(from_s: float, to_s: float, stall: float | None) -> None:
    assert longest(asked(1.0, 2.0, 2.25), Window("kill_node", from_s, to_s)) == stall


def test_request_with_one_token_or_none_has_no_stall() -> None:
    window = Window("kill_node", 0.0, 9.0)
    assert longest(asked(1.0), window) is None
    assert longest(asked(error="no_answer"), window) is None


def test_quantiles_are_values_that_were_measured_in_milliseconds() -> None:
    assert Times.of([]) == Times(0, 0.0, 0.0, 0.0)
    assert Times.of([0.0101]) == Times(1, 10.1, 10.1, 10.1)
    assert Times.of([n / 1000 for n in range(101)]) == Times(101, 50.0, 99.0, 100.0)


def test_stalls_are_told_by_kind_and_gaps_outside_all_faults_are_calm() -> None:
    windows = [Window("kill_node", 1.5, 1.6), Window("freeze_node", 4.0, 5.0), Window("kill_node", 20.0, 21.0)]
    first = asked(1.0, 2.0, 2.25)
    second = asked(3.0, 7.0, 7.5)
    found = StallTimes.of([first, second], windows)
    assert (found.p50, found.p99, found.max) == (4000.0, 4000.0, 4000.0)
    killed, frozen, calm = (found.by_kind[kind] for kind in ("kill_node", "freeze_node", CALM))
    assert killed.faults == 2
    assert killed.stall_ms == Times(1, 1000.0, 1000.0, 1000.0)
    assert frozen.stall_ms == Times(1, 4000.0, 4000.0, 4000.0)
    assert frozen.first_ms.count == 0
    assert calm.token_ms == Times(2, 500.0, 500.0, 500.0)
    assert calm.stall_ms.max == 500.0
    assert calm.bill_ms.count == 2


def test_waits_for_the_first_token_and_for_the_bill_count_where_a_fault_met_them() -> None:
    windows = [Window("kill_bookkeeper", 0.5, 0.6), Window("kill_nats", 2.3, 2.4)]
    found = StallTimes.of([asked(1.0, 2.0, 2.25)], windows).by_kind
    assert found["kill_bookkeeper"].first_ms == Times(1, 1000.0, 1000.0, 1000.0)
    assert found["kill_nats"].bill_ms == Times(1, 500.0, 500.0, 500.0)
    assert found["kill_nats"].stall_ms.count == 0


# --- failed and changed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "error", "changed"),
    [
        (KNOWN.ids, "", False),
        ((5, 6, 7, 9), "", True),
        ((5, 6, 7), "", True),  # it ended early, and said that it was whole
        ((5, 6, 7, 8, 9), "", True),
        ((5, 6), "no_answer", False),
        ((5, 9), "no_answer", True),
        ((), "no_answer", False),
    ],
)
def test_request_is_changed_if_a_token_it_was_told_is_another(ids: tuple[int, ...], error: str, changed: bool) -> None:
    assert asked(1.0, ids=ids, error=error).changed is changed


def test_run_is_right_only_if_nothing_failed_nothing_changed_and_the_book_is_right() -> None:
    assert result(asked(1.0)).ok
    assert not result(asked(1.0, error="no_answer")).ok
    assert not result(asked(1.0, ids=(5, 6, 7, 9))).ok
    assert not result(asked(1.0), book=dataclasses.replace(BOOK, ok=False)).ok


def test_result_is_one_object_with_what_was_asked_for_at_its_top() -> None:
    window = Window("kill_node", 0.2, 1.5)
    bad = asked(0.5, 1.0, ids=(5, 6), error="expert_unavailable", number=2)
    plain = json.loads(json.dumps(dataclasses.asdict(result(asked(1.0, 2.0), bad, windows=(window,)))))
    assert (plain["requests"], plain["failed"], plain["changed"], plain["seed"]) == (2, 1, 0, 1)
    assert plain["faults"] == {"kill_node": 1}
    assert plain["errors"] == {"expert_unavailable": 1}
    assert (plain["tokens"], plain["tokens_per_second"]) == (6, 3.0)
    assert plain["stall_ms"]["by_kind"]["kill_node"]["stall_ms"]["max"] == plain["stall_ms"]["max"] == 1000.0
    assert (plain["replay"]["ok"], plain["replay"]["entries"]) == (True, 9)
    (wrong,) = plain["wrong"]
    assert (wrong["request"], wrong["during"], wrong["tokens"]) == (f"{2:032x}", ["kill_node"], 2)


# --- the book -------------------------------------------------------------------------------------------------------


def test_debit_that_matches_its_tokens_is_right() -> None:
    one = asked(1.0)
    assert mismatches({one.request: [Debit(3, 4, 7)]}, [one, asked(error="no_answer", number=2)]) == []


@pytest.mark.parametrize(
    ("booked", "said"),
    [
        ([], "[] booked"),
        ([Debit(3, 4, 8)], "debited=8"),
        ([Debit(3, 5, 7)], "output_tokens=5"),
        ([Debit(3, 4, 7), Debit(3, 4, 7)], "booked"),
    ],
)
def test_debit_that_is_missing_double_or_another_is_told(booked: list[Debit], said: str) -> None:
    one = asked(1.0)
    (told,) = mismatches({one.request: booked} if booked else {}, [one])
    assert said in told
    assert one.request in told


def test_bill_for_what_failed_for_nobody_or_of_another_sum_is_told() -> None:
    failed = asked(1.0, error="no_answer", number=2)
    assert "failed (no_answer), and 7 tokens" in mismatches({failed.request: [Debit(3, 4, 7)]}, [failed])[0]
    assert "asked by nobody" in mismatches({"ff" * 16: [Debit(3, 4, 7)]}, [])[0]
    more = asked(1.0, billed=9)
    assert "9 billed" in mismatches({more.request: [Debit(3, 4, 7)]}, [more])[0]
