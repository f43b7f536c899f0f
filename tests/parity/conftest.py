"""Parity with transformers, live. Needs torch and transformers: tests/conftest.py collects it for `make parity` only.
The same comparison from stored files is in tests/unit/engine/test_golden.py.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """scripts/make_golden.py: the cases, and what transformers computes."""
    path = Path(__file__).parents[2] / "scripts" / "make_golden.py"
    spec = importlib.util.spec_from_file_location("make_golden", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
