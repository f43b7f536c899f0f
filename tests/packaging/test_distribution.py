"""What users install: the wheel holds the tree and nothing else, the sdist makes the same wheel, and it runs alone."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sawyer", "projections", "schemas")
MAX_WHEEL_BYTES = 20_000_000

pytestmark = pytest.mark.xdist_group("distribution")  # one worker builds, once


@dataclass(frozen=True)
class Built:
    """One sdist, the wheel made from it, and the wheel made from the tree itself."""

    sdist: Path
    wheel_of_sdist: Path
    wheel_of_tree: Path


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built in copies, so that the repository stays as it is, with the installed setuptools: no network."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    _build(tree, "--sdist", folder / "sdist")
    sdist = next((folder / "sdist").iterdir())
    with tarfile.open(sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 on
        archive.extractall(folder / "unpacked", **safely)
    _build(next((folder / "unpacked").iterdir()), "--wheel", folder / "of-sdist")
    _build(tree, "--wheel", folder / "of-tree")
    return Built(sdist, next((folder / "of-sdist").iterdir()), next((folder / "of-tree").iterdir()))


def test_package_list_names_every_package_of_the_tree(project: dict[str, Any]) -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if not path.relative_to(ROOT).as_posix().startswith(("sawyer/projections", "sawyer/schemas"))
    }
    outside = {name if name.startswith("sawyer") else f"sawyer.{name}" for name in found}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(outside)


def test_every_package_has_an_init_file(project: dict[str, Any]) -> None:
    folders = [ROOT.joinpath(*name.split(".")) for name in project["tool"]["setuptools"]["packages"]]
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_wheel_holds_every_file_of_the_tree_and_no_other(built: Built) -> None:
    inside = {name: digest for name, digest in _contents(built.wheel_of_sdist).items() if ".dist-info/" not in name}
    assert inside == _tree()


def test_wheel_of_the_sdist_equals_the_wheel_of_the_tree(built: Built) -> None:
    assert _contents(built.wheel_of_sdist) == _contents(built.wheel_of_tree)
    assert built.wheel_of_sdist.name == built.wheel_of_tree.name


def test_wheel_holds_what_the_program_cannot_run_without(built: Built) -> None:
    names = set(_contents(built.wheel_of_sdist))
    assert {"sawyer/py.typed", "sawyer/projections/__init__.py", "sawyer/schemas/events.py"} <= names
    assert "sawyer/schemas/json/entry.json" in names
    assert [name for name in names if name.startswith("sawyer/demo_model/") and name.endswith("model.safetensors")]
    assert [name for name in names if name.endswith("licenses/LICENSE")]


def test_wheel_is_small_enough_to_try(built: Built) -> None:
    assert built.wheel_of_sdist.stat().st_size < MAX_WHEEL_BYTES


def test_installed_wheel_runs_in_a_fresh_environment(built: Built, project: dict[str, Any], tmp_path: Path) -> None:
    python = _install(built.wheel_of_sdist, tmp_path / "fresh")
    modules = "sawyer, sawyer.projections, sawyer.schemas.events"
    code = f"import {modules}; print(sawyer.__file__, sawyer.projections.__file__, sawyer.schemas.events.__file__)"
    files = _run([python, "-c", code], tmp_path).split()
    assert [name for name in files if not Path(name).is_relative_to(tmp_path / "fresh")] == []
    assert project["project"]["version"] in _run([python.with_name("sawyer"), "--version"], tmp_path)


def _build(source: Path, what: str, into: Path) -> None:
    _run([sys.executable, "-m", "build", "--no-isolation", what, "--outdir", into, source], source)


def _install(wheel: Path, folder: Path) -> Path:
    """A fresh environment with this wheel; its dependencies are those of the running one, so nothing is downloaded."""
    _run([sys.executable, "-m", "venv", "--without-pip", folder], wheel.parent)
    python = folder / "bin" / "python"
    _run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], folder)
    purelib = _run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def _run(command: list[str | Path], folder: Path) -> str:
    """Stdout of a command that must succeed, in an environment that does not lead back to this tree."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SAWYER_"))}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stdout


def _contents(wheel: Path) -> dict[str, str]:
    """File -> SHA-256. RECORD lists the others in an order of its own: its lines are compared sorted."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    return {
        name: hashlib.sha256(b"\n".join(sorted(raw.split(b"\n"))) if name.endswith("/RECORD") else raw).hexdigest()
        for name, raw in files.items()
    }


def _tree() -> dict[str, str]:
    """File -> SHA-256 of everything in the packages, under the name it must have in the wheel."""
    files = {
        path.relative_to(ROOT).as_posix(): path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    return {
        name if name.startswith("sawyer/") else f"sawyer/{name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in files.items()
        if not name.startswith(("sawyer/projections", "sawyer/schemas"))
    }
