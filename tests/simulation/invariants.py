"""What must hold when a simulation is over, whatever happened in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from simulation.asking import Outcome
from simulation.founding import VKEY
from simulation.parts import key_of, open_book
from simulation.plan import ACCOUNTS

from sawyer.economy.pricing import price_tokens
from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    Busy,
    Cancelled,
    ExpertUnavailable,
    RequestConflict,
    SawyerError,
    UnreachableError,
)
from sawyer.ids import AccountId
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.replay import replay
from sawyer.projections.fold import Entry
from sawyer.schemas.events import InferenceCompleted, ReservationExpired, ReservationVoided, TokensReserved

if TYPE_CHECKING:
    from simulation.world import World

MAY_END_A_REQUEST: Final = (UnreachableError, ExpertUnavailable, BudgetTooSmall, Busy, Cancelled, AlreadyCompleted)
MAY_END_A_PROGRAM: Final = (UnreachableError,)
STOPPED: Final = "the router was stopped"


def judge(world: World, outcomes: list[Outcome]) -> list[str]:
    """Everything that does not hold."""
    entries = [decode_entry(row.state) for row in world.store.rows() if not row.is_checkpoint]
    return [
        *_outcomes(world, outcomes),
        *_bills(world, outcomes, entries),
        *_ends(entries),
        *_book(world, entries),
        *_programs(world),
    ]


def _outcomes(world: World, outcomes: list[Outcome]) -> Iterator[str]:
    for each in outcomes:
        who = f"request {each.request[:8]} of {each.asking.account}"
        if each.hung:
            yield f"{who} did not end"
        if each.params is not None:
            yield from (f"{who} {problem}" for problem in _text(world, each))
        error = each.error
        stopped = isinstance(error, SawyerError) and error.message == STOPPED
        ended_before = each.asking.local and each.once_more  # a session is no stream that can be read again
        forgotten = isinstance(error, RequestConflict) and (ended_before or _router_forgot(world))
        if error is not None and not isinstance(error, MAY_END_A_REQUEST) and not stopped and not forgotten:
            yield f"{who} ended with {error!r}"
        if stopped and not _router_forgot(world):
            yield f"{who} ended with a router that was never stopped"
        poor = world.plan.budget_tokens < 1000 and isinstance(error, BudgetTooSmall)
        cancelled = isinstance(error, Cancelled) and each.asking.ending != "reads"
        billed = ended_before and isinstance(error, AlreadyCompleted | RequestConflict)
        if world.plan.is_calm and error is not None and not poor and not cancelled and not billed:
            yield f"{who} failed in calm weather: {error!r}"


def _router_forgot(world: World) -> bool:
    """Whether a request may have been held, and even have failed, by a router that died before it said so: another one
    that is asked is refused by the ledger."""
    return any(fault.kind == "router_dies" for fault in world.plan.faults)


def _text(world: World, each: Outcome) -> Iterator[str]:
    """What was delivered begins as one machine's answer does, and is all of it unless somebody ended it."""
    assert each.params is not None
    expected = world.model.said_alone(each.params)
    text = "".join(each.pieces)
    if expected.ids[: len(each.ids)] != each.ids:
        yield f"was told {each.ids}, one machine says {expected.ids}"
    if not expected.text.startswith(text):
        yield f"was told {text!r}, one machine says {expected.text!r}"
    whole = each.usage is not None and each.finish != "cancelled"
    if whole and (each.ids, text) != (expected.ids, expected.text):
        yield f"was told {text!r} and a bill, one machine says {expected.text!r}"
    if each.usage is None:
        return
    if each.usage.output_tokens != len(each.ids):
        yield f"got {len(each.ids)} tokens and a bill for {each.usage.output_tokens}"
    top_k = world.model.artifacts.layout.top_k
    for trace in each.traces:
        rows = sum(call.rows for call in trace.calls)
        if rows != top_k * (_prompt_tokens(each) if trace.step == 0 else 1):
            yield f"was computed with {rows} rows in layer {trace.layer} of step {trace.step}"


