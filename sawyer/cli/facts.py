"""An entry of the book in a few words, for people. Pure; the fact itself is what `sawyer ledger show` prints."""

from __future__ import annotations

from typing import Final, assert_never

from sawyer.clock import iso
from sawyer.money import format_usd
from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    AccountOpened,
    BucketTokens,
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

SHORT: Final = 8
"""Characters of a request id or a digest that a line shows."""
ENDED: Final = {"stop": "", "length": "", "cancelled": " (cancelled)"}
"""How an answer ended, where that is worth a word."""

Request = TokensReserved | InferenceCompleted | ReservationVoided | ReservationExpired
Keys = NetworkFounded | KeyAdded | KeyRotated | KeyRevoked
Membership = ModelPublished | PricingPublished | NodeRegistered | AccountOpened
Budget = TokensGranted | TokensExpired | SubjectErased | SnapshotTaken


def summary(entry: Entry) -> str:
    """The fact in one line. A kind that this version does not know is only named."""
    body = entry.body
    if body is None:
        return "a kind that this version does not know"
    if isinstance(body, Request):
        return _of_request(body, entry.decided)
    if isinstance(body, Keys):
        return _of_keys(body)
    return _of_membership(body) if isinstance(body, Membership) else _of_budget(body)


def short(digest: str) -> str:
    """The first characters of a request id, a digest or a key."""
    return digest[:SHORT]


def _of_keys(body: Keys) -> str:
    match body:
        case NetworkFounded():
            return f"founded {body.network}, mode {body.mode}"
        case KeyAdded():
            if body.role != "router":
                return f"the {body.role} has a new key, {short(body.key)}"
            return f"{body.name} is a router, with key {short(body.key)}"
        case KeyRotated():
            return f"{body.role} {body.name} has a new key, {short(body.key)}"
        case KeyRevoked():
            since = f", in question since {iso(body.since_ms)}" if body.since_ms else ""
            return f"key {short(body.key)} revoked: {body.reason}{since}"
        case _:
            assert_never(body)


def _of_membership(body: Membership) -> str:
    match body:
        case ModelPublished():
            return f"{body.model} in {body.format}: {body.experts} experts, top {body.top_k}, {short(body.manifest)}"
        case PricingPublished():
            return f"price sheet {body.sheet} for {', '.join(f'{each.model} in {each.format}' for each in body.prices)}"
        case NodeRegistered():
            promise = f", promises {body.promised_us:,} us a call" if body.promised_us else ""
            return f"node {body.node} of host {body.host}" + (f" on {body.device}" if body.device else "") + promise
        case AccountOpened():
            return f"account {body.account}, with key {short(body.key)}"
        case _:
            assert_never(body)


def _of_budget(body: Budget) -> str:
    match body:
        case TokensGranted():
            paid = "no money moved" if body.mode == "test" else f"{format_usd(body.paid_uusd)} paid"
            tier = f", tier {body.tier}" if body.tier else ""
            return f"{_counted(body.tokens)} to {body.account}{tier} ({paid})"
        case TokensExpired():
            return f"{_counted(body.tokens)} of {body.account} expired with grant {body.grant}"
        case SnapshotTaken():
            return f"state of the first {body.size:,} entries, {short(body.digest)}"
        case SubjectErased():
            return f"what was sealed for {body.subject} can be read no more"
        case _:
            assert_never(body)


def _of_request(body: Request, decided: Decided) -> str:
    match body:
        case TokensReserved():
            order = body.request.body
            return f"{_counted(body.tokens)} of {order.account} held for {order.model}, request {short(order.request)}"
        case InferenceCompleted():
            order = body.request.body
            work = f"{body.input_tokens} in + {body.output_tokens} out of {order.model}{ENDED[body.finish]}"
            gone = _expired(decided)
            return f"{_tokens(decided.debited)} of {order.account} for {work}, request {short(order.request)}{gone}"
        case ReservationVoided():
            why = f"to {body.account}: {body.reason}, request {short(body.request)}"
            return f"{_tokens(decided.released)} given back {why}{_expired(decided)}"
        case ReservationExpired():
            why = f"to {body.account}: abandoned, request {short(body.request)}"
            return f"{_tokens(decided.released)} given back {why}{_expired(decided)}"
        case _:
            assert_never(body)


def _expired(decided: Decided) -> str:
    """What was given back to a grant that had expired."""
    return f"; {_tokens(decided.expired)} expired with the grant" if decided.expired else ""


def _tokens(parts: tuple[BucketTokens, ...] | None) -> str:
    return _counted(sum(part.tokens for part in parts or ()))


def _counted(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens:,} tokens"
