"""Experts: what they compute, and that a row's answer never depends on its company."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.engine import experts as module
from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.engine.session import CPU, CUDA
from sawyer.errors import ArtifactCorrupt, MalformedMessage, MissingExtra, UnknownExpert, UsageError
from sawyer.model.artifacts import Artifacts
from sawyer.model.layout import expert_file
from sawyer.model.quantize import dequantize
from sawyer.schemas.models import Format

Demo = Callable[[Format], Artifacts]
PAIR = (1, 3)
KERNELS: list[tuple[Format, int]] = [("f32", EXACT), ("q4", FAST), ("q4", EXACT), ("q8", FAST), ("q8", EXACT)]


@pytest.fixture(scope="session")
def rows() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((33, 192), dtype=np.float32)


def swiglu(x: NDArray[np.float32], gate_up: NDArray[np.float32], down: NDArray[np.float32]) -> NDArray[np.float64]:
    """An expert in float64: down(silu(gate x) * up x)."""
    gate, up = np.split(x.astype(np.float64) @ gate_up.T.astype(np.float64), 2, axis=1)
    answer: NDArray[np.float64] = (gate / (1 + np.exp(-gate)) * up) @ down.T.astype(np.float64)
    return answer


def test_f32_expert_equals_its_formula(demo: Demo, rows: NDArray[np.float32]) -> None:
    artifacts = demo("f32")
    weights = artifacts.read_expert(*PAIR)
    answer = ExpertPool(artifacts, [PAIR], device="cpu").run(*PAIR, rows)
    np.testing.assert_allclose(answer, swiglu(rows, weights["gate_up"], weights["down"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["q4", "q8"])
def test_quantised_expert_equals_its_dequantised_weights(format: Format, demo: Demo, rows: NDArray[np.float32]) -> None:
    artifacts = demo(format)
    stored = artifacts.read_expert(*PAIR)
    gate_up, down = (dequantize(stored[f"{name}.{format}"], stored[f"{name}.scales"]) for name in ("gate_up", "down"))
    answer = ExpertPool(artifacts, [PAIR], accuracy_level=EXACT, device="cpu").run(*PAIR, rows)
    np.testing.assert_allclose(answer, swiglu(rows, gate_up, down), atol=1e-5, rtol=0)


def test_q8_expert_is_nearer_to_the_unrounded_one_than_q4(demo: Demo, rows: NDArray[np.float32]) -> None:
    exact, q8, q4 = (
        ExpertPool(demo(format), [PAIR], accuracy_level=EXACT, device="cpu").run(*PAIR, rows)
        for format in ("f32", "q8", "q4")
    )
    assert np.abs(q8 - exact).max() * 5 < np.abs(q4 - exact).max()


def test_f16_expert_is_refused_on_a_cpu_with_a_way_out(demo: Demo) -> None:
    with pytest.raises(MissingExtra, match="experts in f16 run on CUDA alone") as refused:
        ExpertPool(demo("f16"), [PAIR], device="cpu")
    assert "q4 or q8" in refused.value.hint


def test_f16_expert_is_refused_where_sessions_fall_back_to_the_cpu(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "running_provider", lambda _: CPU)
    with pytest.raises(MissingExtra, match="sessions run here on CPUExecutionProvider"):
        ExpertPool(demo("f16"), [PAIR], device="auto")


def test_f16_graph_equals_the_float32_one_to_the_rounding_of_its_products(
    demo: Demo, rows: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What CUDA computes, here on the CPU, which widens and is slow."""
    monkeypatch.setattr(module, "running_provider", lambda _: CUDA)
    answer = ExpertPool(demo("f16"), [PAIR], device="auto").run(*PAIR, rows)
    exact = ExpertPool(demo("f32"), [PAIR], device="cpu").run(*PAIR, rows)
    assert np.abs(answer - exact).max() < 2e-3 * np.abs(exact).max()


@pytest.mark.parametrize(("format", "accuracy_level"), KERNELS)
def test_lone_row_is_bit_equal_to_the_same_row_in_any_batch(
    format: Format, accuracy_level: int, demo: Demo, rows: NDArray[np.float32]
) -> None:
    pool = ExpertPool(demo(format), [PAIR], accuracy_level=accuracy_level, device="cpu")
    alone = np.concatenate([pool.run(*PAIR, rows[n : n + 1]) for n in range(len(rows))])
    for size in (2, 3, 4, 5, 7, 8, 12, 16, 17, 32, 33):
        assert np.array_equal(pool.run(*PAIR, rows[:size]), alone[:size]), f"batch of {size}"
    order = np.random.default_rng(1).permutation(len(rows))
    assert np.array_equal(pool.run(*PAIR, rows[order]), alone[order])


