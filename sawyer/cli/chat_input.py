"""Where the lines of a chat come from: a person at a terminal, with line editing and a history, or a pipe."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from sawyer import durable
from sawyer.cli.output import say
from sawyer.errors import EXIT_INTERRUPTED, UsageError

PROMPT: Final = "> "
HISTORY_LIMIT: Final = 1000
"""Lines of history that are kept."""


class Interrupted(Exception):
    """Ctrl-C twice at the prompt."""

    code: Final = EXIT_INTERRUPTED


class Pipe:
    """Lines of stdin. `interactive`: nobody watches."""

    interactive: Final = False

    def __init__(self) -> None:
        self._number = 0

    def next(self) -> str | None:
        """The next line without its newline; None at the end. Raises UsageError for one that is not UTF-8."""
        raw = sys.stdin.buffer.readline()
        self._number += 1
        try:
            return raw.decode("utf-8").removesuffix("\n").removesuffix("\r") if raw else None
        except UnicodeDecodeError as error:
            raise UsageError(f"line {self._number} of stdin is not UTF-8 text", hint="Convert it first.") from error


class Terminal:
    """A person. Lines are kept in `history`, mode 0600, so that the arrow keys find them the next time."""

    interactive: Final = True

    def __init__(self, history: Path) -> None:
        self._history = history
        self._readline = _readline()
        self._to_stdout = sys.stdout.isatty()
        if self._readline is not None:
            for line in _remembered(history):
                self._readline.add_history(line)

    def next(self) -> str | None:
        """The next line; None at Ctrl-D. Ctrl-C drops what was typed and says how to end; raises Interrupted for a
        second one."""
        interrupts = 0
        while True:
            try:
                line = self._ask()
            except EOFError:
                say("")
                return None
            except KeyboardInterrupt:
                interrupts += 1
                say("")
                if interrupts > 1:
                    raise Interrupted from None
                say("(Ctrl-C again, Ctrl-D or /quit ends)")
                continue
            if line.strip():
                _remember(self._history, line)
            return line

    def _ask(self) -> str:
        if not self._to_stdout:  # the answers go elsewhere: the prompt must not
            sys.stderr.write(PROMPT)
            sys.stderr.flush()
        return input(PROMPT if self._to_stdout else "")


def _readline() -> Any:
    """The module, which not every Python has; it gives `input` line editing."""
    try:
        return importlib.import_module("readline")
    except ImportError:
        return None


def _remembered(path: Path) -> list[str]:
    """The last lines of the history; a file that has grown too long is cut to them."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    if len(lines) > 2 * HISTORY_LIMIT:
        with contextlib.suppress(OSError):
            durable.replace(path, "".join(f"{line}\n" for line in lines[-HISTORY_LIMIT:]).encode())
    return lines[-HISTORY_LIMIT:]


def _remember(path: Path, line: str) -> None:
    """A history that cannot be written is no reason to end a chat."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "ab") as file:
            file.write(line.encode(errors="replace") + b"\n")
