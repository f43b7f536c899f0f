"""May this request run? Everything is checked before a token is held. Pure but for the signature check's CPU time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.engine.prompt import ChatReader, PromptTokenizer, billed_input, prompt_ids
from sawyer.errors import BudgetTooSmall, MalformedMessage, NotAuthorised, RefusedError, UnknownModel
from sawyer.identity.envelope import check_signed
from sawyer.schemas.events import REQUEST_KIND, InferenceRequested, PricingPublished, TokensReserved
from sawyer.schemas.messages import InferRequest, NetworkReply
from sawyer.schemas.models import ModelLayout
from sawyer.schemas.signed import Signed

HOLD_MS: Final = 10 * 60 * 1000


@dataclass(frozen=True)
class Admitted:
    """The prompt's token ids, how many of them are billed (special tokens are free), and the reservation to ask for."""

    ids: list[int]
    input_tokens: int
    reservation: TokensReserved


def check_request(request: InferRequest, network: NetworkReply, model: str, now_ms: int) -> None:
    """Raises what `check_order` raises, and MalformedMessage for other parameters than the order commits to."""
    order = request.order.body
    if order.max_tokens != request.params.max_tokens or order.content != request.params.commitment(request.salt):
        raise MalformedMessage("the parameters are not the ones that the order commits to")
    check_order(request.order, network, model, now_ms)


def check_order(signed: Signed[InferenceRequested], network: NetworkReply, model: str, now_ms: int) -> None:
    """Raises the typed refusal of an order that is not whole: wrong network or model, expired, altered, unsigned."""
    order = signed.body
    if order.network != network.network:
        raise NotAuthorised(f"the order is for network {order.network}, this is {network.network}")
    if order.model != model:
        raise UnknownModel(f"this router serves {model}, not {order.model}")
    if order.expires_ms <= now_ms:
        raise RefusedError(
            "the order has expired", hint="Check the clock of the client's machine, then send a new one."
        )
    if signed.signature.by != order.account:
        raise NotAuthorised(f"the order names account {order.account}, and is signed by {signed.signature.by}")
    check_signed(signed, REQUEST_KIND)


def admit(
    request: InferRequest,
    network: NetworkReply,
    tokenizer: PromptTokenizer,
    layout: ModelLayout,
    now_ms: int,
    chat: ChatReader | None = None,
) -> Admitted:
    """Read and price: raises what `prompt_ids` and `priced` raise."""
    ids = prompt_ids(request.params, tokenizer, layout, chat)
    input_tokens = billed_input(ids, tokenizer.special)
    return Admitted(ids, input_tokens, priced(request.order, input_tokens, network, now_ms))


def priced(signed: Signed[InferenceRequested], input_tokens: int, network: NetworkReply, now_ms: int) -> TokensReserved:
    """What to hold for so many prompt tokens. Raises UnknownModel, RefusedError (another price sheet), BudgetTooSmall
    (over the order's own ceiling)."""
    order, sheet = signed.body, _sheet(network)
    if order.price_sheet != sheet_hash(sheet):
        raise RefusedError(
            f"the order names another price sheet than {sheet.sheet}, which is in force",
            hint="Ask for the network's prices again and send a new order.",
        )
    tokens = price_tokens(sheet, order.model, network.format_of(order.model), input_tokens, order.max_tokens)
    if tokens > order.token_ceiling:
        raise BudgetTooSmall(
            f"this request may cost {tokens} tokens, the order's ceiling is {order.token_ceiling}",
            hint="Raise the ceiling or ask for fewer tokens.",
        )
    return TokensReserved(
        network=order.network,
        request=signed,
        manifest=_manifest(network, order.model),
        input_tokens=input_tokens,
        tokens=tokens,
        expires_ms=now_ms + HOLD_MS,
    )


def _manifest(network: NetworkReply, model: str) -> str:
    for published in network.models:
        if published.model == model:
            return published.manifest
    raise UnknownModel(f"no model {model} is published here")


def _sheet(network: NetworkReply) -> PricingPublished:
    if network.pricing is None:
        raise RefusedError("the network has published no prices", hint="The operator must publish a price sheet first.")
    return network.pricing