def test_threads_at_once_get_the_answers_of_one_thread(demo: Demo, rows: NDArray[np.float32]) -> None:
    hosted = [(0, 0), (0, 1), (3, 7)]
    pool = ExpertPool(demo("q4"), hosted, device="cpu")
    jobs = [(pair, rows[n : n + 3]) for pair in hosted for n in range(20)]
    expected = [pool.run(*pair, part) for pair, part in jobs]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda job: pool.run(*job[0], job[1]), jobs))
    assert all(np.array_equal(got, want) for got, want in zip(answers, expected, strict=True))


def test_pool_says_what_it_hosts_and_where_it_runs(demo: Demo) -> None:
    pool = ExpertPool(demo("q4"), [(2, 1), (0, 5), (2, 1)], device="cpu")
    assert pool.hosted == ((0, 5), (2, 1))
    assert pool.provider == CPU


def test_expert_not_hosted_is_refused(demo: Demo, rows: NDArray[np.float32]) -> None:
    pool = ExpertPool(demo("q4"), [(0, 0)], device="cpu")
    with pytest.raises(UnknownExpert, match="expert 1 of layer 0 is not hosted"):
        pool.run(0, 1, rows)


@pytest.mark.parametrize("pair", [(4, 0), (0, 8), (-1, 0), (0, -1)])
def test_expert_that_the_model_does_not_have_is_refused(pair: tuple[int, int], demo: Demo) -> None:
    with pytest.raises(UnknownExpert, match="has no expert"):
        ExpertPool(demo("q4"), [pair], device="cpu")


@pytest.mark.parametrize("shape", [(2, 191), (192,), (1, 2, 192)])
def test_rows_of_another_width_are_refused(shape: tuple[int, ...], demo: Demo) -> None:
    pool = ExpertPool(demo("q4"), [(0, 0)], device="cpu")
    with pytest.raises(MalformedMessage, match="expected rows of 192 values"):
        pool.run(0, 0, np.zeros(shape, np.float32))


def test_pool_of_nothing_is_refused(demo: Demo) -> None:
    with pytest.raises(UsageError, match="no experts"):
        ExpertPool(demo("q4"), [], device="cpu")


def test_corrupt_expert_is_refused_before_it_is_loaded(demo: Demo, tmp_path: Path) -> None:
    artifacts = demo("q4")
    path = expert_file(0, 2, "q4")
    copy = _copy_with_a_flipped_bit(artifacts, path, tmp_path)
    with pytest.raises(ArtifactCorrupt, match=r"experts/L0/E2\.q4\.bin: expected SHA-256"):
        ExpertPool(copy, [(0, 1), (0, 2)], device="cpu")


def _copy_with_a_flipped_bit(artifacts: Artifacts, path: str, folder: Path) -> Artifacts:
    copy = folder / "copy"
    shutil.copytree(artifacts.folder, copy)
    raw = bytearray((copy / path).read_bytes())
    raw[5000] ^= 1
    (copy / path).write_bytes(raw)
    return Artifacts.open(copy)


@pytest.mark.parametrize("limit", [None, 10**12])
def test_expert_that_is_taken_on_is_warm_and_one_that_is_given_up_is_not_run(
    demo: Demo, rows: NDArray[np.float32], limit: int | None
) -> None:
    artifacts = demo("q4")
    pool, alone = ExpertPool(artifacts, [PAIR], limit_bytes=limit), ExpertPool(artifacts, [(0, 2)])
    pool.adopt(0, 2)
    assert pool.hosted == ((0, 2), PAIR)
    assert pool.is_loaded(0, 2)
    assert pool.is_loaded(*PAIR)
    assert pool.run(0, 2, rows).tobytes() == alone.run(0, 2, rows).tobytes()
    pool.give_up(*PAIR)
    assert (pool.hosted, pool.counts.loaded, pool.hosts(PAIR)) == (((0, 2),), 1, False)
    with pytest.raises(UnknownExpert):
        pool.run(*PAIR, rows)
    pool.give_up(0, 2)
    assert pool.hosted == ((0, 2),), "one is left"


def test_expert_that_cannot_be_taken_on_is_not_hosted(demo: Demo) -> None:
    artifacts = demo("q4")

    def read(layer: int, expert: int) -> dict[str, NDArray[np.generic]]:
        if (layer, expert) != PAIR:
            raise ArtifactCorrupt("its file is wrong")
        return artifacts.read_expert(layer, expert)

    pool = ExpertPool(artifacts, [PAIR], read=read)
    for error, pair in ((ArtifactCorrupt, (0, 2)), (UnknownExpert, (99, 0))):
        with pytest.raises(error):
            pool.adopt(*pair)
    assert pool.hosted == (PAIR,)
