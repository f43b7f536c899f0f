"""Experts on CUDA, against the same experts on the CPU. conftest.py says where these run: `make gpu`.

Trunks stay on the CPU: float32 GroupQueryAttention has no kernel for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.engine.session import CPU, CUDA, device_memory_bytes, device_name, running_provider
from sawyer.engine.trunk import Trunk
from sawyer.ids import ModelId
from sawyer.model.artifacts import Artifacts
from sawyer.model.catalog import DEMO_MODEL, demo_checkpoint
from sawyer.model.split import split
from sawyer.schemas.models import Format

Rows = NDArray[np.float32]
PAIR = (1, 3)
TOLERANCE: dict[Format, float] = {"f32": 1e-5, "q8": 1e-5, "q4": 1e-5, "f16": 2e-3}
"""Relative to the largest number of an answer. Sums of 384 float32 products in another order differ by some 1e-6 (TF32,
which must be off, by 1e-3); f16 rounds rows, products and sums to 11 bits."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Artifacts]:
    """The demo model in a format."""

    @cache
    def in_format(format: Format) -> Artifacts:
        out = tmp_path_factory.mktemp(f"austen-{format}")
        split(demo_checkpoint(), out, model=ModelId(DEMO_MODEL), format=format)
        return Artifacts.open(out)

    return in_format


@pytest.fixture(scope="module")
def rows() -> Rows:
    return np.random.default_rng(7).standard_normal((33, 192), dtype=np.float32)


def assert_near(got: Rows, expected: Rows, format: Format) -> None:
    assert np.abs(got - expected).max() <= TOLERANCE[format] * np.abs(expected).max()


@pytest.mark.parametrize("format", ["f32", "q8", "q4"])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_expert_on_cuda_equals_the_cpu_in_the_same_format(
    demo: Callable[[Format], Artifacts], rows: Rows, format: Format, count: int
) -> None:
    """In q4 and q8 the dequantised weights: accuracy_level 4, which rounds rows, is of CPUs alone."""
    on_cpu = ExpertPool(demo(format), [PAIR], accuracy_level=EXACT, device="cpu").run(*PAIR, rows[:count])
    for level in (EXACT, FAST):
        pool = ExpertPool(demo(format), [PAIR], accuracy_level=level, device="cuda")
        assert_near(pool.run(*PAIR, rows[:count]), on_cpu, format)


@pytest.mark.parametrize("count", [1, 33])
def test_f16_expert_on_cuda_equals_the_float32_one_to_its_rounding(
    demo: Callable[[Format], Artifacts], rows: Rows, count: int
) -> None:
    exact = ExpertPool(demo("f32"), [PAIR], device="cpu").run(*PAIR, rows[:count])
    got = ExpertPool(demo("f16"), [PAIR], device="auto").run(*PAIR, rows[:count])
    assert_near(got, exact, "f16")


def test_pool_of_several_experts_answers_for_each_from_many_threads(
    demo: Callable[[Format], Artifacts], rows: Rows
) -> None:
    hosted = [(0, 0), (1, 3), (3, 7)]
    on_cpu = ExpertPool(demo("q4"), hosted, accuracy_level=EXACT, device="cpu")
    pool = ExpertPool(demo("q4"), hosted, device="auto")
    assert pool.provider == CUDA
    jobs = [(pair, rows[n : n + 3]) for pair in hosted for n in range(10)]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda job: pool.run(*job[0], job[1]), jobs))
    for got, (pair, part) in zip(answers, jobs, strict=True):
        assert_near(got, on_cpu.run(*pair, part), "q4")


def test_nothing_is_promised_of_rows_beside_each_other(demo: Callable[[Format], Artifacts]) -> None:
    assert not ExpertPool(demo("q4"), [PAIR], device="cuda").row_exact


def test_gpu_tells_its_name_and_memory() -> None:
    assert device_name(CUDA) != "unknown CUDA device"
    told = device_memory_bytes()
    assert told is not None
    total, free = told
    assert 0 < free <= total
    assert total > 1 << 30


def test_trunk_stays_on_the_cpu(demo: Callable[[Format], Artifacts]) -> None:
    trunk = Trunk(demo("q4"))
    assert {running_provider(each) for each in (*trunk._layers, trunk._head)} == {CPU}
