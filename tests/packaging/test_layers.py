"""The import contracts of pyproject.toml: one run over a copy of the tree in which every one of them is violated."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

VIOLATIONS = {
    "Layers: import downwards only, never sideways unless on one line": ("sawyer/ids.py", "import sawyer.bus"),
    "Folds and rules are pure: no async, clock, randomness or IO": ("projections/impure.py", "import time"),
    "One vendor, one door: nats only in sawyer.bus": ("sawyer/client/smuggled.py", "import nats"),
    "One vendor, one door: onnxruntime only in sawyer.engine": ("sawyer/node/smuggled.py", "import onnxruntime"),
    "One vendor, one door: tokenizers only in sawyer.engine": ("sawyer/model/smuggled.py", "import tokenizers"),
    "One vendor, one door: jinja2 only in sawyer.engine.chat": ("sawyer/engine/smuggled.py", "import jinja2"),
    "One vendor, one door: huggingface_hub only in sawyer.model.hub": (
        "sawyer/model/smuggled_hub.py",
        "import huggingface_hub",
    ),
    "One vendor, one door: onnx only in sawyer.model": ("sawyer/engine/smuggled.py", "import onnx"),
    "One vendor, one door: eventsourcing only in sawyer.ledger": (
        "sawyer/bookkeeper/smuggled.py",
        "import eventsourcing",
    ),
    "One vendor, one door: psycopg only in sawyer.ledger": ("sawyer/cli/smuggled.py", "import psycopg"),
    "One vendor, one door: nacl only in sawyer.identity": ("sawyer/router/smuggled.py", "import nacl.signing"),
    "One vendor, one door: rich only in sawyer.cli": ("sawyer/ledger/smuggled.py", "import rich.table"),
    "One vendor, one door: typer only in sawyer.cli": ("sawyer/bus/smuggled.py", "import typer"),
}
"""Contract -> the file that breaks it, and how."""


def test_every_contract_has_a_violation_here() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]
    assert sorted(names) == sorted(VIOLATIONS)


def test_every_contract_breaks_when_it_is_violated(tmp_path: Path) -> None:
    for folder in ("sawyer", "projections", "schemas"):
        ignore = shutil.ignore_patterns("__pycache__", "demo_model")
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path, line in VIOLATIONS.values():
        with (tmp_path / path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    broken = re.findall(r"^(.+) BROKEN", run.stdout, re.MULTILINE)
    held = re.findall(r"^(.+) KEPT", run.stdout, re.MULTILINE)
    assert (run.returncode, held, sorted(broken)) == (1, [], sorted(VIOLATIONS)), run.stdout + run.stderr
