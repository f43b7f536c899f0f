"""`decide`: whether a command may become the next entry, and what the ledger adds to it. Pure, total, deterministic.

Given the same state, command and time it gives the same decision: the writer decides with it, replay decides again.
Order of questions: which network, did this key say it before, who may say it, do the rules allow it. The rules are in
membership.py (network, keys, models, prices, nodes, accounts, grants) and billing.py (reserve, complete, void, expire).
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final, assert_never

import msgspec

from sawyer.economy.pricing import sheet_hash
from sawyer.errors import NotAuthorised, RefusedError, RequestConflict
from sawyer.ledger import billing, membership
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.state import State
from sawyer.projections.balances import COMPLETED, EXPIRED, VOIDED
from sawyer.schemas.events import (
    REQUEST_STREAM,
    AccountOpened,
    Body,
    Decided,
    InferenceCompleted,
    KeyAdded,
    KeyRevoked,
    KeyRotated,
    ModelPublished,
    NetworkFounded,
    NodeRegistered,
    PricingPublished,
    ReservationExpired,
    ReservationVoided,
    SnapshotTaken,
    SubjectErased,
    TokensExpired,
    TokensGranted,
    TokensReserved,
)

SNAPSHOT_STREAM: Final = "ledger:snapshots"
OfRequest = (TokensReserved, InferenceCompleted, ReservationVoided, ReservationExpired)
RequestBody = TokensReserved | InferenceCompleted | ReservationVoided | ReservationExpired
_ENDS: Final[dict[type, str]] = {
    InferenceCompleted: COMPLETED, ReservationVoided: VOIDED, ReservationExpired: EXPIRED,
}  # fmt: skip


class Decision(msgspec.Struct, frozen=True, gc=False):
    """A new entry: its stream, its idempotency key, and what the ledger adds. `repeated`: this very command stands in
    the book already, under this key, and nothing new is written."""

    stream: str
    idem: str
    decided: Decided
    repeated: bool = False


def decide(state: State, command: VerifiedCommand, now_ms: int) -> Decision:
    """Judge one command at one position of the book. Raises a RefusedError that says why not."""
    body = command.body
    if body.network != state.network:
        raise NotAuthorised(f"this is the book of {state.network}, and the command is for {body.network}")
    if state.registry.network is None and not isinstance(body, NetworkFounded):
        raise RefusedError("this network is not founded yet", hint="`sawyer up` founds one.")
    stream, idem = place_of(body)
    if isinstance(body, OfRequest):
        _authorise(state, command)
        return _decide_request(state, command, body, stream, idem, now_ms)
    earlier = state.entries.find(idem)
    content = command.content if earlier is not None else ""
    if earlier is None or (earlier.content, earlier.signer) != (content, command.signer.key_id):
        _authorise(state, command)  # who said it is told so again, though another key may say such things by now
    if earlier is None:
        return Decision(stream, idem, _apply_rules(state, body, now_ms))
    if earlier.content != content and not isinstance(body, AccountOpened):  # an account may have another key by now
        raise _other_content(earlier.seq, idem)
    membership.check_still_current(state, body)
    return Decision(stream, idem, Decided(), repeated=True)


def _decide_request(
    state: State, command: VerifiedCommand, body: RequestBody, stream: str, idem: str, now_ms: int
) -> Decision:
    """A request is reserved for once, and ends once. Its row, open or ended, knows the content of both."""
    router = command.signer.key_id
    if isinstance(body, TokensReserved):
        row = state.request(body.request.body.request)
        if row is None:
            return Decision(stream, idem, billing.reserve(state, body, now_ms))
        billing.check_repeat(row, body, router)
        if row.reserved != command.content and not billing.is_held(row, body, router):
            raise _other_content(row.seq, idem)
        return Decision(stream, idem, Decided(), repeated=True)
    row = state.request(body.request.body.request if isinstance(body, InferenceCompleted) else body.request)
    if row is not None and row.status == _ENDS[type(body)]:
        if row.ended != command.content:
            raise _other_content(row.seq, idem)
        return Decision(stream, idem, Decided(), repeated=True)
    if isinstance(body, InferenceCompleted):
        order = sha256(command.inner[-1]).hexdigest()
        return Decision(stream, idem, billing.complete(state, row, body, order, router, now_ms))
    if isinstance(body, ReservationVoided):
        return Decision(stream, idem, billing.void(state, row, body, router, now_ms))
    return Decision(stream, idem, billing.expire(state, row, body, now_ms))


def _other_content(seq: int, idem: str) -> RequestConflict:
    return RequestConflict(f"entry {seq} says something else under the same key {idem}", details={"entry": str(seq)})


def place_of(body: Body) -> tuple[str, str]:
    """(stream, idempotency key) of a fact. Both follow from its body alone."""
    return _PLACES[type(body)](body)


_PLACES: Final[dict[type, Callable[[Any], tuple[str, str]]]] = {
    NetworkFounded: lambda _: ("network:founding", "found:network"),
    KeyAdded: lambda fact: ("network:keys", f"key:{fact.key}"),
    KeyRotated: lambda fact: (f"{fact.role}:{fact.name}", f"rotate:{fact.key}"),
    KeyRevoked: lambda fact: ("network:keys", f"revoke:{fact.key}:{fact.since_ms}"),
    ModelPublished: lambda fact: ("network:models", publication_id(fact.model, fact.manifest)),
    PricingPublished: lambda fact: ("network:pricing", f"pricing:{sheet_hash(fact)[:16]}"),
    NodeRegistered: lambda fact: (f"node:{fact.node}", f"node:{fact.node}"),
    AccountOpened: lambda fact: (f"account:{fact.account}", f"account:{fact.account}"),
    TokensGranted: lambda fact: (f"account:{fact.account}", f"grant:{fact.grant}"),
    TokensExpired: lambda fact: (f"account:{fact.account}", f"lapse:{fact.grant}"),
    TokensReserved: lambda fact: _place_of_request("reserve", fact.request.body.request),
    InferenceCompleted: lambda fact: _place_of_request("complete", fact.request.body.request),
    ReservationVoided: lambda fact: _place_of_request("void", fact.request),
    ReservationExpired: lambda fact: _place_of_request("expire", fact.request),
    SnapshotTaken: lambda fact: (SNAPSHOT_STREAM, f"snapshot:{fact.size}"),
    SubjectErased: lambda fact: (f"account:{fact.subject}", f"erase:{fact.subject}"),
}


def publication_id(model: str, manifest: str) -> str:
    """What makes the publication of these weights one fact, however often it is said."""
    return f"model:{model}:{manifest[:16]}"


def _place_of_request(what: str, request: str) -> tuple[str, str]:
    return f"{REQUEST_STREAM}{request}", f"{what}:{request}"


def _authorise(state: State, command: VerifiedCommand) -> None:
    body, signer = command.body, command.signer
    match body:
        case TokensReserved() | InferenceCompleted() | ReservationVoided():
            membership.authorise_router(state, signer)
        case NetworkFounded():
            membership.authorise_founder(state, body, signer)
        case KeyAdded() | ModelPublished() | PricingPublished() | TokensGranted() | SubjectErased():
            membership.authorise_operator(state, signer)
        case KeyRotated():
            membership.authorise_rotation(state, body, command.attestations)
        case KeyRevoked():
            membership.authorise_revocation(state, body, signer)
        case NodeRegistered():
            membership.authorise_node(state, body, signer)
        case AccountOpened():
            membership.authorise_account(state, body, signer)
        case ReservationExpired() | TokensExpired() | SnapshotTaken():
            membership.authorise_ledger(state, signer)
        case _:
            assert_never(body)


def _apply_rules(state: State, body: Body, now_ms: int) -> Decided:
    """Rules of facts that are not about one request. None of them moves tokens of a hold, so the ledger adds
    nothing."""
    match body:
        case TokensGranted():
            membership.check_grant(state, body)
        case TokensExpired():
            membership.check_lapse(state, body, now_ms)
        case KeyAdded():
            membership.check_added_key(state, body)
        case PricingPublished():
            membership.check_prices(body)
        case SnapshotTaken():
            membership.check_snapshot(state, body)
        case SubjectErased():
            membership.check_erasure(state, body)
        case _:
            pass
    return Decided()
