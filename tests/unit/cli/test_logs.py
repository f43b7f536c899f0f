"""Logs of a home: found by part, their last lines, and what comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer.cli import logs
from sawyer.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.logs.mkdir()
    made.nats.mkdir()
    (made.logs / "node-1.log").write_text("one\ntwo\nthree\n")
    (made.logs / "router-1.log").write_text("only\n")
    (made.nats / "nats.log").write_text("server\n")
    return made


def test_logs_are_found_by_part(home: Home) -> None:
    assert list(logs.find_logs(home)) == ["nats-server", "node-1", "router-1"]


def test_last_lines_of_several_logs_name_their_part(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    logs.show(logs.find_logs(home), lines=2, follow=False)
    assert capsys.readouterr().out.splitlines() == [
        "nats-server | server",
        "node-1      | two",
        "node-1      | three",
        "router-1    | only",
    ]


def test_one_log_is_shown_as_it_is(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    logs.show({"node-1": home.logs / "node-1.log"}, lines=1, follow=False)
    assert capsys.readouterr().out == "three\n"


def test_no_lines_shows_nothing(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    logs.show(logs.find_logs(home), lines=0, follow=False)
    assert capsys.readouterr().out == ""


def test_following_prints_whole_lines_only_and_survives_a_new_file(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    log = home.logs / "node-1.log"
    place = log.stat().st_size
    with log.open("a") as file:
        file.write("four\nfi")
    place = logs._new_lines("node-1", log, place, 0)
    assert capsys.readouterr().out == "four\n"
    with log.open("a") as file:
        file.write("ve\n")
    place = logs._new_lines("node-1", log, place, 0)
    assert capsys.readouterr().out == "five\n"
    log.write_text("anew\n")
    logs._new_lines("node-1", log, place, 0)
    assert capsys.readouterr().out == "anew\n"


def test_log_that_grew_too_big_goes_on_empty_and_its_writer_notices_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 10)
    log = home.logs / "node-1.log"
    with log.open("ab") as writer:
        logs.trim(home)
        writer.write(b"four\n")
    assert (home.logs / "node-1.log.1").read_text() == "one\ntwo\nthree\n"
    assert log.read_text() == "four\n"
    assert (home.logs / "router-1.log").read_text() == "only\n"
    assert list(logs.find_logs(home)) == ["nats-server", "node-1", "router-1"]


@pytest.mark.parametrize("terminal", [True, False])
def test_what_would_steer_a_terminal_is_shown_raw_only_in_a_pipe(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    (home.logs / "node-1.log").write_text("a\x1b[2Jb\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    logs.show({"node-1": home.logs / "node-1.log"}, lines=1, follow=False)
    assert ("\x1b" in capsys.readouterr().out) is not terminal
