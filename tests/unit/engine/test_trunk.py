"""The trunk: chunks, caches, limits."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sawyer.engine.experts import FAST
from sawyer.engine.local import LocalModel
from sawyer.engine.trunk import PREFILL_CHUNK, Trunk, prefill_chunks
from sawyer.errors import PromptEmpty, PromptTooLong, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.schemas.models import Format

Demo = Callable[[Format], Artifacts]
Load = Callable[..., LocalModel]


@pytest.fixture(scope="session")
def trunk(demo: Demo) -> Trunk:
    return Trunk(demo("q4"))


@pytest.mark.parametrize("count", [1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 3 * PREFILL_CHUNK])
def test_prefill_chunks_cover_every_row_once(count: int) -> None:
    parts = prefill_chunks(count)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
    assert all(part.stop - part.start <= PREFILL_CHUNK for part in parts)


def test_requests_in_turns_get_what_each_gets_alone(demo: Demo, load: Load) -> None:
    model = load(demo("q4"))
    prompts = [[5, 9, 13, 900], [77, 1200, 3]]
    alone = []
    for prompt in prompts:
        cache = model.trunk.new_cache()
        alone.append([model.prefill(prompt, cache), model.step(8, cache), model.step(9, cache)])
    caches = [model.trunk.new_cache(), model.trunk.new_cache(40)]
    turns = [[model.prefill(prompt, cache)] for prompt, cache in zip(prompts, caches, strict=True)]
    for token in (8, 9):
        for rows, cache in zip(turns, caches, strict=True):
            rows.append(model.step(token, cache))
    assert all(
        np.array_equal(a, b) for one, other in zip(alone, turns, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_threads_with_caches_of_their_own_get_what_one_thread_gets(demo: Demo, load: Load) -> None:
    model = load(demo("q4"), FAST)
    prompts = [[5, 9, 13, 900], [77, 1200, 3], [1815, 305]]
    alone = [model.generate(prompt, 20) for prompt in prompts]
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda prompt: model.generate(prompt, 20), prompts)) == alone


def test_attended_arrays_stay_as_they_are_when_the_next_row_comes(trunk: Trunk) -> None:
    cache = trunk.new_cache()
    first = trunk.attend(0, trunk.embed([5]), cache)
    kept = [array.copy() for array in first]
    trunk.attend(0, trunk.embed([6]), cache)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))


def test_gate_weights_add_up_to_one_over_distinct_experts(trunk: Trunk) -> None:
    attended = trunk.attend(0, trunk.embed(range(1, 100)), trunk.new_cache())
    assert attended.hidden.shape == attended.residual.shape == (99, 192)
    assert attended.experts.dtype == np.int32
    np.testing.assert_allclose(attended.weights.sum(axis=1), 1, atol=1e-6)
    assert all(len(set(row)) == 2 for row in attended.experts.tolist())


def test_cache_length_counts_rows_that_every_layer_has_seen(trunk: Trunk) -> None:
    cache = trunk.new_cache()
    for layer in range(4):
        assert cache.length == 0
        trunk.attend(layer, trunk.embed([1, 2, 3]), cache)
    assert cache.length == 3


def test_full_cache_is_said_and_left_as_it_was(demo: Demo, load: Load) -> None:
    model = load(demo("q4"))
    cache = model.trunk.new_cache(3)
    model.prefill([1, 2], cache)
    with pytest.raises(PromptTooLong, match="the cache holds 3 rows, and 4 are needed"):
        model.prefill([3, 4], cache)
    assert cache.length == 2
    model.step(3, cache)
    with pytest.raises(PromptTooLong, match="4 are needed"):
        model.step(4, cache)


@pytest.mark.parametrize("capacity", [0, -1, 513])
def test_cache_beyond_the_context_is_refused(capacity: int, trunk: Trunk) -> None:
    with pytest.raises(PromptTooLong, match="context of 512"):
        trunk.new_cache(capacity)


@pytest.mark.parametrize("ids", [[], [-1], [2048], [1, 99999]])
def test_ids_outside_the_vocabulary_are_refused(ids: list[int], trunk: Trunk) -> None:
    with pytest.raises(UsageError, match="0 to 2047"):
        trunk.embed(ids)


def test_empty_prompt_is_refused(demo: Demo, load: Load) -> None:
    with pytest.raises(PromptEmpty):
        load(demo("q4")).generate([], 3)


def test_generation_ends_before_the_end_of_sequence_token(
    demo: Demo, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(demo("q4"))
    ids = model.generate([1815, 305], 12)
    ended = model.trunk.layout.model_copy(update={"eos": (ids[5],)})
    monkeypatch.setattr(model.trunk, "layout", ended)
    assert model.generate([1815, 305], 12) == ids[: ids.index(ids[5])]


def test_trunk_on_a_gpu_is_refused(demo: Demo) -> None:
    with pytest.raises(UsageError, match="cuda"):
        Trunk(demo("q4"), device="cuda")


def test_rows_rounded_for_the_wire_stay_close_and_are_not_the_same(demo: Demo, load: Load) -> None:
    ids = [1815, 305, 7, 9]
    exact, rounded = (load(demo("f32"), wire_dtype=dtype) for dtype in (np.float32, np.float16))
    a, b = (model.prefill(ids, model.trunk.new_cache()) for model in (exact, rounded))
    assert not np.array_equal(a, b)
    np.testing.assert_allclose(a, b, atol=0.05, rtol=0)
