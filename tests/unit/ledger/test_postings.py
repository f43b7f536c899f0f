"""Double entry: what each kind of entry moves, and that nothing is made or lost."""

from __future__ import annotations

from collections import Counter

from sawyer.ledger.postings import postings
from sawyer.projections.fold import Entry


def moves(judge, *commands) -> list[Counter]:
    """What each command's entry moves, account -> amount."""
    found = []
    for asked in commands:
        earnings = dict(judge.state.payouts.earnings)
        before = {grant: (row.paid_uusd, row.earned_uusd) for grant, row in earnings.items()}
        (entry,) = judge.write(asked)
        found.append(_sum(entry, _earned(judge, before)))
    return found


def _earned(judge, before: dict[str, tuple[int, int]]) -> dict[str, int]:
    after = judge.state.payouts.earnings
    return {
        grant: after[grant].earned_uusd - old for grant, (_, old) in before.items() if after[grant].earned_uusd != old
    }


def _sum(entry: Entry, earned: dict[str, int]) -> Counter:
    found: Counter = Counter()
    for posting in postings(entry, earned):
        found[posting.account, posting.unit] += posting.amount
    return found


def test_paid_grant_issues_tokens_and_defers_its_money(judge, scene) -> None:
    (moved,) = moves(judge, scene.grant("february", 100))
    assert moved == {
        ("tokens:issued", "tokens"): -100, ("user:alice:bucket:february:available", "tokens"): 100,
        ("deferred:february", "uusd"): -1_000, ("stripe:clearing", "uusd"): 1_000,
    }  # fmt: skip


def test_free_grant_moves_no_money(judge, scene) -> None:
    (moved,) = moves(judge, scene.grant("gift", 100, paid_uusd=0))
    assert {unit for _, unit in moved} == {"tokens"}


def test_completed_request_consumes_what_it_used_and_earns_its_money(judge, scene) -> None:
    order = scene.order()
    reserved, completed = moves(judge, scene.reserve(order), scene.complete(order, output_tokens=2))
    assert reserved == {
        ("user:alice:bucket:january:available", "tokens"): -8, ("user:alice:bucket:january:held", "tokens"): 8,
    }  # fmt: skip
    assert completed == {
        ("user:alice:bucket:january:held", "tokens"): -8, ("tokens:consumed", "tokens"): 7,
        ("user:alice:bucket:january:available", "tokens"): 1,
        ("deferred:january", "uusd"): 70, ("revenue:usage", "uusd"): -70,
    }  # fmt: skip


def test_void_gives_back_exactly_what_was_held(judge, scene) -> None:
    order = scene.order()
    reserved, voided = moves(judge, scene.reserve(order), scene.void(order))
    assert {key: -amount for key, amount in reserved.items()} == voided


def test_money_earned_never_passes_what_was_paid(empty_judge, scene) -> None:
    judge = empty_judge
    judge.write(*scene.members(), scene.grant("cheap", 1_000, paid_uusd=75))
    orders = [scene.order(1), scene.order(2)]
    moved = moves(judge, *(step for order in orders for step in (scene.reserve(order), scene.complete(order))))
    assert [found["revenue:usage", "uusd"] for found in moved] == [0, -75, 0, 0]


def test_membership_moves_nothing(empty_judge, scene) -> None:
    assert moves(empty_judge, *scene.members()) == [Counter()] * len(scene.members())
