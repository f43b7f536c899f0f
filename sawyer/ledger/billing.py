"""Rules of a request's tokens: reserve before any work, then exactly one of post, void, expire. Pure; part of decide.

Source of the numbers: docs/token-economics.md, rules 3 to 9.
"""

from __future__ import annotations

from typing import Final

from sawyer.economy import buckets, credits
from sawyer.economy.pricing import price_tokens
from sawyer.errors import (
    AlreadyCompleted,
    BudgetTooSmall,
    NotAuthorised,
    RefusedError,
    RequestConflict,
    UnknownAccount,
    UnknownModel,
    WrongManifest,
)
from sawyer.ledger.membership import refuse_revoked
from sawyer.ledger.state import State
from sawyer.projections.balances import COMPLETED, HELD, RequestRow, order_hash, parts_of
from sawyer.projections.nodes import NodeRow
from sawyer.schemas.base import MAX_SAFE_INTEGER
from sawyer.schemas.events import (
    MAX_FREE_TOKENS,
    BucketTokens,
    Decided,
    HostCredit,
    InferenceCompleted,
    InferenceRequested,
    ModelPublished,
    PricingPublished,
    ReservationExpired,
    ReservationVoided,
    TokensReserved,
    WorkReceipted,
)
from sawyer.schemas.signed import Signed

HOLD_LIMIT_MS: Final = 600_000
"""An abandoned hold expires after 10 minutes."""
ORDER_LIMIT_MS: Final = 3_600_000
"""An order is good for an hour at most: it pins a price, and a copy of it is worth nothing after that."""
CLOCK_SLACK_MS: Final = 60_000
"""How far a router's or a client's clock may be ahead of the ledger's."""


def check_repeat(row: RequestRow, body: TokensReserved, router: str) -> None:
    """A reserve is a repeat for the router whose hold is open, and for nobody else. Raises AlreadyCompleted (with the
    bill) if the client sends the content of a completed request again, perhaps signed anew; RequestConflict if it was
    voided or expired; NotAuthorised for a second router, which would serve the request on the first one's hold."""
    order = body.request.body
    if (row.account, row.content) != (order.account, order.content):
        return
    if row.status != HELD:
        raise _ended(row)
    if row.router != router:
        raise _of_another_router(row)


def is_held(row: RequestRow, body: TokensReserved, router: str) -> bool:
    """The same router holds exactly this for the same order already, perhaps until another time: it was started anew,
    and its client has sent the order again. The hold that stands keeps its end."""
    return (row.status, row.router, row.order, row.manifest, row.input_tokens) == (
        HELD, router, order_hash(body.request), body.manifest, body.input_tokens,
    ) and sum(tokens for _, tokens in row.held) == body.tokens  # fmt: skip


def reserve(state: State, body: TokensReserved, now_ms: int) -> Decided:
    """Hold the price of the counted input and the most output, from the buckets that expire first."""
    order = body.request.body
    _check_order(state, body.request, now_ms)
    _check_manifest(state, body)
    fmt = state.registry.manifests[order.model, body.manifest].format
    price = price_tokens(_sheet_in_force(state, order), order.model, fmt, body.input_tokens, order.max_tokens)
    if body.tokens != price:
        raise RefusedError(
            f"{body.input_tokens} tokens in and at most {order.max_tokens} out cost {price}, not {body.tokens}",
            details={"needed": str(price)},
        )
    if price > order.token_ceiling:
        raise BudgetTooSmall(
            f"the request may cost {price} tokens, and the client allows {order.token_ceiling}",
            hint="Ask for fewer tokens, or raise the token ceiling.",
            details={"needed": str(price), "available": str(order.token_ceiling)},
        )
    if not now_ms < body.expires_ms <= now_ms + HOLD_LIMIT_MS + CLOCK_SLACK_MS:
        raise RefusedError(f"a hold ends within {HOLD_LIMIT_MS} ms from now, got {body.expires_ms - now_ms} ms")
    held = buckets.take(state.balances.buckets(order.account), price, now_ms)
    if held is None:
        available = state.balances.available(order.account, now_ms)
        raise BudgetTooSmall(
            f"the request may cost {price} tokens, and account {order.account} has {available}",
            details={"needed": str(price), "available": str(available)},
        )
    return Decided(held=held)


