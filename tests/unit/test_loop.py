"""The choice of the event loop."""

from __future__ import annotations

import asyncio
import importlib.util

import pytest

from sawyer import loop
from sawyer.errors import MissingExtra


@pytest.fixture
def without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvloop" else found(name))


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__


def test_auto_takes_uvloop_where_it_is_installed() -> None:
    assert loop.chosen() == "uvloop"
    assert loop.run(module_of_the_loop()).startswith("uvloop")


def test_asyncio_is_taken_when_asked_for() -> None:
    assert loop.run(module_of_the_loop(), "asyncio").startswith("asyncio")


@pytest.mark.usefixtures("without_uvloop")
def test_auto_takes_asyncio_where_uvloop_is_missing() -> None:
    assert loop.chosen() == "asyncio"
    assert loop.run(module_of_the_loop()).startswith("asyncio")


@pytest.mark.usefixtures("without_uvloop")
def test_uvloop_that_is_missing_is_refused_with_the_extra_to_install() -> None:
    with pytest.raises(MissingExtra) as error:
        loop.chosen("uvloop")
    assert "sawyer[uvloop]" in error.value.hint
