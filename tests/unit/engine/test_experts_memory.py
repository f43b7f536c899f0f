"""Hosted experts of which only some are loaded: which ones, within what room, and never another answer."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sawyer.engine import experts as module
from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.engine.footprint import Footprint, expert_footprint
from sawyer.engine.session import CPU, CUDA, Session
from sawyer.errors import ArtifactCorrupt, UnknownExpert
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import Array, all_experts, expert_shape
from sawyer.schemas.models import Coding, ExpertCodings, Format

Demo = Callable[[Format], Artifacts]
HOSTED = [(0, 3), (0, 1), (2, 0), (3, 7)]
PATIENCE_S = 10.0


@pytest.fixture(scope="session")
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((3, 192), dtype=np.float32)


def room_for(artifacts: Artifacts, experts: int) -> int:
    """The limit within which so many are loaded."""
    return expert_footprint(artifacts.layout, artifacts.manifest.format, accuracy_level=FAST).room_for(experts)


def limited(artifacts: Artifacts, experts: int, **settings: object) -> ExpertPool:
    return ExpertPool(artifacts, HOSTED, device="cpu", limit_bytes=room_for(artifacts, experts), **settings)  # type: ignore[arg-type]


def loaded(pool: ExpertPool) -> list[tuple[int, int]]:
    return [pair for pair in HOSTED if pool.is_loaded(*pair)]


def test_pool_without_a_limit_loads_all_it_hosts(demo: Demo) -> None:
    pool = ExpertPool(demo("q4"), HOSTED, device="cpu")
    assert loaded(pool) == HOSTED
    assert (pool.counts.hosted, pool.counts.loaded, pool.counts.loads, pool.counts.drops) == (4, 4, 4, 0)
    assert pool.counts.loading_s > 0


def test_pool_loads_those_named_first_as_many_as_fit(demo: Demo) -> None:
    assert [loaded(limited(demo("q4"), count)) for count in (1, 2, 3, 4, 9)] == [
        HOSTED[:1], HOSTED[:2], HOSTED[:3], HOSTED, HOSTED,
    ]  # fmt: skip


def test_expert_used_least_recently_makes_room_for_another(demo: Demo, rows: NDArray[np.float32]) -> None:
    pool = limited(demo("q4"), 2)
    pool.run(*HOSTED[0], rows)
    pool.run(*HOSTED[2], rows)
    assert loaded(pool) == [HOSTED[0], HOSTED[2]]
    pool.run(*HOSTED[1], rows)
    assert loaded(pool) == [HOSTED[1], HOSTED[2]]
    assert (pool.counts.loads, pool.counts.drops) == (4, 2)


@pytest.mark.parametrize("limit_bytes", [0, 1, -5])
def test_one_expert_runs_whatever_the_limit(limit_bytes: int, demo: Demo, rows: NDArray[np.float32]) -> None:
    pool = ExpertPool(demo("q4"), HOSTED, device="cpu", limit_bytes=limit_bytes)
    for pair in HOSTED * 2:
        pool.run(*pair, rows)
        assert loaded(pool) == [pair]


@pytest.mark.parametrize("format", ["f32", "q8", "q4"])
def test_answers_do_not_depend_on_the_limit_bit_for_bit(format: Format, demo: Demo) -> None:
    artifacts = demo(format)
    every = list(all_experts(artifacts.layout))
    free = ExpertPool(artifacts, every, device="cpu")
    tight = ExpertPool(artifacts, every, device="cpu", limit_bytes=room_for(artifacts, 2))
    chance = random.Random(1)
    for count in (1, 2, 3, 9):
        rows = np.random.default_rng(count).standard_normal((count, 192), dtype=np.float32)
        for pair in chance.choices(every, k=12):
            assert np.array_equal(free.run(*pair, rows), tight.run(*pair, rows))
    assert tight.counts.loaded == 2
    assert tight.counts.drops > 10


def test_threads_get_right_answers_while_experts_are_dropped_under_them(demo: Demo) -> None:
    artifacts = demo("q4")
    free, tight = ExpertPool(artifacts, HOSTED, device="cpu"), limited(artifacts, 2)
    values = np.random.default_rng(2).standard_normal((40, 192), dtype=np.float32)
    chance, ending = random.Random(3), threading.Event()
    jobs = [(chance.choice(HOSTED), values[n : n + chance.randint(1, 4)]) for n in range(36) for _ in range(6)]
    expected = [free.run(*pair, rows) for pair, rows in jobs]

    def relieve() -> None:
        while not ending.wait(0.001):
            tight.relieve(1 << 40)

    with ThreadPoolExecutor(5) as threads:
        relieving = threads.submit(relieve)
        answers = list(threads.map(lambda job: tight.run(*job[0], job[1]), jobs))
        ending.set()
        relieving.result(PATIENCE_S)
    assert all(np.array_equal(got, want) for got, want in zip(answers, expected, strict=True))
    assert 1 <= tight.counts.loaded <= 2
    assert tight.counts.loads - tight.counts.drops == tight.counts.loaded


def test_expert_in_use_is_not_dropped_and_those_beyond_the_limit_are_dropped_after_it(
    demo: Demo, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, at_work, gate = limited(demo("q4"), 1), threading.Event(), threading.Event()
    run = Session.run

    def held_back(session: Session, inputs: Mapping[str, Array]) -> list[NDArray[np.float32]]:
        if len(inputs["x"]) == 2:
            at_work.set()
            assert gate.wait(PATIENCE_S)
        return run(session, inputs)

    monkeypatch.setattr(Session, "run", held_back)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(pool.run, *HOSTED[0], rows[:2])
        assert at_work.wait(PATIENCE_S)
        assert pool.relieve(1 << 40) == 0
        pool.run(*HOSTED[1], rows)
        assert loaded(pool)[0] == HOSTED[0]
        gate.set()
        assert np.array_equal(answer.result(PATIENCE_S), limited(demo("q4"), 1).run(*HOSTED[0], rows[:2]))
    assert pool.counts.loaded == 1


def test_threads_that_want_one_expert_load_it_once(demo: Demo, rows: NDArray[np.float32]) -> None:
    pool = limited(demo("q4"), 2)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: pool.run(*HOSTED[3], rows), range(8)))
    assert pool.counts.loads == 3


def test_machine_that_is_short_of_memory_drops_before_it_loads_and_keeps_one(
    demo: Demo, rows: NDArray[np.float32]
) -> None:
    short = [0]
    pool = ExpertPool(demo("q4"), HOSTED, device="cpu", lacking=lambda _: short[0])
    kept_bytes = room_for(demo("q4"), 2) - room_for(demo("q4"), 1)
    assert pool.relieve(2 * kept_bytes) == 2
    assert loaded(pool) == HOSTED[2:]
    short[0] = kept_bytes + 1
    pool.run(*HOSTED[0], rows)
    assert loaded(pool) == HOSTED[:1]
    assert pool.relieve(1 << 50) == 0


def test_machine_that_is_short_of_memory_at_the_start_gets_one_expert(demo: Demo) -> None:
    asked: list[int] = []

    def lacking(needed_bytes: int) -> int:
        asked.append(needed_bytes)
        return 1

    assert loaded(ExpertPool(demo("q4"), HOSTED, device="cpu", lacking=lacking)) == HOSTED[:1]
    assert set(asked) == {room_for(demo("q4"), 1)}


def test_session_that_finds_no_memory_is_made_after_others_were_dropped(
    demo: Demo, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU that is full: ONNX Runtime has no type for it, so every failure counts as one."""
    room = [2]

    class Full(Session):
        def __init__(self, *arguments: object, **settings: object) -> None:
            if len(pools[0]._loaded if pools else ()) >= room[0]:
                raise RuntimeError("Failed to allocate memory for requested buffer")
            super().__init__(*arguments, **settings)  # type: ignore[arg-type]

    pools = [ExpertPool(demo("q4"), HOSTED, device="cpu", limit_bytes=room_for(demo("q4"), 3))]
    pools[0].relieve(1)
    free = ExpertPool(demo("q4"), HOSTED, device="cpu")
    monkeypatch.setattr(module, "Session", Full)
    for pair in HOSTED * 2:
        assert np.array_equal(pools[0].run(*pair, rows), free.run(*pair, rows))
    assert pools[0].counts.loaded == 2
    room[0] = 0
    with pytest.raises(RuntimeError, match="allocate"):
        pools[0].run(*next(pair for pair in HOSTED if not pools[0].is_loaded(*pair)), rows)


