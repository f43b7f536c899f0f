"""Parity with transformers, live. Needs torch and transformers: tests/conftest.py collects it for `make parity` only.
The same comparison from stored files is in tests/unit/engine/test_golden.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SEEDS = (11, 12, 13, 14)


def _script() -> ModuleType:
    """scripts/make_golden.py, loaded once."""
    if "make_golden" not in sys.modules:
        path = Path(__file__).parents[2] / "scripts" / "make_golden.py"
        spec = importlib.util.spec_from_file_location("make_golden", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    return sys.modules["make_golden"]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """scripts/make_golden.py: the cases, and what transformers computes."""
    return _script()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: every golden case, with the weights of every seed."""
    if "case" in metafunc.fixturenames:
        cases = [dataclasses.replace(case, seed=seed) for case in _script().CASES for seed in SEEDS]
        metafunc.parametrize("case", cases, ids=[f"{case.name}-{case.seed}" for case in cases])