def complete(
    state: State, found: RequestRow | None, body: InferenceCompleted, order_hash: str, router: str, now_ms: int
) -> Decided:
    """Post a hold: debit what was used, release the rest, credit the hosts whose receipts hold. `order_hash`: of the
    client's signed order in it (balances.order_hash)."""
    order = body.request.body
    row = _held_request(found, order.request, order.account, router)
    if row.order != order_hash:
        raise RequestConflict(
            "the client's order is not the one that was reserved for", details={"request": order.request}
        )
    if body.input_tokens != row.input_tokens:
        raise RefusedError(f"reserved for {row.input_tokens} input tokens, completed with {body.input_tokens}")
    if body.output_tokens > order.max_tokens:
        raise RefusedError(f"the client ordered at most {order.max_tokens} tokens, got {body.output_tokens}")
    sheet, model = state.registry.sheets[order.price_sheet], state.registry.manifests[order.model, row.manifest]
    billed = price_tokens(sheet, order.model, model.format, body.input_tokens, body.output_tokens)
    debited, released = buckets.post(row.held, billed)
    _check_rows(body, model)
    released, expired = _split_expired(state, released, now_ms)
    return Decided(debited=debited, released=released, expired=expired, credits=_credits(state, body, model))


def void(state: State, row: RequestRow | None, body: ReservationVoided, router: str, now_ms: int) -> Decided:
    """Give a hold back whole: nothing is billed."""
    return _release(state, _held_request(row, body.request, body.account, router), now_ms)


def expire(state: State, found: RequestRow | None, body: ReservationExpired, now_ms: int) -> Decided:
    """Give an abandoned hold back whole, not before its time."""
    row = _held_request(found, body.request, body.account, router=None)
    if now_ms < row.expires_ms:
        raise RefusedError(f"the hold runs until {row.expires_ms}, and it is {now_ms}")
    return _release(state, row, now_ms)


def _release(state: State, row: RequestRow, now_ms: int) -> Decided:
    released, expired = _split_expired(state, parts_of(row.held), now_ms)
    return Decided(released=released, expired=expired)


def _split_expired(
    state: State, released: tuple[BucketTokens, ...], now_ms: int
) -> tuple[tuple[BucketTokens, ...], tuple[BucketTokens, ...] | None]:
    """(released, expired): what goes back to a grant that has expired meanwhile is gone with it."""
    gone = None
    for part in released:
        bucket = state.balances.bucket(part.grant)
        if bucket is not None and bucket.expires_ms <= now_ms:
            gone = (*(gone or ()), part)
    return (tuple(part for part in released if part not in gone), gone) if gone else (released, None)


def _check_order(state: State, signed: Signed[InferenceRequested], now_ms: int) -> None:
    order, signature = signed.body, signed.signature
    account = state.balances.account(order.account)
    if account is None:
        raise UnknownAccount(f"no account {order.account}", details={"account": order.account})
    if signature.key_id != account.key or signature.by != order.account:
        raise NotAuthorised(f"the order is signed by {signature.key_id}, not by the key of account {order.account}")
    refuse_revoked(state, signature.key_id)
    if order.network != state.network:
        raise NotAuthorised(f"the order is for network {order.network}")
    if order.expires_ms <= now_ms:
        raise RefusedError(f"the order expired {now_ms - order.expires_ms} ms ago", hint="Sign a new request.")
    if order.issued_ms > now_ms + CLOCK_SLACK_MS:
        raise RefusedError(
            f"the order was issued {order.issued_ms - now_ms} ms from now",
            hint="Set the clock of the client's machine.",
        )
    if order.expires_ms - order.issued_ms > ORDER_LIMIT_MS:
        raise RefusedError(
            f"an order is good for {ORDER_LIMIT_MS} ms at most, got {order.expires_ms - order.issued_ms} ms",
            hint="Sign a request that expires sooner.",
        )
    if order.model not in state.registry.models:
        raise UnknownModel(f"no model {order.model} is published here", details={"model": order.model})


def _check_manifest(state: State, body: TokensReserved) -> None:
    """The router runs the newest published weights. Raises WrongManifest."""
    model = body.request.body.model
    newest = state.registry.models[model].manifest
    if body.manifest != newest:
        raise WrongManifest(
            f"reserved for manifest {body.manifest[:16]}, the newest of model {model} is {newest[:16]}",
            hint="The router must serve the weights that the network publishes: start it with those.",
            details={"manifest": newest},
        )


def _sheet_in_force(state: State, order: InferenceRequested) -> PricingPublished:
    """The prices that the client saw when it signed: the newest, or replaced only after that. Raises RefusedError."""
    sheet = state.registry.sheets.get(order.price_sheet)
    ended_ms = state.registry.superseded_ms(order.price_sheet)
    if sheet is not None and (not ended_ms or order.issued_ms <= ended_ms):
        return sheet
    why = "was replaced before the order was signed" if sheet is not None else "is not published here"
    raise RefusedError(
        f"price sheet {order.price_sheet[:16]} {why}",
        hint="Ask the network for its current prices, and sign the request again.",
        details={"price_sheet": order.price_sheet},
    )


def _held_request(row: RequestRow | None, request: str, account: str, router: str | None) -> RequestRow:
    """The open hold of this request. Raises RefusedError if there is none, if it ended, or if another router's."""
    if row is None or row.account != account:
        raise RefusedError(f"account {account} has no reservation for request {request}", details={"request": request})
    if row.status != HELD:
        raise _ended(row)
    if router is not None and row.router != router:
        raise _of_another_router(row)
    return row


