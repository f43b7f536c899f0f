"""Guesses from what was said before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sawyer.engine.drafting import LEAST_SEEN, MOST_SEEN, Drafter, Guess

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def naive(ids: list[int], most: int) -> Guess | None:
    """By trying every place, the last first."""
    best: Guess | None = None
    for start in range(len(ids) - 1, 0, -1):
        seen = 0
        while seen < min(start, MOST_SEEN) and ids[start - 1 - seen] == ids[-1 - seen]:
            seen += 1
        if seen >= LEAST_SEEN and (best is None or seen > best.seen):
            longer = list(ids)
            for n in range(most):
                longer.append(longer[start + n])
            best = Guess(seen, tuple(longer[len(ids) :]))
    return best if most else None


@given(TEXTS, TEXTS, st.integers(0, 9))
def test_guess_is_what_followed_the_longest_and_last_place_that_looks_alike(
    prompt: list[int], answer: list[int], most: int
) -> None:
    drafter = Drafter(prompt, len(answer))
    for token in answer:
        drafter.push(token)
    assert drafter.guess(most) == naive(prompt + answer, most)


def test_text_that_goes_round_is_guessed_to_go_on_round() -> None:
    assert Drafter([9, 1, 2, 3, 1, 2], 0).guess(8) == Guess(2, (3, 1, 2, 3, 1, 2, 3, 1))


def test_nothing_is_guessed_after_what_was_never_there_or_after_one_token_alone() -> None:
    assert Drafter([1, 2, 3], 0).guess(4) is None
    assert Drafter([7, 1, 2, 7], 0).guess(4) is None
    assert Drafter([5], 0).guess(4) is None
