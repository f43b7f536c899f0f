"""Sequences that decode together: each gets, bit for bit, what it would get alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.bench.synthetic import Shape, write_checkpoint
from sawyer.engine.cache import KvCache
from sawyer.engine.experts import EXACT, FAST
from sawyer.engine.layer import Attended
from sawyer.engine.trunk import Trunk
from sawyer.errors import PromptTooLong, UsageError
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.families import family_named
from sawyer.model.split import split
from sawyer.schemas.models import Format

from .conftest import CASES, GOLDEN

KERNELS: list[tuple[Format, int]] = [
    ("f32", FAST),
    ("q8", FAST),
    ("q4", FAST),
    ("f16", FAST),
    ("q8", EXACT),
    ("q4", EXACT),
]
ROOM = 32
LENGTHS = [7, 1, 12, 3, 20, 2, 9, 5, 16, 4, 11, 1, 6, 13, 8, 10, 15]
"""Rows that stand before each of the sequences' new ones."""


@pytest.fixture(scope="module", params=KERNELS, ids=lambda kernel: f"{kernel[0]}-{kernel[1]}")
def kernel(request: pytest.FixtureRequest) -> tuple[Format, int]:
    one: tuple[Format, int] = request.param
    return one


@pytest.fixture(scope="module", params=CASES)
def trunk(
    request: pytest.FixtureRequest, kernel: tuple[Format, int], tmp_path_factory: pytest.TempPathFactory
) -> Trunk:
    """Every family, kind of layer and gate that there is, in every format."""
    format, accuracy_level = kernel
    out = tmp_path_factory.mktemp(request.param)
    split(GOLDEN / request.param, out, model=ModelId(request.param), format="f32", trunk_format=format)
    return Trunk(Artifacts.open(out), accuracy_level=accuracy_level)


def sequences(trunk: Trunk, lengths: Sequence[int]) -> list[KvCache]:
    """Caches that have these many rows in every layer: entered whole, in two chunks, or row by row."""
    caches = []
    for number, length in enumerate(lengths):
        cache, x = trunk.new_cache(ROOM), rows(trunk, length, seed=number)
        for layer in range(trunk.layout.layers):
            ways: list[Sequence[NDArray[np.float32]]] = [
                [x],
                np.array_split(x, min(2, length)),
                np.array_split(x, length),
            ]
            for part in ways[number % 3]:
                trunk.attend(layer, part, cache)
        caches.append(cache)
    return caches


def rows(trunk: Trunk, count: int, seed: int = 99) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, trunk.layout.hidden), dtype=np.float32)


def alone(trunk: Trunk, layer: int, x: NDArray[np.float32], caches: Sequence[KvCache]) -> Attended:
    parts = [trunk.attend(layer, x[b : b + 1], cache) for b, cache in enumerate(caches)]
    return Attended(*map(np.concatenate, zip(*parts, strict=True)))


def assert_same(one: Attended, other: Attended) -> None:
    for name, a, b in zip(Attended._fields, one, other, strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b), name


def test_rows_of_many_sequences_are_what_each_gets_alone(trunk: Trunk) -> None:
    for count in (1, 2, 5, 17):
        order = np.random.default_rng(count).permutation(17)[:count]
        lengths = [LENGTHS[n] for n in order]
        each, together = sequences(trunk, lengths), sequences(trunk, lengths)
        for step in range(2):
            x = rows(trunk, count, seed=step)
            for layer in range(trunk.layout.layers):
                expected = alone(trunk, layer, x, each)
                assert_same(trunk.attend_many(layer, x, together), expected)
                x = expected.residual
        assert [cache.length for cache in together] == [length + 2 for length in lengths]


@pytest.mark.parametrize("format", ["f32", "q8", "q4"])
def test_rows_are_what_each_gets_alone_where_matrices_have_the_sizes_of_real_ones(
    format: Format, tmp_path: Path
) -> None:
    """Kernels cut large matrices into blocks, and among threads."""
    checkpoint = write_checkpoint(
        tmp_path / "made", Shape(hidden=1024, ffn=64, layers=1, experts=16, top_k=4, vocab=64)
    )
    split(checkpoint, tmp_path / "out", model=ModelId("made"), format="q4", trunk_format=format)
    trunk = Trunk(Artifacts.open(tmp_path / "out"))
    for count in (1, 3, 8, 17):
        each, together = sequences(trunk, LENGTHS[:count]), sequences(trunk, LENGTHS[:count])
        x = rows(trunk, count)
        assert_same(trunk.attend_many(0, x, together), alone(trunk, 0, x, each))


def test_order_of_sequences_does_not_matter(trunk: Trunk) -> None:
    order = np.random.default_rng(3).permutation(6)
    x, layer = rows(trunk, 6), trunk.layout.layers - 1
    straight = trunk.attend_many(layer, x, sequences(trunk, LENGTHS[:6]))
    caches = sequences(trunk, LENGTHS[:6])
    turned = trunk.attend_many(layer, x[order], [caches[n] for n in order])
    assert_same(turned, Attended(*map(itemgetter(order), straight)))


