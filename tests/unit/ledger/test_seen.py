"""The ids of all requests: exact, small, and a second reservation is named wherever the first was."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.errors import BookCorrupt
from sawyer.ledger.seen import SeenRequests
from sawyer.projections.fold import Entry


@pytest.fixture
def entry(judge, scene) -> Entry:
    (made,) = judge.write(scene.reserve(scene.order()))
    return made


def at(entry: Entry, seq: int) -> Entry:
    fields = {name: getattr(entry, name) for name in Entry.__struct_fields__}
    return Entry(**{**fields, "seq": seq})


def ids(count: int) -> list[str]:
    return [hashlib.sha256(b"%d" % number).hexdigest()[:32] for number in range(count)]


def first_problem(requests: list[str], entry: Entry, recent: int) -> int | None:
    """The entry (from 1) that is refused, however late it is noticed."""
    seen = SeenRequests(recent)
    try:
        for seq, request in enumerate(requests, start=1):
            seen.add(request, at(entry, seq))
        seen.check()
    except BookCorrupt as error:
        return error.seq
    return None


@pytest.mark.parametrize("recent", [1, 3, 16, 1000])
def test_requests_that_are_all_different_are_all_taken(entry: Entry, recent: int) -> None:
    assert first_problem(ids(100), entry, recent) is None


@pytest.mark.parametrize("recent", [1, 3, 16, 1000])
@pytest.mark.parametrize("first", [0, 1, 50, 98])
def test_second_reservation_is_named_by_its_entry_however_old_the_first_is(
    entry: Entry, recent: int, first: int
) -> None:
    requests = ids(100)
    requests[99] = requests[first]
    assert first_problem(requests, entry, recent) == 100


def test_first_of_several_second_reservations_is_named(entry: Entry) -> None:
    requests = ids(40)
    requests[30], requests[33] = requests[20], requests[2]
    assert first_problem(requests, entry, recent=16) == 31
    requests[30], requests[33] = requests[2], requests[20]
    assert first_problem(requests, entry, recent=16) == 31


@pytest.mark.parametrize(("one", "other"), [("00" * 16, "00" * 8 + "01" * 8), ("ff" * 16, "ff" * 8 + "00" * 8)])
def test_ids_that_are_alike_in_their_first_half_are_told_apart(entry: Entry, one: str, other: str) -> None:
    assert first_problem([one, other, *ids(5)], entry, recent=1) is None
    assert first_problem([one, *ids(5), other, one], entry, recent=1) == 8


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 9))
def test_what_is_refused_is_what_a_set_would_refuse(numbers: list[int], recent: int) -> None:
    """Not at once, but no later than the end, and nothing else."""
    made = SeenRequests(recent)
    known, expected = set(), None
    for number in numbers:
        if number in known:
            expected = number
            break
        known.add(number)
    names = ids(13)
    found = None
    try:
        for seq, number in enumerate(numbers, start=1):
            made.add(names[number], _Reserving(seq))
        made.check()
    except BookCorrupt as error:
        found = error.seq
    assert found == (None if expected is None else _second(numbers))


class _Reserving:
    """As much of an entry as is asked for."""

    class signer:  # noqa: N801 (an attribute of an entry)
        by, key_id = "router", "UROUTER"

    def __init__(self, seq: int) -> None:
        self.seq = seq


def _second(numbers: list[int]) -> int:
    return next(at for at, number in enumerate(numbers, start=1) if number in numbers[: at - 1])
