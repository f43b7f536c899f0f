"""Which rows may come next of a client that runs the trunk itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sawyer.engine.trunk import PREFILL_CHUNK, prefill_chunks
from sawyer.errors import MalformedMessage
from sawyer.router.steps import Steps, Turn

LAYERS = (1, 2, 5)


@given(st.integers(1, 3 * PREFILL_CHUNK), st.integers(1, 5))
def test_prompt_comes_in_its_chunks_then_a_row_a_token_and_the_last_token_never(prompt: int, tokens: int) -> None:
    steps, turns = Steps(prompt, tokens, LAYERS), []
    while steps.next is not None:
        turns.append(steps.next)
        ended = steps.took()
        assert ended == (turns[-1].layer == LAYERS[-1])
    rows = [len(range(prompt)[chunk]) for chunk in prefill_chunks(prompt)] + [1] * (tokens - 1)
    assert turns == [Turn(step, layer, count) for step, count in enumerate(rows) for layer in LAYERS]
    assert (steps.fed_rows, steps.tokens) == (prompt + tokens - 1, tokens)


def test_rows_of_a_step_that_is_left_half_way_do_not_count() -> None:
    steps = Steps(PREFILL_CHUNK + 3, 4, LAYERS)
    counted = []
    for _ in range(3 * len(LAYERS)):
        steps.took()
        counted.append((steps.fed_rows, steps.tokens, steps.prompt_is_read))
    first, second, third = (PREFILL_CHUNK, 0, False), (PREFILL_CHUNK + 3, 1, True), (PREFILL_CHUNK + 4, 2, True)
    assert counted == [(0, 0, False)] * 2 + [first] * 3 + [second] * 3 + [third]


@pytest.mark.parametrize("turn", [Turn(0, 2, 4), Turn(0, 1, 3), Turn(1, 1, 1), Turn(0, 0, 4)])
def test_any_other_turn_than_the_next_is_refused(turn: Turn) -> None:
    with pytest.raises(MalformedMessage, match="expected"):
        Steps(4, 2, LAYERS).check(turn)


def test_nothing_comes_after_all_that_was_ordered() -> None:
    steps = Steps(1, 1, (0,))
    steps.check(Turn(0, 0, 1))
    steps.took()
    with pytest.raises(MalformedMessage, match="all rows that were ordered"):
        steps.check(Turn(1, 0, 1))
