"""How many guesses are worth a row."""

from __future__ import annotations

import pytest

from sawyer.router import speculating as module
from sawyer.router.speculating import MOST_DRAFTS, Guesses, Pace

ROUND = [1, 2, 3, 4, 5]
LAYERS = 8


def costly(share: float) -> Pace:
    """One more row costs this share of a pass."""
    pace = Pace()
    for _ in range(5):
        pace.took(1, 0.010)
        pace.took(5, 0.010 * (1 + 4 * share))
    return pace


def guesses_of(pace: Pace, room: int = 4000) -> Guesses:
    return Guesses(ROUND * 2, room, pace, LAYERS)


def test_share_of_a_row_is_measured_whatever_a_few_passes_took() -> None:
    pace = costly(0.08)
    pace.took(1, 3.0)
    pace.took(9, 3.0)
    assert pace.row_share() == pytest.approx(0.08)


def test_share_of_a_row_is_bounded_where_more_rows_took_no_longer_or_far_longer() -> None:
    assert costly(-0.5).row_share() == module.LEAST_SHARE
    assert costly(7).row_share() == 1.0
    assert Pace().row_share() == module.ROW_SHARE


def test_text_that_goes_round_is_guessed_as_far_as_may_be() -> None:
    guesses = guesses_of(costly(0.05))
    said = 0
    for _ in range(20):
        for token in guesses.drafts(100):
            assert guesses.said(ROUND[said % 5], token)
            said += 1
        assert not guesses.said(ROUND[said % 5], None)
        said += 1
    assert len(guesses.drafts(100)) == MOST_DRAFTS
    assert guesses.drafts(3) == tuple(ROUND[(said + n) % 5] for n in range(3))
    assert guesses.drafts(0) == ()
    assert guesses.drafted - MOST_DRAFTS - 3 == guesses.accepted


def test_guesses_that_are_always_wrong_become_rare() -> None:
    """Each costs a row, and one in LOOK_AGAIN steps is all that is spent on finding out."""
    guesses, steps = guesses_of(costly(0.1)), 400
    for step in range(steps):
        for token in ROUND[step % 5], 100 + step:  # what stood there before stands there again, and another follows
            drafts = guesses.drafts(100)
            guesses.said(token, drafts[0] if drafts and drafts[0] != token else None)
    assert guesses.accepted == 0
    assert guesses.drafted <= 12 + 2 * steps / module.LOOK_AGAIN


def test_row_that_costs_as_much_as_a_pass_is_not_spent_on_a_guess() -> None:
    assert guesses_of(costly(1.0)).drafts(8) == ()


def test_request_whose_unused_answers_fill_the_message_to_a_node_guesses_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_GAPS", 3 * LAYERS)
    guesses = guesses_of(costly(0.02))
    for _ in range(3):
        first, *_ = guesses.drafts(8)
        assert not guesses.said(ROUND[0], first + 1)
        for token in ROUND[1:]:
            guesses.said(token, None)
    assert guesses.drafts(8) == ()
