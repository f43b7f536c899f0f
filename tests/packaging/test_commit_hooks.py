"""The checks before a commit: tools of this environment only, run where they have something to say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / ".pre-commit-config.yaml"


@pytest.fixture(scope="module")
def hooks() -> dict[str, dict[str, Any]]:
    repositories = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    return {hook["id"]: hook for hook in repositories[0]["hooks"]}


def test_pre_commit_accepts_the_configuration() -> None:
    _run("-m", "pre_commit", "validate-config", str(CONFIG))


def test_every_hook_is_a_tool_of_this_environment(hooks: dict[str, dict[str, Any]]) -> None:
    for name, hook in hooks.items():
        tool = Path(hook["entry"].split()[0])
        assert (hook["language"], tool.parent.as_posix()) == ("system", ".venv/bin"), name
        assert Path(sys.executable).with_name(tool.name).exists(), name


def test_schemas_are_made_again_when_anything_they_are_made_from_changes(hooks: dict[str, dict[str, Any]]) -> None:
    loaded = _run("-c", "import sys, sawyer.schemas.generate; print(*sys.modules)").split()
    modules = sorted(name.removeprefix("sawyer.schemas.") for name in loaded if name.startswith("sawyer.schemas."))
    below = sorted(name.removeprefix("sawyer.") for name in loaded if re.fullmatch(r"sawyer\.(?!schemas$)\w+", name))
    assert "exchanges" in modules
    files = [f"schemas/{name}.py" for name in modules] + [f"sawyer/{name}.py" for name in below]
    assert [file for file in [*files, "schemas/asyncapi.yaml"] if not re.search(hooks["schemas"]["files"], file)] == []


def _run(*arguments: str) -> str:
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
