"""`decide`: whether a command may become the next entry, and what the ledger adds to it. Pure, total, deterministic.

Given the same state, command and time it gives the same decision: the writer decides with it, replay decides again.
Order of questions: which network, who may say it, was it said before, do the rules allow it. The rules are in
membership.py (network, keys, models, prices, nodes, accounts, grants) and billing.py (reserve, complete, void, expire).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from sawyer.economy.pricing import sheet_hash
from sawyer.errors import NotAuthorised, RefusedError, RequestConflict
from sawyer.ledger import billing, membership
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.state import State
from sawyer.schemas.events import (
    AccountOpened,
    Body,
    Decided,
    InferenceCompleted,
    KeyAdded,
    ModelPublished,
    NetworkFounded,
    NodeRegistered,
    PricingPublished,
    ReservationExpired,
    ReservationVoided,
    TokensGranted,
    TokensReserved,
)


@dataclass(frozen=True, slots=True)
class Decision:
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
    _authorise(state, command)
    stream, idem = place_of(body)
    earlier = state.entries.find(idem)
    if earlier is None:
        return Decision(stream, idem, _apply_rules(state, command, now_ms))
    if isinstance(body, TokensReserved):
        billing.check_repeat(state, body, command.signer.key_id)
        if billing.is_held(state, body, command.signer.key_id):
            return Decision(stream, idem, Decided(), repeated=True)
    if earlier.content != command.content:
        raise RequestConflict(
            f"entry {earlier.seq} says something else under the same key {idem}", details={"entry": str(earlier.seq)}
        )
    membership.check_still_current(state, body)
    return Decision(stream, idem, Decided(), repeated=True)


def place_of(body: Body) -> tuple[str, str]:
    """(stream, idempotency key) of a fact. Both follow from its body alone."""
    match body:
        case NetworkFounded():
            return "network:founding", "found:network"
        case KeyAdded():
            return "network:keys", f"key:{body.key}"
        case ModelPublished():
            return "network:models", f"model:{body.model}:{body.manifest[:16]}"
        case PricingPublished():
            return "network:pricing", f"pricing:{sheet_hash(body)[:16]}"
        case NodeRegistered():
            return f"node:{body.node}", f"node:{body.node}"
        case AccountOpened():
            return f"account:{body.account}", f"account:{body.account}"
        case TokensGranted():
            return f"account:{body.account}", f"grant:{body.grant}"
        case TokensReserved():
            return f"account:{body.request.body.account}", f"reserve:{body.request.body.request}"
        case InferenceCompleted():
            return f"account:{body.request.body.account}", f"complete:{body.request.body.request}"
        case ReservationVoided():
            return f"account:{body.account}", f"void:{body.request}"
        case ReservationExpired():
            return f"account:{body.account}", f"expire:{body.request}"
        case _:
            assert_never(body)


def _authorise(state: State, command: VerifiedCommand) -> None:
    body = command.body
    match body:
        case NetworkFounded():
            membership.authorise_founder(state, body, command.signer)
        case KeyAdded() | ModelPublished() | PricingPublished() | TokensGranted():
            membership.authorise_operator(state, command.signer)
        case NodeRegistered():
            membership.authorise_node(state, body, command.signer)
        case AccountOpened():
            membership.authorise_account(state, body, command.signer)
        case TokensReserved() | InferenceCompleted() | ReservationVoided():
            membership.authorise_router(state, command.signer)
        case ReservationExpired():
            membership.authorise_ledger(state, command.signer)
        case _:
            assert_never(body)


def _apply_rules(state: State, command: VerifiedCommand, now_ms: int) -> Decided:
    body = command.body
    match body:
        case TokensGranted():
            membership.check_grant(state, body)
        case TokensReserved():
            return billing.reserve(state, body, now_ms)
        case InferenceCompleted():
            return billing.complete(state, body, command.signer.key_id)
        case ReservationVoided():
            return billing.void(state, body, command.signer.key_id)
        case ReservationExpired():
            return billing.expire(state, body, now_ms)
        case KeyAdded():
            membership.check_key(body)
        case NetworkFounded() | ModelPublished() | PricingPublished() | NodeRegistered() | AccountOpened():
            pass
        case _:
            assert_never(body)
    return Decided()
