"""`sawyer up`, `sawyer down`, `sawyer logs`: their options. The network itself is in up_run.py, loaded only when it
runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.options import AccountOption, FormatOption, HomeOption
from sawyer.errors import Busy, SawyerError, UsageError
from sawyer.home import Home
from sawyer.model.catalog import DEMO_MODEL
from sawyer.settings import Settings

MAX_NODES: Final = 8
UP_TIMEOUT_S: Final = 90.0
DOWN_TIMEOUT_S: Final = 40.0
POLL_S: Final = 0.1
UP_LOG: Final = "up.log"
TAIL_LINES: Final = 5


def up(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")] = DEMO_MODEL,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=MAX_NODES, help="Node processes.")] = 2,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything runs; it goes on.")] = False,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="NATS address (default: as last time; first 4222).")
    ] = "",
    account: AccountOption = "",
    format: FormatOption = "q4",
    home: HomeOption = None,
) -> None:
    """Keep a network running here until Ctrl-C: NATS server, bookkeeper, router, nodes. Next time its book goes on."""
    settings = Settings.load(home=home, account=account)
    settings.home.create()
    if detach:
        _detach(settings.home, _again(model, format, nodes, listen, account, settings.home))
        return
    from sawyer.cli.up_run import UpPlan, run

    run(settings.home, UpPlan(model, format, nodes, listen, settings["account"], settings["nats_server"]))


def down(
    home: HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Kill what does not end in order.")] = False,
) -> None:
    """End the network that runs in this home, in order."""
    place = Settings.load(home=home).home
    pid = place.lock_holder()
    if pid is None:
        output.say(f"nothing runs in {place.path}")
        return
    _signal(pid, signal.SIGTERM)
    if not _released(place, pid, DOWN_TIMEOUT_S):
        if not force:
            raise SawyerError(
                f"process {pid} has not ended within {DOWN_TIMEOUT_S:g} s", hint="Kill it: sawyer down --force"
            )
        _signal(pid, signal.SIGKILL)
        _released(place, pid, DOWN_TIMEOUT_S)
    output.say(f"ended the network in {place.path} (process {pid})")


def logs(
    part: Annotated[str, typer.Argument(help="Only this part: nats-server, bookkeeper, router-1, node-1, up.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each part.")] = 20,
    home: HomeOption = None,
) -> None:
    """What the parts of this home's network have to say: warnings, and errors with their traces."""
    from sawyer.cli.logs import find_logs, show

    place = Settings.load(home=home).home
    found = find_logs(place)
    if part and part not in found:
        known = ", ".join(sorted(found)) or "none yet"
        raise UsageError(f"there is no log of {part!r} in {place.path}", hint=f"There are: {known}.")
    if not found:
        raise UsageError(f"there are no logs in {place.path}", hint="`sawyer up` writes them; or name another --home.")
    show({part: found[part]} if part else found, lines=lines, follow=follow)


def _again(model: str, format: str, nodes: int, listen: str, account: str, home: Home) -> list[str]:
    """The command line of the same network in the foreground."""
    arguments = ["up", model, "--format", format, "--home", str(home.path), "--nodes", str(nodes)]
    arguments += ["--listen", listen] if listen else []
    arguments += ["--account", account] if account else []
    return [sys.executable, "-P", "-m", "sawyer", *arguments]


def _detach(home: Home, command: list[str]) -> None:
    """Start it in a session of its own; returns when it runs. Raises SawyerError with its last words if it ends."""
    holder = home.lock_holder()
    if holder is not None:
        raise Busy(f"process {holder} runs a network in {home.path}", hint="`sawyer status` shows it.")
    home.logs.mkdir(parents=True, exist_ok=True)
    log = home.logs / UP_LOG
    with log.open("ab") as file:
        start = file.tell()
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            env=dict(os.environ, PYTHONUNBUFFERED="1"),
        )  # fmt: skip
    deadline_s = time.monotonic() + UP_TIMEOUT_S
    with output.waiting("starting the network"):
        while time.monotonic() < deadline_s:
            running = home.running()
            if running is not None and running.pid == child.pid:
                output.say(f"up: process {child.pid}, {running.url}, home {home.path}")
                output.say("`sawyer status` shows it, `sawyer logs -f` follows it, `sawyer down` ends it")
                return
            if child.poll() is not None:
                raise SawyerError(f"the network did not start: {_tail(log, start)}", hint=f"The whole log: {log}")
            time.sleep(POLL_S)
    child.terminate()
    raise SawyerError(f"the network was not up within {UP_TIMEOUT_S:g} s", hint=f"See {log} and `sawyer logs`.")


def _tail(log: Path, start: int) -> str:
    said = log.read_bytes()[start:].decode(errors="replace").splitlines()
    return " / ".join([line.strip() for line in said if line.strip()][-TAIL_LINES:]) or "it said nothing"


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UsageError(f"process {pid} belongs to another user", hint="End it as that user.") from error


def _released(home: Home, pid: int, patience_s: float) -> bool:
    """True once this process holds the home no more."""
    deadline_s = time.monotonic() + patience_s
    with output.waiting(f"ending process {pid}"):
        while home.lock_holder() == pid:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
    return True
