"""`sawyer ledger statement`: what an account spent, or a host was credited for, as they would want it on paper."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sawyer.cli import output
from sawyer.cli.ledger import BookOption, HomeOption, book_of
from sawyer.cli.options import JsonOption
from sawyer.errors import UsageError
from sawyer.ids import is_slug

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sawyer.ledger.host_statement import HostLine, HostStatement, HostSum
    from sawyer.ledger.statement import AccountLine, AccountStatement, Period, Receipt

NOT_VERIFIED: Final = "read, not verified: `sawyer ledger replay` proves the book, `sawyer ledger prove` one entry"
_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
_MINUTE: Final = len("2026-11-23T16:07")


def statement(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An account, or a host.")],
    month: Annotated[str, typer.Option("--month", metavar="YYYY-MM", help="Only this month (UTC).")] = "",
    receipts: Annotated[bool, typer.Option("--receipts", help="Show the nodes' receipts of each request.")] = False,
    home: HomeOption = None,
    book: BookOption = None,
    json: JsonOption = False,
) -> None:
    """What an account was granted, spent and lost; or every receipt that a host was credited for. Reads only."""
    from sawyer.ledger.host_statement import host_statement
    from sawyer.ledger.statement import account_statement

    period, source = _period(month), book_of(home, book)
    _check_name(name)
    account = account_statement(source, name, period, with_receipts=receipts)
    host = host_statement(source, name, period)
    if account is None and host is None:
        raise UsageError(
            f"no account and no host {name} in this book",
            hint="`sawyer ledger log --kind account.opened` lists accounts, `--kind node.registered` hosts.",
        )
    if json:
        output.emit_json(_document(month, account, host))
    if account is not None and not json:
        _show_account(account, month)
    if host is not None and not json:
        _show_host(host, month)
    output.say(NOT_VERIFIED)


def _check_name(name: str) -> None:
    if not is_slug(name):
        raise UsageError(f"{name!r} is no name of an account or host", hint="Names are like alice, bob-2 or my_host.")


def _period(month: str) -> Period:
    from sawyer.ledger.statement import Period

    if not month:
        return Period()
    found = _MONTH.fullmatch(month)
    try:
        return Period.month(int(found[1]), int(found[2])) if found else Period.month(0, 0)
    except ValueError as error:
        raise UsageError(f"{month!r} is no month", hint="Give it like 2026-11.") from error


def _document(month: str, account: AccountStatement | None, host: HostStatement | None) -> dict[str, object]:
    """Sums of work may pass 2^53: they are decimal text."""
    credited = asdict(host) if host is not None else None
    if credited is not None:
        for each in (credited["total"], *credited["days"], *credited["models"], *credited["nodes"]):
            each["work"], each["weight_milli"] = str(each["work"]), str(each["weight_milli"])
    return {
        "month": month,
        "verified": False,
        "account": asdict(account) if account is not None else None,
        "host": credited,
    }


# --- an account -------------------------------------------------------------------------------------------------------


def _show_account(made: AccountStatement, month: str) -> None:
    output.line(f"account {made.account} of {made.network}, {_when(month)}")
    output.line()
    rows: list[tuple[object, ...]] = [("", "", "opening balance", "", f"{made.opening:,}")]
    for line in made.lines:
        rows.append(
            (
                _minute(line.ts_ms),
                line.seq,
                _told(line),
                f"{line.tokens:+,}" if line.tokens else "0",
                f"{line.balance:,}",
            )
        )
        rows += [("", "", _receipt(receipt), "", "") for receipt in line.receipts]
    rows.append(("", "", "closing balance", "", f"{made.closing:,}"))
    output.table(
        ("time", "entry", "what", "tokens", "balance"), rows, numeric=("entry", "tokens", "balance"), wrap=("what",)
    )
    output.line()
    output.line(f"granted {made.granted:,}, debited {made.debited:,}, expired {made.expired:,} tokens")
    for hold in made.holds:
        told = f"request {hold.request[:8]} of {hold.model} (entry {hold.seq})"
        output.line(f"{hold.tokens:,} of the balance held for {told}")
    _show_uses(made)


def _show_uses(made: AccountStatement) -> None:
    if made.models:
        output.heading("By model")
        names = ("model", "requests", "in", "out", "tokens")
        rows = [tuple(_grouped(each) for each in asdict(use).values()) for use in made.models]
        output.table(names, rows, numeric=names[1:])
    if made.grants:
        output.heading("Grants")
        columns = ("grant", "granted", "debited", "expired", "left", "until")
        grants = [
            (g.grant, *map(_grouped, (g.tokens, g.debited, g.expired, g.left)), _minute(g.expires_ms))
            for g in made.grants
        ]
        output.table(columns, grants, numeric=columns[1:5])


def _told(line: AccountLine) -> str:
    grants = " and ".join(grant for grant, _ in line.parts)
    if len(line.parts) > 1:
        grants = " and ".join(f"{tokens:,} from {grant}" for grant, tokens in line.parts)
    match line.what:
        case "granted":
            return f"grant {grants}"
        case "expired":
            return f"expired with {grants}"
        case "debited":
            paid = grants if len(line.parts) > 1 else f"from {grants}"
            return f"{line.request[:8]} {line.input_tokens} in + {line.output_tokens} out of {line.model}, {paid}"
        case "voided":
            return f"{line.request[:8]} failed, not billed: {line.reason}"
        case "abandoned":
            return f"{line.request[:8]} abandoned, not billed"


def _receipt(receipt: Receipt) -> str:
    if not receipt.counter:
        return f"  {receipt.node}: {receipt.rows:,} rows without a receipt, not credited"
    credited = f"work {receipt.work:,} at {receipt.sla_milli}/1000" if receipt.host else "not credited"
    return f"  {receipt.node} of {receipt.host}: {receipt.rows:,} rows, {credited}, receipt {receipt.counter}"


# --- a host -----------------------------------------------------------------------------------------------------------


def _show_host(made: HostStatement, month: str) -> None:
    output.line(f"host {made.host} of {made.network}, {_when(month)}")
    output.line()
    if made.lines:
        columns = ("time", "entry", "what", "receipt", "rows", "work", "sla")
        rows = [_credited(line) for line in made.lines]
        output.table(columns, rows, numeric=("entry", *columns[3:]), wrap=("what",))
    else:
        output.line("no receipt was credited")
    if made.unreceipted_rows:
        output.line(f"{made.unreceipted_rows:,} rows came without a valid receipt, and earn nothing")
    for title, sums in (("By day", made.days), ("By model", made.models), ("By node", made.nodes)):
        if sums:
            output.heading(title)
            names = (title.removeprefix("By "), "receipts", "rows", "work", "weight")
            total = [made.total] if len(sums) > 1 else []
            output.table(names, list(_sums([*sums, *total])), numeric=names[1:])
    output.line()
    output.line("weight = work x sla / 1000; what it is paid is decided at a settlement")


def _credited(line: HostLine) -> tuple[object, ...]:
    what = f"{line.request[:8]} {line.model}, {line.node}"
    return _minute(line.ts_ms), line.seq, what, line.counter, f"{line.rows:,}", f"{line.work:,}", line.sla_milli


def _sums(sums: Sequence[HostSum]) -> Iterator[tuple[object, ...]]:
    for each in sums:
        yield each.name, *map(_grouped, (each.receipts, each.rows, each.work, each.weight_milli // 1000))


# --- both -------------------------------------------------------------------------------------------------------------


def _when(month: str) -> str:
    return f"{month} (UTC)" if month else "the whole book"


def _minute(at_ms: int) -> str:
    from sawyer.clock import iso

    return iso(at_ms)[:_MINUTE].replace("T", " ")


def _grouped(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
