"""What `--help` says reads as sentences: a list of commands shows the first paragraph, with its line breaks."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from sawyer.cli.app import app


def commands(group: Any, name: str = "sawyer") -> Iterator[tuple[str, str]]:
    for word, command in getattr(group, "commands", {}).items():
        yield f"{name} {word}", inspect.cleandoc(command.help or "")
        yield from commands(command, f"{name} {word}")


def test_first_paragraph_of_every_command_is_one_line() -> None:
    found = dict(commands(get_command(app)))
    assert len(found) > 30
    assert [name for name, text in found.items() if "\n" in text.split("\n\n")[0]] == []
    assert [name for name, text in found.items() if not text] == []
