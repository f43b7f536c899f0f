"""The public door: exactly these names, each what it says, and cheap to open."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import subprocess
import sys

import pytest

import sawyer
from sawyer import errors
from sawyer.errors import SawyerError

ERRORS = {
    name: "sawyer.errors"
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, SawyerError)
}
PUBLIC = ERRORS | {
    "AccountReply": "sawyer.schemas.messages",
    "AsyncClient": "sawyer.client.aio",
    "BalanceReply": "sawyer.schemas.messages",
    "BlockingTextStream": "sawyer.client.sync",
    "Client": "sawyer.client.sync",
    "Generation": "sawyer.client.stream",
    "Key": "sawyer.identity.keys",
    "NatsTarget": "sawyer.contexts",
    "OfferedModel": "sawyer.client.offer",
    "TextStream": "sawyer.client.stream",
    "TokenLogprob": "sawyer.client.stream",
    "Usage": "sawyer.schemas.messages",
}


def test_public_names_are_exactly_these() -> None:
    assert sawyer.__all__ == [*sorted(PUBLIC), "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_the_thing_itself(name: str) -> None:
    assert getattr(sawyer, name) is getattr(importlib.import_module(PUBLIC[name]), name)


def test_every_error_of_the_tree_is_public() -> None:
    drawn = set(re.findall(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)*\b", errors.__doc__ or ""))
    assert set(ERRORS) <= drawn


def test_version_is_the_installed_one() -> None:
    assert sawyer.__version__ == importlib.metadata.version("sawyer")


@pytest.mark.parametrize("name", ["errors_", "Bus", "NatsBus", "importlib_", "NoSuchThing"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(sawyer, name)


def run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout


def test_import_loads_no_heavy_package() -> None:
    heavy = ("nats", "onnxruntime", "onnx", "numpy", "pydantic", "nacl", "eventsourcing", "tokenizers", "rich", "typer")
    loaded = run("import sys, sawyer; print(*sorted(sys.modules))").split()
    assert "sawyer" in loaded
    assert [name for name in heavy if name in loaded] == []


@pytest.mark.parametrize(
    "line", ["from sawyer import AsyncClient, Client, Key", "from sawyer.testing import StubNetwork"]
)
def test_client_and_its_double_load_no_engine(line: str) -> None:
    loaded = run(f"import sys; {line}; print(*sorted(sys.modules))").split()
    assert "nats" in loaded
    assert [name for name in ("onnxruntime", "onnx", "tokenizers", "typer") if name in loaded] == []


def test_star_import_gives_every_public_name() -> None:
    names = run("from sawyer import *; print(*sorted(globals()))").split()
    assert set(sawyer.__all__) <= set(names)
