"""Personal data: sealed for one subject, unreadable without its key, and never again once the subject is erased."""

from __future__ import annotations

import pytest

from sawyer.errors import NotAuthorised, NotCanonical, RefusedError, UnknownAccount
from sawyer.ledger.decide import decide
from sawyer.schemas.events import Sealed, TokensGranted

NOTE = Sealed(subject="alice", nonce="0a" * 24, box="c2VhbGVk")


def refuse(judge, asked, error: type[RefusedError], match: str) -> None:
    with pytest.raises(error, match=match):
        decide(judge.state, asked, judge.scene.now_ms)


def test_grant_keeps_what_is_sealed_about_its_account(judge, scene) -> None:
    (entry,) = judge.write(scene.grant("gift", 5, sealed=(NOTE,)))
    assert entry.body.sealed == (NOTE,)


def test_note_about_another_account_is_refused(judge, scene) -> None:
    """It could not be erased with the account that it stands at."""
    judge.write(scene.account("dave", "mallory"))
    about_dave = NOTE.changed(subject="dave")
    refuse(judge, scene.grant("gift", 5, sealed=(NOTE, about_dave)), RefusedError, "about its own account")
    refuse(judge, scene.grant("gift", 5, sealed=(NOTE,), account="dave"), RefusedError, "about its own account")


def test_nothing_is_sealed_for_an_account_after_its_erasure(judge, scene) -> None:
    judge.write(scene.grant("before", 5, sealed=(NOTE,)), scene.erase())
    refuse(judge, scene.grant("after", 5, sealed=(NOTE,)), RefusedError, "is erased")
    judge.write(scene.grant("bare", 5))


def test_erased_account_keeps_its_tokens_and_may_spend_them(judge, scene) -> None:
    """Erased is what is known about a person, not what they paid for."""
    order = scene.order()
    judge.write(scene.erase(), scene.reserve(order), scene.complete(order))
    assert judge.state.balances.available("alice", scene.now_ms) == 499_992


def test_grant_that_was_sealed_before_the_erasure_is_still_a_repeat(judge, scene) -> None:
    asked = scene.grant("before", 5, sealed=(NOTE,))
    judge.write(asked, scene.erase())
    assert decide(judge.state, asked, scene.now_ms).repeated


def test_erasure_by_anybody_but_the_operator_is_refused(judge, scene) -> None:
    for key in ("alice", "mallory", "router", "ledger"):
        refuse(judge, scene.erase(by=key), NotAuthorised, "expected the network's operator")


def test_erasure_of_nobody_is_refused_and_twice_is_a_repeat(judge, scene) -> None:
    refuse(judge, scene.erase("ghost"), UnknownAccount, "no account ghost")
    judge.write(scene.erase())
    assert decide(judge.state, scene.erase(), scene.now_ms).repeated


def test_erasure_of_one_leaves_the_others(judge, scene) -> None:
    judge.write(scene.account("dave", "mallory"), scene.erase("dave"))
    judge.write(scene.grant("gift", 5, sealed=(NOTE,)))


@pytest.mark.parametrize(
    "change", [{"nonce": "0a" * 23}, {"nonce": "0A" * 24}, {"box": "c2VhbGVk\n"}, {"box": "A" * 8193}]
)
def test_note_that_is_no_sealed_box_is_refused(scene, change: dict[str, str]) -> None:
    raw = scene.grant("gift", 5, sealed=(NOTE,)).statement
    (field, value), old = next(iter(change.items())), NOTE.plain()
    broken = raw.replace(f'"{field}":"{old[field]}"'.encode(), f'"{field}":"{value}"'.replace("\n", "\\n").encode())
    assert broken != raw
    with pytest.raises(NotCanonical, match=field):
        TokensGranted.parse(broken)


def test_more_notes_than_one_grant_may_hold_are_refused(scene) -> None:
    raw = scene.grant("gift", 5, sealed=(NOTE,) * 4).statement
    one = NOTE.canonical()
    with pytest.raises(NotCanonical, match="length <= 4"):
        TokensGranted.parse(raw.replace(one, one + b"," + one, 1))
