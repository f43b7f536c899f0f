"""Log files of a home's network: found, read from the end, followed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sawyer.cli.output import printable
from sawyer.home import Home

POLL_S: Final = 0.2
MAX_LOG_BYTES: Final = 10 * 1024 * 1024
TAIL_BYTES: Final = 256 * 1024
"""How much of the end of a log is looked at for its last lines."""


def find_logs(home: Home) -> dict[str, Path]:
    """Part -> its log."""
    found = {file.stem: file for file in sorted(home.logs.glob("*.log"))}
    server = home.nats / "nats.log"
    return ({"nats-server": server} if server.is_file() else {}) | found


def trim(home: Home) -> None:
    """A log that has grown over MAX_LOG_BYTES becomes NAME.1 (one is kept) and goes on empty. Its writer, which
    appends, notices nothing."""
    for log in find_logs(home).values():
        with contextlib.suppress(OSError):
            if log.stat().st_size > MAX_LOG_BYTES:
                shutil.copyfile(log, log.with_name(log.name + ".1"))
                os.truncate(log, 0)


def show(logs: Mapping[str, Path], *, lines: int, follow: bool) -> None:
    """The last lines of each log, then, if asked, what comes. Several logs: each line names its part."""
    width = max(len(part) for part in logs) if len(logs) > 1 else 0
    places = {part: _last_lines(part, file, lines, width) for part, file in logs.items()}
    while follow:
        for part, file in logs.items():
            places[part] = _new_lines(part, file, places[part], width)
        time.sleep(POLL_S)


def _last_lines(part: str, file: Path, count: int, width: int) -> int:
    """Prints them; where the file ended, in bytes."""
    with file.open("rb") as log:
        size = log.seek(0, 2)
        log.seek(max(0, size - TAIL_BYTES))
        said = log.read()
    for line in said.splitlines()[-count:] if count else []:
        _print(part, line, width)
    return size


def _new_lines(part: str, file: Path, start: int, width: int) -> int:
    """Prints whole lines after `start`; where to go on. A file that shrank was begun anew."""
    try:
        if file.stat().st_size < start:
            start = 0
        with file.open("rb") as log:
            log.seek(start)
            said = log.read()
    except OSError:
        return start
    whole = said[: said.rfind(b"\n") + 1]
    for line in whole.splitlines():
        _print(part, line, width)
    return start + len(whole)


def _print(part: str, line: bytes, width: int) -> None:
    text = line.decode(errors="replace")
    if sys.stdout.isatty():
        text = printable(text)
    sys.stdout.write(f"{part:<{width}} | {text}\n" if width else f"{text}\n")
    sys.stdout.flush()