def test_rows_of_one_sequence_are_what_single_steps_give(trunk: Trunk) -> None:
    for count in (1, 2, 6):
        (stepped,), (verified,), x = sequences(trunk, [9]), sequences(trunk, [9]), rows(trunk, count)
        for layer in range(trunk.layout.layers):
            expected = alone(trunk, layer, x, [stepped] * count)
            assert_same(trunk.attend_many(layer, x, [verified] * count), expected)
            x = expected.residual
        assert verified.length == 9 + count


def test_sequences_with_several_rows_beside_others_are_what_single_steps_give(trunk: Trunk) -> None:
    """As where what one of them may say next is guessed."""
    whose = [0, 0, 0, 1, 2, 2]
    stepped, together, x = sequences(trunk, [9, 4, 7]), sequences(trunk, [9, 4, 7]), rows(trunk, 6)
    for layer in range(trunk.layout.layers):
        expected = alone(trunk, layer, x, [stepped[n] for n in whose])
        assert_same(trunk.attend_many(layer, x, [together[n] for n in whose]), expected)
        x = expected.residual
    assert [cache.length for cache in together] == [12, 5, 9]


def test_cache_gone_back_is_as_if_it_had_never_been_longer(trunk: Trunk) -> None:
    (kept,), (gone_back,) = sequences(trunk, [6]), sequences(trunk, [6])
    for layer in range(trunk.layout.layers):
        trunk.attend_many(layer, rows(trunk, 5, seed=layer), [gone_back] * 5)
    gone_back.truncate(6)
    x = rows(trunk, 3)
    for layer in range(trunk.layout.layers):
        expected = trunk.attend_many(layer, x, [kept] * 3)
        assert_same(trunk.attend_many(layer, x, [gone_back] * 3), expected)
        x = expected.residual


def test_shared_experts_and_head_give_each_row_what_it_gets_alone(trunk: Trunk) -> None:
    parts = [partial(trunk.shared, layer) for layer in range(trunk.layout.layers) if trunk.has_shared(layer)]
    x = rows(trunk, 17)
    for part in (*parts, trunk.logits):
        single = np.concatenate([part(x[n : n + 1]) for n in range(17)])
        for count in (2, 3, 4, 8, 17):
            assert np.array_equal(part(x[:count]), single[:count])


@pytest.mark.parametrize("kernel", KERNELS[:1], indirect=True)
def test_one_full_cache_stops_all_and_changes_none(trunk: Trunk) -> None:
    caches = sequences(trunk, [4, ROOM, 2])
    with pytest.raises(PromptTooLong, match=f"holds {ROOM} rows, and {ROOM + 1} are needed"):
        trunk.attend_many(0, rows(trunk, 3), caches)
    with pytest.raises(PromptTooLong, match=f"holds {ROOM} rows, and {ROOM + 2} are needed"):
        trunk.attend_many(0, rows(trunk, ROOM - 1), [caches[2], *[caches[0]] * (ROOM - 2)])
    assert [cache.layers[0].length for cache in caches] == [4, ROOM, 2]


@pytest.mark.parametrize("kernel", KERNELS[:1], indirect=True)
def test_cache_takes_the_room_that_it_says(trunk: Trunk) -> None:
    cache = trunk.new_cache(ROOM)
    arrays = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in arrays) == KvCache.bytes_for(trunk.layout, ROOM)


@pytest.mark.parametrize("kernel", KERNELS[:1], indirect=True)
def test_cache_goes_back_only_to_where_every_layer_was(trunk: Trunk) -> None:
    (cache,) = sequences(trunk, [5])
    trunk.attend(0, rows(trunk, 1), cache)  # a step that ended half way, if there are more layers
    seen = cache.length
    for length in (-1, seen + 1):
        with pytest.raises(UsageError, match=f"cache of {seen} rows cannot go back to {length}"):
            cache.truncate(length)
    cache.truncate(5)
    assert [layer.length for layer in cache.layers] == [5] * trunk.layout.layers


@pytest.mark.parametrize("kernel", KERNELS[:1], indirect=True)
def test_each_section_of_a_layer_is_in_one_graph(trunk: Trunk) -> None:
    """Twice in memory is what no large model has room for."""
    family = family_named(trunk.layout.family)
    for layer in range(trunk.layout.layers):
        graphs = family.trunk_graphs(trunk.layout, layer)
        taken = [section for part in (graphs.project, graphs.finish) for section in part.file.plain]
        assert taken == list(family.trunk_layer(trunk.layout, layer).plain)


@pytest.mark.parametrize("count", [1, 2, 17])
def test_gate_alone_says_of_the_same_rows_what_it_says_within_its_layer(trunk: Trunk, count: int) -> None:
    for layer in trunk.layout.moe_layers:
        attended = trunk.attend(layer, rows(trunk, count, seed=layer), trunk.new_cache(ROOM))
        gated = trunk.gate(layer, attended.hidden.copy())
        assert gated.weights.tobytes() == attended.weights.tobytes()
        assert gated.experts.tobytes() == attended.experts.tobytes()
