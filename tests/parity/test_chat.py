"""What transformers makes of conversations today is what tests/unit/engine/test_chat.py holds us to."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_stored_conversations_are_what_transformers_makes_of_them() -> None:
    path = TESTS.parent / "scripts" / "make_chat_golden.py"
    spec = importlib.util.spec_from_file_location("make_chat_golden", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = TESTS / "unit" / "engine" / "templates"
    assert script.golden(folder) == json.loads((folder / "golden.json").read_text())