def _prompt_tokens(each: Outcome) -> int:
    return len((each.asking.params.prompt or "").split())


def _bills(world: World, outcomes: list[Outcome], entries: list[Entry]) -> Iterator[str]:
    """Who is billed was told as many tokens, is billed once, and each row that was used is accounted for."""
    layout = world.model.artifacts.layout
    rows_per_token = len(layout.moe_layers) * layout.top_k
    posted = [(entry, entry.body) for entry in entries if isinstance(entry.body, InferenceCompleted)]
    asked = {each.request: each for each in outcomes}
    network = open_book(world.store).network(0)
    assert network.pricing is not None
    for entry, body in posted:
        request, debited = body.request.body.request, sum(part.tokens for part in entry.decided.debited or ())
        told = world.sent.ids(request)
        if body.output_tokens > told:
            yield f"request {request[:8]} is billed {body.output_tokens} tokens, and {told} were told"
        used = sum(each.body.rows for each in body.receipts) + sum(each.rows for each in body.unreceipted)
        if used != body.fed_tokens * rows_per_token:
            yield f"request {request[:8]} used {body.fed_tokens * rows_per_token} rows, and {used} are accounted for"
        model = body.request.body.model
        price = price_tokens(network.pricing, model, network.format_of(model), body.input_tokens, body.output_tokens)
        if debited != price:
            yield f"request {request[:8]} is debited {debited}, its price is {price}"
        if world.plan.is_calm and body.unreceipted:
            yield f"request {request[:8]} has rows without a receipt in calm weather: {body.unreceipted}"
        if request not in asked:
            yield f"request {request[:8]} is billed, and nobody asked for it"
    entry_of = {body.request.body.request: entry.seq for entry, body in posted}
    for each in outcomes:
        if each.usage is not None and each.usage.output_tokens and each.usage.entry != entry_of.get(each.request):
            yield f"request {each.request[:8]} was told entry {each.usage.entry}, it is {entry_of.get(each.request)}"
    for each in sorted({each for each in entry_of if [b.request.body.request for _, b in posted].count(each) > 1}):
        yield f"request {each[:8]} is billed more than once"


def _ends(entries: list[Entry]) -> Iterator[str]:
    """Every hold was posted, voided or expired, once, before another was made for its request."""
    held: set[str] = set()
    for entry in entries:
        match entry.body:
            case TokensReserved(request=order):
                if order.body.request in held:
                    yield f"request {order.body.request[:8]} is held twice"
                held.add(order.body.request)
            case InferenceCompleted(request=order):
                if order.body.request not in held:
                    yield f"request {order.body.request[:8]} is posted without a hold"
                held.discard(order.body.request)
            case ReservationVoided(request=request) | ReservationExpired(request=request):
                if request not in held:
                    yield f"request {request[:8]} is ended without a hold"
                held.discard(request)
    yield from (f"the hold of request {request[:8]} never ended" for request in sorted(held))


def _book(world: World, entries: list[Entry]) -> Iterator[str]:
    report = replay(_Rows(list(world.store.rows())), key=VKEY, operator=key_of("operator").id, workers=1)
    if not report.ok or report.entries != len(entries):
        yield f"the book does not replay: {report.problem}"
    book, now_ms = open_book(world.store), world.clock.now_ms()
    for name in ACCOUNTS:
        balance = book.balance(AccountId(name), now_ms)
        if balance.held or balance.available + balance.consumed != balance.granted:
            yield f"the balance of {name} does not add up: {balance}"


def _programs(world: World) -> Iterator[str]:
    for program in world.programs.values():
        for problem in program.problems:
            if not isinstance(problem, MAY_END_A_PROGRAM):
                yield f"{program.name} ended: {problem!r}"


class _Rows:
    """A store's rows, as replay reads them."""

    def __init__(self, rows: list[StoredRow]) -> None:
        self._rows = rows

    def size_rows(self) -> int:
        return len(self._rows)

    def rows(self) -> Iterator[StoredRow]:
        yield from self._rows
