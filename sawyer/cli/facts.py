"""An entry of the book in a few words, for people. Pure; the fact itself is what `sawyer ledger show` prints."""

from __future__ import annotations

from typing import Final, assert_never

from sawyer.money import format_usd
from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    AccountOpened,
    BucketTokens,
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

SHORT: Final = 8
"""Characters of a request id or a digest that a line shows."""


Request = TokensReserved | InferenceCompleted | ReservationVoided | ReservationExpired
Membership = (
    NetworkFounded | KeyAdded | ModelPublished | PricingPublished | NodeRegistered | AccountOpened | TokensGranted
)


def summary(entry: Entry) -> str:
    """The fact in one line. A kind that this version does not know is only named."""
    body = entry.body
    if body is None:
        return "a kind that this version does not know"
    return _of_request(body, entry.decided) if isinstance(body, Request) else _of_membership(body)


def concerns(stream: str, account: str) -> bool:
    """Whether the entries of a stream are an account's: its opening, grants and requests."""
    return stream == f"account:{account}"


def _of_membership(body: Membership) -> str:
    match body:
        case NetworkFounded():
            return f"founded {body.network}, mode {body.mode}"
        case KeyAdded():
            return f"{body.name} is a {body.role}, with key {_short(body.key)}"
        case ModelPublished():
            return f"{body.model} in {body.format}: {body.experts} experts, top {body.top_k}, {_short(body.manifest)}"
        case PricingPublished():
            return f"price sheet {body.sheet} for {', '.join(each.model for each in body.prices)}"
        case NodeRegistered():
            return f"node {body.node} of host {body.host}" + (f" on {body.device}" if body.device else "")
        case AccountOpened():
            return f"account {body.account}, with key {_short(body.key)}"
        case TokensGranted():
            paid = "no money moved" if body.mode == "test" else f"{format_usd(body.paid_uusd)} paid"
            return f"{body.tokens:,} tokens to {body.account} ({paid})"
        case _:
            assert_never(body)


def _of_request(body: Request, decided: Decided) -> str:
    match body:
        case TokensReserved():
            order = body.request.body
            return f"{body.tokens:,} tokens of {order.account} held for {order.model}, request {_short(order.request)}"
        case InferenceCompleted():
            order, ended = body.request.body, _ENDED[body.finish]
            work = f"{body.input_tokens} in + {body.output_tokens} out of {order.model}{ended}"
            return f"{_tokens(decided.debited)} of {order.account} for {work}, request {_short(order.request)}"
        case ReservationVoided():
            why = f"to {body.account}: {body.reason}, request {_short(body.request)}"
            return f"{_tokens(decided.released)} given back {why}"
        case ReservationExpired():
            why = f"to {body.account}: abandoned, request {_short(body.request)}"
            return f"{_tokens(decided.released)} given back {why}"
        case _:
            assert_never(body)


_ENDED: Final = {"stop": "", "length": "", "cancelled": " (cancelled)"}


def _tokens(parts: tuple[BucketTokens, ...] | None) -> str:
    return f"{sum(part.tokens for part in parts or ()):,} tokens"


def _short(digest: str) -> str:
    return digest[:SHORT]
