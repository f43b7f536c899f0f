"""`sawyer doctor`: every setting and who decided it, then checks of this machine, this home and the network.

Owns the command and what it prints; the checks are in doctor_machine.py and doctor_network.py. It goes on past whatever
it finds: a config file that is broken is a finding like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import typer

from sawyer.cli import output
from sawyer.cli.checks import FAIL, OK, WARN, Check
from sawyer.cli.doctor_machine import check_home, check_machine, check_settings
from sawyer.cli.doctor_network import check_network
from sawyer.cli.options import AccountOption, ContextOption, CredsOption, HomeOption, JsonOption, NatsOption
from sawyer.errors import EXIT_FAILED
from sawyer.settings import Settings, Value

_COLOURS: Final[Mapping[str, str]] = {OK: "green", WARN: "yellow", FAIL: "red"}


def doctor(
    home: HomeOption = None,
    nats: NatsOption = "",
    context: ContextOption = "",
    creds: CredsOption = None,
    account: AccountOption = "",
    as_json: JsonOption = False,
) -> None:
    """Check settings, this machine, this home and the network. Exit code 1 if something fails.

    Nothing is changed, and no book is verified: `sawyer ledger replay` does that.
    """
    settings, problems = Settings.examine(home=home, nats=nats, context=context, creds=creds, account=account)
    with output.waiting("checking settings, machine and network"):
        checks = [
            *check_settings(settings, problems),
            *check_machine(settings),
            *check_home(settings),
            *asyncio.run(check_network(settings)),
        ]
    if as_json:
        output.emit_json(_document(settings, checks))
    else:
        _show(settings, checks)
    if any(check.state == FAIL for check in checks):
        raise typer.Exit(EXIT_FAILED)


def _values(settings: Settings) -> list[Value]:
    """As they may be printed."""
    return [Value(each.name, each.shown, each.rank, each.source) for each in settings.values.values()]


def _document(settings: Settings, checks: Sequence[Check]) -> dict[str, object]:
    return {
        "ok": not any(check.state == FAIL for check in checks),
        "settings": [{"name": each.name, "value": each.text, "source": each.source} for each in _values(settings)],
        "checks": [
            {"state": check.state, "name": check.name, "found": check.found, "todo": check.todo} for check in checks
        ],
    }


def _show(settings: Settings, checks: Sequence[Check]) -> None:
    rows = [(each.name, each.text or "-", each.source) for each in _values(settings)]
    output.table(("setting", "value", "decided by"), rows, wrap=("value", "decided by"))
    output.line()
    found = [(check.state, check.name, check.found) for check in checks]
    output.table(("", "check", "found"), found, wrap=("found",), colours=_COLOURS)
    todo = [(check.name, check.todo) for check in checks if check.todo]
    if todo:
        output.heading("What to do")
        output.table(("about", "do"), todo, wrap=("do",))
    output.line()
    counts = [(sum(check.state == state for check in checks), state) for state in (OK, WARN, FAIL)]
    output.line(", ".join(f"{count} {state}" for count, state in counts))
