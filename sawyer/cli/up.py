"""`sawyer up`, `sawyer down`, `sawyer logs`: their options. The network itself is in up_run.py, loaded only when it
runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.network_plan import config_environment
from sawyer.cli.options import AccountOption, FormatOption, HomeOption, ThreadsOption
from sawyer.errors import EXIT_FAILED, Busy, SawyerError, UsageError
from sawyer.home import Home, Running
from sawyer.model.catalog import DEMO_MODEL
from sawyer.settings import Settings

MAX_NODES: Final = 8
DOWN_TIMEOUT_S: Final = 70.0
"""Router, nodes, bookkeeper and NATS server are stopped one after the other, 15 s at most each."""
POLL_S: Final = 0.1
UP_LOG: Final = "up.log"


def up(
    model: Annotated[str, typer.Argument(help="Model id, or the folder of a split model.")] = DEMO_MODEL,
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=MAX_NODES, help="Node processes.")] = 2,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when everything runs; it goes on.")] = False,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="NATS address (default: as last time; first 4222).")
    ] = "",
    account: AccountOption = "",
    format: FormatOption = "q4",
    threads: ThreadsOption = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="With -d: print one JSON document.")] = False,
) -> None:
    """Keep a network running here until Ctrl-C: NATS server, bookkeeper, router, nodes. Next time its book goes on."""
    settings = Settings.load(home=home, account=account, threads=threads)
    settings.home.create()
    if not detach:
        if as_json:
            raise UsageError("--json has nothing to print in the foreground", hint="Add -d.")
        from sawyer.cli.up_run import UpPlan, run

        run(UpPlan(settings, model, format, nodes, listen))
        return
    running = _detach(settings, ["up", model, "--format", format, "--nodes", str(nodes), *_given(listen, settings)])
    if as_json:
        output.emit_json({"pid": running.pid, "url": running.url, "home": str(settings.home.path)})
        return
    output.say(f"up: process {running.pid}, {running.url}, home {settings.home.path}")
    output.say("`sawyer status` shows it, `sawyer logs -f` follows it, `sawyer down` ends it")


def down(
    home: HomeOption = None,
    force: Annotated[bool, typer.Option("--force", help="Kill what does not end in order.")] = False,
) -> None:
    """End the network that runs in this home, in order."""
    place = Settings.examine(home=home)[0].home  # a mistake in a setting must not keep a network running
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

    place = Settings.examine(home=home)[0].home
    found = find_logs(place)
    if part and part not in found:
        known = ", ".join(sorted(found)) or "none yet"
        raise UsageError(f"there is no log of {part!r} in {place.path}", hint=f"There are: {known}.")
    if not found:
        raise UsageError(f"there are no logs in {place.path}", hint="`sawyer up` writes them; or name another --home.")
    show({part: found[part]} if part else found, lines=lines, follow=follow)


def _given(listen: str, settings: Settings) -> list[str]:
    """What the network in the background must be told again."""
    told = [("--home", str(settings.home.path)), ("--listen", listen), ("--account", settings["account"])]
    told.append(("--threads", settings["threads"]))
    return [word for flag, value in told if value for word in (flag, value)]


def _detach(settings: Settings, arguments: list[str]) -> Running:
    """Start it in a session of its own; returns when it runs. If it ends instead, its words are shown, and its exit
    code is ours. An interrupt ends it, too."""
    home = settings.home
    holder = home.lock_holder()
    if holder is not None:
        raise Busy(f"process {holder} runs a network in {home.path}", hint="`sawyer status` shows it.")
    with tempfile.TemporaryFile() as words:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "sawyer", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, start_new_session=True,
            env=dict(os.environ, **config_environment(settings.config_file)),
        )  # fmt: skip
        try:
            running = _until_up(home, child)
        except BaseException:
            child.terminate()
            with output.waiting("ending what was started"):
                child.wait()
            raise
        if running is not None:
            return running
        words.seek(0)
        sys.stderr.write(words.read().decode(errors="replace"))
        raise typer.Exit(child.returncode if child.returncode > 0 else EXIT_FAILED)


def _until_up(home: Home, child: subprocess.Popen[bytes]) -> Running | None:
    """The network that the child runs, or None: it has ended."""
    with output.waiting("starting the network"):
        while child.poll() is None:
            running = home.running()
            if running is not None and running.pid == child.pid:
                return running
            time.sleep(POLL_S)
    return None


def _lives(pid: int) -> bool:
    """Not ended; one that has and that nobody waited for does not count, where that can be seen."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # another user's, or no /proc here
        return sys.platform != "linux"


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass
    except PermissionError as error:
        raise UsageError(f"process {pid} belongs to another user", hint="End it as that user.") from error


def _released(home: Home, pid: int, patience_s: float) -> bool:
    """True once this process holds the home no more, and is gone."""
    deadline_s = time.monotonic() + patience_s
    with output.waiting(f"ending process {pid}"):
        while home.lock_holder() == pid or _lives(pid):
            if time.monotonic() > deadline_s:
                return False
            time.sleep(POLL_S)
    return True