def test_failure_that_passes_takes_no_room_away(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = [False]

    class Once(Session):
        def __init__(self, *arguments: object, **settings: object) -> None:
            if fails[0]:
                fails[0] = False
                raise RuntimeError("a passing error")
            super().__init__(*arguments, **settings)  # type: ignore[arg-type]

    pool = limited(demo("q4"), 3)
    monkeypatch.setattr(module, "Session", Once)
    for _ in range(3):
        fails[0] = True
        pool.run(*next(pair for pair in HOSTED if not pool.is_loaded(*pair)), np.ones((1, 192), np.float32))
        assert pool.counts.loaded == 3


def test_relief_leaves_one_expert_though_another_thread_drops_meanwhile(
    demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = limited(demo("q4"), 2)
    drop = pool._drop

    def after_another(count: int, **settings: int) -> int:
        drop(1)
        return drop(count, **settings)

    monkeypatch.setattr(pool, "_drop", after_another)
    pool.relieve(1 << 40)
    assert pool.counts.loaded == 1


def test_experts_on_a_gpu_do_not_make_room_in_main_memory(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ExpertPool(demo("q4"), HOSTED, device="cpu", lacking=lambda _: 1 << 40)
    assert (pool.provider, pool.uses_main_memory, pool.counts.loaded) == (CPU, True, 1)
    monkeypatch.setattr(module, "running_provider", lambda _: CUDA)
    pool = ExpertPool(demo("q4"), HOSTED, device="auto", lacking=lambda _: 1 << 40)
    assert (pool.uses_main_memory, pool.counts.loaded) == (False, 4)


def test_file_that_turns_wrong_fails_its_expert_alone(demo: Demo, rows: NDArray[np.float32]) -> None:
    artifacts, wrong = demo("q4"), set[tuple[int, int]]()

    def read(layer: int, expert: int) -> Mapping[str, Array]:
        if (layer, expert) in wrong:
            raise ArtifactCorrupt("experts/L0/E1.q4.bin: expected SHA-256 a, got b")
        return artifacts.read_expert(layer, expert)

    pool = limited(artifacts, 1, read=read)
    wrong.add((0, 1))
    for _ in range(2):
        with pytest.raises(ArtifactCorrupt, match=r"E1\.q4\.bin"):
            pool.run(0, 1, rows)
        pool.run(2, 0, rows)
    drops = pool.counts.drops
    for _ in range(3):
        with pytest.raises(ArtifactCorrupt):
            pool.run(0, 1, rows)
    assert (pool.counts.drops, pool.counts.loaded) == (drops, 1), "nobody makes room for an expert that cannot come"
    wrong.clear()
    assert np.array_equal(pool.run(0, 1, rows), ExpertPool(artifacts, [(0, 1)], device="cpu").run(0, 1, rows))


def test_expert_that_the_model_does_not_have_is_refused_though_it_would_not_be_loaded(demo: Demo) -> None:
    with pytest.raises(UnknownExpert, match="has no expert 8 in layer 0"):
        ExpertPool(demo("q4"), [(0, 0), (0, 8)], device="cpu", limit_bytes=0)


@given(st.integers(1, 10**9), st.integers(0, 10**9), st.integers(1, 1000), st.integers(-(10**6), 10**12))
def test_room_and_number_of_experts_agree(kept: int, loading: int, experts: int, limit_bytes: int) -> None:
    one = Footprint(kept, loading)
    assert one.fit(one.room_for(experts)) == experts
    assert one.fit(one.room_for(experts) - 1) == max(1, experts - 1)
    fit = one.fit(limit_bytes)
    assert fit == 1 or one.room_for(fit) <= limit_bytes < one.room_for(fit + 1)


@pytest.mark.parametrize(
    ("codings", "times"), [(("Q4_K", "Q6_K"), 1.62), (("Q8_0", "Q8_0"), 1.44), (("Q4_K", "Q3_K"), 1.99)]
)
def test_footprint_of_gguf_is_no_less_than_what_was_measured_of_its_hungriest_coding(
    codings: tuple[Coding, Coding], times: float, demo: Demo
) -> None:
    each = ExpertCodings(gate=codings[0], up=codings[0], down=codings[1])
    sizes = {"hidden": 1024, "ffn": 1536, "codings": (each,) * len(demo("q4").layout.moe_layers)}
    layout = demo("q4").layout.model_copy(update=sizes)
    file_bytes = expert_shape(layout, "gguf").size_bytes
    found = expert_footprint(layout, "gguf", accuracy_level=FAST)
    assert times * file_bytes <= found.kept_bytes <= 1.1 * times * file_bytes + 2**20
    assert found.kept_bytes + found.loading_bytes >= 3.48 * file_bytes


@pytest.mark.parametrize(("format", "level", "times"), [("f32", FAST, 1.0), ("q8", FAST, 1.25), ("q4", FAST, 1.49)])
def test_footprint_is_no_less_than_what_was_measured(format: Format, level: int, times: float, demo: Demo) -> None:
    layout = demo(format).layout
    file_bytes = expert_shape(layout, format).size_bytes
    found = expert_footprint(layout, format, accuracy_level=level)
    assert times * file_bytes <= found.kept_bytes <= 1.1 * times * file_bytes + 2**20
    assert found.kept_bytes + found.loading_bytes >= 3 * file_bytes
    assert expert_footprint(layout, format, accuracy_level=EXACT).kept_bytes >= file_bytes
