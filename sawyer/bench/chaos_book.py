"""The book after a chaos run: proved by replay, and each bill held against what its client was given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sawyer.bench.chaos_load import Asked
from sawyer.home import Home
from sawyer.ledger.replay import replay_home
from sawyer.ledger.search import matching, read
from sawyer.ledger.source import SQLiteSource
from sawyer.ledger.wanted import Wanted
from sawyer.schemas.events import InferenceCompleted

COMPLETED: Final = "inference.completed"
MOST_TOLD: Final = 20


@dataclass(frozen=True, slots=True)
class Debit:
    """What the book has of one request: text tokens in and out, budget tokens taken."""

    input_tokens: int
    output_tokens: int
    debited: int


@dataclass(frozen=True, slots=True)
class BookVerdict:
    """`ok`: the replay proves the book, and every debit matches its tokens. `debits` that the book has; `wrong_debits`
    of those do not match, or are missing (`told` has the first). `held_tokens`: still held for requests that never
    ended; they come back when their holds expire."""

    ok: bool
    entries: int
    signatures: int
    problem: str
    debits: int
    debited_tokens: int
    wrong_debits: int
    told: tuple[str, ...]
    held_tokens: int


def judge(home: Home, asked: Sequence[Asked]) -> BookVerdict:
    """Of a book that nobody writes any more. Blocks."""
    report = replay_home(home)
    debits = read_debits(home)
    wrong = mismatches(debits, asked)
    return BookVerdict(
        ok=report.ok and not wrong,
        entries=report.entries,
        signatures=report.signatures,
        problem=report.problem.why if report.problem else "",
        debits=sum(len(each) for each in debits.values()),
        debited_tokens=sum(each.debited for booked in debits.values() for each in booked),
        wrong_debits=len(wrong),
        told=tuple(wrong[:MOST_TOLD]),
        held_tokens=sum(each.held for each in report.as_of.balances),
    )


def read_debits(home: Home) -> dict[str, list[Debit]]:
    """What the book of a home has of each completed request. Raises BookCorrupt."""
    source = SQLiteSource(home.book)
    found: defaultdict[str, list[Debit]] = defaultdict(list)
    for row in matching(source, Wanted(kind=COMPLETED)):
        entry = read(row, source)
        if isinstance(entry.body, InferenceCompleted):
            debited = sum(each.tokens for each in entry.decided.debited or ())
            body = entry.body
            found[body.request.body.request].append(Debit(body.input_tokens, body.output_tokens, debited))
    return dict(found)


def mismatches(debits: dict[str, list[Debit]], asked: Sequence[Asked]) -> list[str]:
    """One line for each request whose bill is not once, and not exactly, what its client was given: text tokens in and
    out, one budget token each at the price that the benchmark's network has. A failed request must have no bill."""
    wrong = []
    for each in asked:
        booked = debits.get(each.request, [])
        if each.usage is None:
            if booked:
                wrong.append(f"{each.request}: failed ({each.error}), and {booked[0].debited} tokens were debited")
            continue
        usage = each.usage
        tokens = (usage.input_tokens, len(each.ids), usage.input_tokens + len(each.ids))
        expected = Debit(*tokens)
        if booked != [expected] or usage.billed_tokens != expected.debited:
            wrong.append(f"{each.request}: {expected} was delivered, {usage.billed_tokens} billed, {booked} booked")
    known = {each.request for each in asked}
    wrong += [f"{request}: booked, and asked by nobody" for request in debits if request not in known]
    return wrong
