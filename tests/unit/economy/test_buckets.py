"""Buckets: order, expiry and roll-over as docs/token-economics.md works them out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.economy.buckets import Bucket, available_at, post, take
from sawyer.schemas.events import BucketTokens

JANUARY, FEBRUARY, MARCH, APRIL = 0, 31, 59, 90
buckets = st.lists(
    st.builds(
        Bucket, st.uuids().map(lambda u: f"g{u.hex}"), st.integers(1, 99), st.integers(1, 100), st.integers(0, 5),
        st.integers(6, 12),
    ),
    max_size=6,
)  # fmt: skip


def pairs(parts: tuple[BucketTokens, ...] | None) -> list[tuple[str, int]] | None:
    return None if parts is None else [(part.grant, part.tokens) for part in parts]


def test_soonest_to_expire_pays_first_as_in_the_worked_example() -> None:
    january = Bucket("january", 1, 400_000, JANUARY, MARCH)
    february = Bucket("february", 2, 500_000, FEBRUARY, APRIL)
    held = take([february, january], 450_000, FEBRUARY)
    assert pairs(held) == [("january", 400_000), ("february", 50_000)]
    debited, released = post(held or (), 450_000)
    assert (pairs(debited), pairs(released)) == ([("january", 400_000), ("february", 50_000)], [])


def test_post_releases_the_unused_rest_of_the_worked_example() -> None:
    debited, released = post((BucketTokens(grant="january", tokens=120_000),), 100_000)
    assert (pairs(debited), pairs(released)) == ([("january", 100_000)], [("january", 20_000)])


def test_unused_january_is_gone_at_the_start_of_march() -> None:
    live = [
        Bucket("january", 1, 500_000, JANUARY, MARCH),
        Bucket("february", 2, 500_000, FEBRUARY, APRIL),
        Bucket("march", 3, 500_000, MARCH, APRIL + 30),
    ]
    assert available_at(live, MARCH - 1) == 1_000_000
    assert available_at(live, MARCH) == 1_000_000
    assert pairs(take(live, 500_001, MARCH)) == [("february", 500_000), ("march", 1)]


def test_same_expiry_is_taken_in_order_of_the_grants() -> None:
    same = [Bucket("second", 9, 5, 0, 10), Bucket("first", 4, 5, 0, 10)]
    assert pairs(take(same, 6, 0)) == [("first", 5), ("second", 1)]


@pytest.mark.parametrize(("now", "live"), [(4, False), (5, True), (9, True), (10, False)])
def test_bucket_is_live_from_its_start_until_before_its_end(now: int, live: bool) -> None:
    assert Bucket("g", 1, 1, 5, 10).live(now) is live


def test_too_little_takes_nothing() -> None:
    assert take([Bucket("g", 1, 5, 0, 10)], 6, 0) is None


def test_posting_more_than_held_is_refused() -> None:
    with pytest.raises(ValueError, match="1 tokens more"):
        post((BucketTokens(grant="g", tokens=5),), 6)


@given(buckets, st.integers(1, 700), st.integers(0, 12))
def test_take_is_exact_and_only_from_live_buckets(found: list[Bucket], tokens: int, now: int) -> None:
    held = take(found, tokens, now)
    assert (held is None) == (available_at(found, now) < tokens)
    by_name = {bucket.grant: bucket for bucket in found}
    for part in held or ():
        assert part.tokens <= by_name[part.grant].available
        assert by_name[part.grant].live(now)
    assert held is None or sum(part.tokens for part in held) == tokens


@given(buckets, st.data())
def test_post_conserves_every_bucket_of_the_hold(found: list[Bucket], data: st.DataObject) -> None:
    held = tuple(BucketTokens(grant=bucket.grant, tokens=bucket.available) for bucket in found)
    total = sum(part.tokens for part in held)
    used = data.draw(st.integers(0, total))
    debited, released = post(held, used)
    back: dict[str, int] = {}
    for part in (*debited, *released):
        back[part.grant] = back.get(part.grant, 0) + part.tokens
    assert back == {part.grant: part.tokens for part in held}
    assert sum(part.tokens for part in debited) == used