def _of_another_router(row: RequestRow) -> RefusedError:
    return NotAuthorised("another router reserved for this request", details={"router": row.router})


def _ended(row: RequestRow) -> RefusedError:
    if row.status == COMPLETED:
        return AlreadyCompleted(
            f"completed and billed in entry {row.seq}",
            details={
                "entry": str(row.seq),
                "input_tokens": str(row.input_tokens),
                "output_tokens": str(row.output_tokens),
                "billed_tokens": str(row.billed_tokens),
            },
        )
    return RequestConflict(f"the reservation was {row.status} in entry {row.seq}", details={"entry": str(row.seq)})


def _check_rows(body: InferenceCompleted, model: ModelPublished) -> None:
    """Every row that the request cost is receipted or listed as not; each node in one of the two, once. What was fed to
    the model is what was counted, but for the last token sampled and a few special ones that are free."""
    counted = body.input_tokens + body.output_tokens - 1
    if not counted <= body.fed_tokens <= counted + MAX_FREE_TOKENS:
        raise RefusedError(
            f"{counted} counted tokens were fed, and at most {MAX_FREE_TOKENS} free ones, got {body.fed_tokens}",
            details={"expected": str(counted)},
        )
    named = [receipt.body.node for receipt in body.receipts] + [part.node for part in body.unreceipted]
    if len(set(named)) != len(named):
        raise RefusedError("a node stands in one receipt or in the unreceipted rows, once")
    rows = sum([receipt.body.rows for receipt in body.receipts]) + sum([part.rows for part in body.unreceipted])
    expected = credits.rows_of(body.fed_tokens, moe_layers=model.moe_layers, top_k=model.top_k)
    if rows != expected:
        raise RefusedError(
            f"the request cost {expected} expert rows, receipts and unreceipted rows add up to {rows}",
            details={"expected": str(expected), "rows": str(rows)},
        )


def _credits(state: State, body: InferenceCompleted, model: ModelPublished) -> tuple[HostCredit, ...]:
    for part in body.unreceipted:
        _node(state, part.node)
    if [each.node for each in body.latencies] != [receipt.body.node for receipt in body.receipts]:
        raise RefusedError("latencies are of the nodes that have a receipt, in order of the receipts")
    order = body.request.body
    served = (order.network, order.request, order.model, model.manifest)
    paired = zip(body.receipts, body.latencies, strict=True)
    return tuple([_credit(state, receipt, served, model, each.p95_us) for receipt, each in paired])


def _credit(
    state: State,
    receipt: Signed[WorkReceipted],
    served: tuple[str, str, str, str],
    model: ModelPublished,
    measured_us: int,
) -> HostCredit:
    """`served`: network, request, model and manifest that the work was for."""
    body, signature = receipt.body, receipt.signature
    node = _node(state, body.node)
    if signature.key_id != node.key or signature.by != body.node:
        raise _bad_receipt(body, f"is signed by {signature.by} with {signature.key_id}")
    if node.key in state.registry.revoked:
        raise _bad_receipt(body, "is signed with a key that was revoked")
    if (body.network, body.request, body.model, body.manifest) != served:
        raise _bad_receipt(body, _other_work(body, served))
    if sum([rows for _, _, rows in body.experts]) != body.rows:
        raise _bad_receipt(body, f"says {body.rows} rows, and its experts add up to another number")
    unfit = node.refuses(receipt)
    if unfit:
        raise _bad_receipt(body, unfit)
    work = credits.work_of(body.rows, model.expert_parameters)
    if work > MAX_SAFE_INTEGER:
        raise _bad_receipt(body, "is for more work than one entry can hold")
    return HostCredit(
        host=node.host,
        node=body.node,
        rows=body.rows,
        work=work,
        sla_milli=credits.sla_milli(measured_us, node.promised_us),
        measured_us=measured_us,
        promised_us=node.promised_us,
    )


def _other_work(body: WorkReceipted, served: tuple[str, str, str, str]) -> str:
    if (body.network, body.request, body.model) != served[:3]:
        return f"is for request {body.request} of model {body.model}"
    return f"is over manifest {body.manifest[:16]}, reserved for {served[3][:16]}"


def _node(state: State, node: str) -> NodeRow:
    row = state.nodes.nodes.get(node)
    if row is None:
        raise NotAuthorised(f"node {node} is not registered", details={"node": node})
    return row


def _bad_receipt(body: WorkReceipted, why: str) -> NotAuthorised:
    return NotAuthorised(
        f"the receipt of node {body.node} {why}",
        hint="List this node's rows as unreceipted: they earn nothing.",
        details={"node": body.node},
    )
