"""Logs of the long-running programs, for people and for programs."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from sawyer.cli.log_format import JsonLines, start_logging
from sawyer.settings import Settings


def record(message: str, *values: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("sawyer.router.run", logging.WARNING, __file__, 1, message, values, None)
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_record_is_one_object_that_names_its_request() -> None:
    line = JsonLines().format(record("request %s failed:\n%s", "0f", "why", request="0f"))
    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "warning", "logger": "sawyer.router.run", "message": "request 0f failed:\nwhy", "request": "0f",
    }  # fmt: skip


def test_record_of_no_request_has_no_such_field_and_an_error_brings_its_traceback() -> None:
    failed = record("it failed")
    try:
        raise ValueError("x")
    except ValueError:
        failed.exc_info = sys.exc_info()
    told = json.loads(JsonLines().format(failed))
    assert "request" not in told
    assert told["error"].endswith("ValueError: x")


@pytest.mark.parametrize(("form", "said"), [("text", " INFO other: hello\n"), ("json", '"message": "hello"}\n')])
def test_settings_decide_form_and_level(
    form: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        start_logging(Settings.load({"SAWYER_LOG_FORMAT": form, "SAWYER_LOG_LEVEL": "info"}))
        logging.getLogger("other").info("hello")
        logging.getLogger("other").debug("not this")
    finally:
        root.setLevel(level)
    assert capsys.readouterr().err.endswith(said)
