"""What is printed: whole words on a terminal, whole lines in a pipe, and nothing that steers a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sawyer.cli import output
from sawyer.errors import UsageError

LONG = UsageError(
    "cannot read /a/path/that/is/longer/than/a/line/of/this/terminal because somebody else owns it",
    hint="choose another folder, or ask its owner: --home DIR",
)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 40 columns, for both streams."""
    screen = io.StringIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(
            output,
            stream,
            lambda: Console(file=screen, force_terminal=True, color_system=None, width=40, soft_wrap=True),
        )
    return screen


def lines(screen: io.StringIO) -> list[str]:
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def test_error_is_wrapped_between_words_on_a_terminal(terminal: io.StringIO) -> None:
    output.print_error(LONG)
    shown = lines(terminal)
    assert all(len(line) <= 40 for line in shown)
    words = [word for line in shown for word in line.split()]
    assert words[0] == "error:"
    assert {"cannot", "because", "somebody", "hint:", "another", "folder,"} <= set(words)
    assert "/a/path/that/is/longer/than/a/line/of/this/terminal" in "".join(words)


def test_error_is_one_line_and_one_hint_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_error(LONG)
    assert capsys.readouterr().err == f"error: {LONG.message}\nhint:  {LONG.hint}\n"


def test_talk_is_wrapped_between_words_on_a_terminal(terminal: io.StringIO) -> None:
    output.say("one two three four five six seven eight nine ten eleven twelve")
    assert lines(terminal) == ["one two three four five six seven eight", "nine ten eleven twelve"]


@pytest.mark.parametrize("hostile", ["\x1b[2J", "a\x07b", "\x9b31m", "x\rerror: y"])
def test_what_steers_a_terminal_is_not_printed(terminal: io.StringIO, hostile: str) -> None:
    output.print_error(UsageError(hostile, hint=hostile))
    output.say(hostile)
    output.table(("a",), [(hostile,)])
    output.line(hostile)
    output.heading(hostile)
    assert not set(terminal.getvalue()) & {"\x1b", "\x07", "\x9b", "\r"}


def test_markup_in_what_others_wrote_is_text(terminal: io.StringIO) -> None:
    output.print_error(UsageError("[red]x[/red] [/]", hint="[bold]"))
    output.table(("a",), [("[red]x[/red]",)], wrap=("a",), colours={"[red]x[/red]": "green"})
    assert terminal.getvalue().count("[red]x[/red]") == 2


def test_column_that_wraps_keeps_every_word_and_others_stay_whole(terminal: io.StringIO) -> None:
    output.table(("", "found"), [("ok", "one two three four five six seven eight nine ten")], wrap=("found",))
    shown = lines(terminal)
    assert shown[1].startswith("ok  one two")
    assert " ".join(" ".join(shown[1:]).split()) == "ok one two three four five six seven eight nine ten"


def test_data_in_a_pipe_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.line("a\x1b[0m [bold]")
    output.heading("[red]")
    assert capsys.readouterr().out == "a\x1b[0m [bold]\n\n[red]\n"
