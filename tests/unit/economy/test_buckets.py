"""Buckets: order, expiry and roll-over as docs/token-economics.md works them out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.buckets import available_at, is_live, order, post, take
from sawyer.schemas.events import BucketTokens

JANUARY, FEBRUARY, MARCH, APRIL = 0, 31, 59, 90


@dataclass
class Lot:
    """A bucket, as these rules see one."""

    grant: str
    seq: int
    available: int
    valid_from_ms: int
    expires_ms: int


lots = st.lists(
    st.builds(
        Lot, st.uuids().map(lambda u: f"g{u.hex}"), st.integers(1, 99), st.integers(0, 100), st.integers(0, 5),
        st.integers(6, 12),
    ),
    max_size=6,
).map(lambda found: sorted(found, key=order))  # fmt: skip


def pairs(parts: tuple[BucketTokens, ...] | None) -> list[tuple[str, int]]:
    return [(part.grant, part.tokens) for part in parts or ()]


def test_soonest_to_expire_pays_first_as_in_the_worked_example() -> None:
    january = Lot("january", 1, 400_000, JANUARY, MARCH)
    february = Lot("february", 2, 500_000, FEBRUARY, APRIL)
    held = pairs(take(sorted([february, january], key=order), 450_000, FEBRUARY))
    assert held == [("january", 400_000), ("february", 50_000)]
    debited, released = post(held, 450_000)
    assert (pairs(debited), pairs(released)) == (held, [])


def test_post_releases_the_unused_rest_of_the_worked_example() -> None:
    debited, released = post([("january", 120_000)], 100_000)
    assert (pairs(debited), pairs(released)) == ([("january", 100_000)], [("january", 20_000)])


def test_unused_january_is_gone_at_the_start_of_march() -> None:
    live = [
        Lot("january", 1, 500_000, JANUARY, MARCH),
        Lot("february", 2, 500_000, FEBRUARY, APRIL),
        Lot("march", 3, 500_000, MARCH, APRIL + 30),
    ]
    assert available_at(live, MARCH - 1) == 1_000_000
    assert available_at(live, MARCH) == 1_000_000
    assert pairs(take(live, 500_001, MARCH)) == [("february", 500_000), ("march", 1)]


def test_same_expiry_is_taken_in_order_of_the_grants() -> None:
    same = sorted([Lot("second", 9, 5, 0, 10), Lot("first", 4, 5, 0, 10)], key=order)
    assert pairs(take(same, 6, 0)) == [("first", 5), ("second", 1)]


@pytest.mark.parametrize(("now", "live"), [(4, False), (5, True), (9, True), (10, False)])
def test_bucket_is_live_from_its_start_until_before_its_end(now: int, live: bool) -> None:
    lot = Lot("g", 1, 1, 5, 10)
    assert is_live(lot, now) is live
    assert (take([lot], 1, now) is not None) is live
    assert available_at([lot], now) == int(live)


def test_too_little_takes_nothing() -> None:
    assert take([Lot("g", 1, 5, 0, 10)], 6, 0) is None


def test_empty_bucket_is_passed_over() -> None:
    assert pairs(take([Lot("empty", 1, 0, 0, 9), Lot("full", 2, 5, 0, 10)], 5, 0)) == [("full", 5)]


def test_posting_more_than_held_is_refused() -> None:
    with pytest.raises(ValueError, match="1 tokens more"):
        post([("g", 5)], 6)


@given(lots, st.integers(1, 700), st.integers(0, 12))
def test_take_is_exact_and_only_from_live_buckets_the_soonest_to_expire_first(
    found: list[Lot], tokens: int, now: int
) -> None:
    held = take(found, tokens, now)
    assert (held is None) == (available_at(found, now) < tokens)
    if held is None:
        return
    live = [lot for lot in found if is_live(lot, now) and lot.available]
    assert sum(part.tokens for part in held) == tokens
    assert [part.grant for part in held] == [lot.grant for lot in live[: len(held)]]
    assert [part.tokens for part in held[:-1]] == [lot.available for lot in live[: len(held) - 1]]
    assert 0 < held[-1].tokens <= live[len(held) - 1].available


@given(lots, st.data())
def test_post_conserves_every_bucket_of_the_hold_and_debits_in_its_order(found: list[Lot], data: st.DataObject) -> None:
    held = [(lot.grant, lot.available) for lot in found if lot.available]
    used = data.draw(st.integers(0, sum(tokens for _, tokens in held)))
    debited, released = post(held, used)
    back: dict[str, int] = {}
    for part in (*debited, *released):
        back[part.grant] = back.get(part.grant, 0) + part.tokens
    assert back == dict(held)
    assert sum(part.tokens for part in debited) == used
    assert [grant for grant, _ in held][: len(debited)] == [part.grant for part in debited]
