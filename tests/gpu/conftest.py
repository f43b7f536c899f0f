"""Tests that need a GPU are collected where a session for CUDA really runs there; elsewhere a line says why not."""

from __future__ import annotations

import pytest

from sawyer.engine.trial import try_device
from sawyer.errors import MissingExtra


def _why_not() -> str:
    """Nothing where CUDA runs."""
    try:
        try_device("cuda")
    except MissingExtra as error:
        return error.message
    return ""


WHY_NOT = _why_not()
collect_ignore_glob = ["test_*.py"] if WHY_NOT else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WHY_NOT:
        terminalreporter.write_line(f"tests/gpu was not run: {WHY_NOT}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A machine without a GPU is no failure."""
    if WHY_NOT and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
