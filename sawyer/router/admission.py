"""May this request run? Everything is checked before a token is held. Pure but for the signature check's CPU time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.errors import (
    BudgetTooSmall,
    MalformedMessage,
    NoChatTemplate,
    NotAuthorised,
    PromptEmpty,
    PromptTooLong,
    RefusedError,
    UnknownModel,
)
from sawyer.identity.envelope import check_signed
from sawyer.schemas.events import MAX_FREE_TOKENS, REQUEST_KIND, PricingPublished, TokensReserved
from sawyer.schemas.generation import ChatMessage, GenerateParams
from sawyer.schemas.messages import InferRequest, NetworkReply
from sawyer.schemas.models import ModelLayout

MAX_CHARS_A_TOKEN: Final = 128
"""No token of the vocabularies we know stands for more: a longer prompt is refused before it is tokenized."""
HOLD_MS: Final = 10 * 60 * 1000


class PromptTokenizer(Protocol):
    """What admission asks of a model's tokenizer: the ids of a prompt, and which ids are special."""

    special: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt."""


class ChatReader(Protocol):
    """What admission asks of a model that was taught to read conversations."""

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        """The ids of a conversation, up to where an answer begins. Raises ConversationRefused, PromptTooLong,
        ChatTemplateBroken."""


@dataclass(frozen=True)
class Admitted:
    """The prompt's token ids, how many of them are billed (special tokens are free), and the reservation to ask for."""

    ids: list[int]
    input_tokens: int
    reservation: TokensReserved


def check_order(request: InferRequest, network: NetworkReply, model: str, now_ms: int) -> None:
    """Raises the typed refusal of an order that is not whole: wrong network or model, expired, altered, unsigned."""
    order = request.order.body
    if order.network != network.network:
        raise NotAuthorised(f"the order is for network {order.network}, this is {network.network}")
    if order.model != model:
        raise UnknownModel(f"this router serves {model}, not {order.model}")
    if order.expires_ms <= now_ms:
        raise RefusedError(
            "the order has expired", hint="Check the clock of the client's machine, then send a new one."
        )
    if order.max_tokens != request.params.max_tokens or order.content != request.params.commitment(request.salt):
        raise MalformedMessage("the parameters are not the ones that the order commits to")
    if request.order.signature.by != order.account:
        raise NotAuthorised(f"the order names account {order.account}, and is signed by {request.order.signature.by}")
    check_signed(request.order, REQUEST_KIND)


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
    return priced(request, ids, network, tokenizer, now_ms)


def prompt_ids(
    params: GenerateParams, tokenizer: PromptTokenizer, layout: ModelLayout, chat: ChatReader | None = None
) -> list[int]:
    """What the model is shown. `chat`: None for a model without a chat template. Raises PromptEmpty, PromptTooLong,
    NoChatTemplate, what reading a conversation raises."""
    ids = _prompt_ids(params, tokenizer, chat, layout.context)
    if len(ids) + params.max_tokens > layout.context:
        raise PromptTooLong(
            f"{len(ids)} prompt tokens and {params.max_tokens} new ones are over the context of {layout.context}",
            details={"prompt_tokens": str(len(ids)), "context": str(layout.context)},
        )
    return ids


def priced(
    request: InferRequest, ids: list[int], network: NetworkReply, tokenizer: PromptTokenizer, now_ms: int
) -> Admitted:
    """What to hold for a prompt of these ids. Raises UnknownModel, RefusedError (another price sheet), BudgetTooSmall
    (over the order's own ceiling)."""
    params, order = request.params, request.order.body
    sheet = _sheet(network)
    if order.price_sheet != sheet_hash(sheet):
        raise RefusedError(
            f"the order names another price sheet than {sheet.sheet}, which is in force",
            hint="Ask for the network's prices again and send a new order.",
        )
    input_tokens = billed_input(ids, tokenizer.special)
    tokens = price_tokens(sheet, order.model, network.format_of(order.model), input_tokens, params.max_tokens)
    if tokens > order.token_ceiling:
        raise BudgetTooSmall(
            f"this request may cost {tokens} tokens, the order's ceiling is {order.token_ceiling}",
            hint="Raise the ceiling or ask for fewer tokens.",
        )
    reservation = TokensReserved(
        network=order.network,
        request=request.order,
        manifest=_manifest(network, order.model),
        input_tokens=input_tokens,
        tokens=tokens,
        expires_ms=now_ms + HOLD_MS,
    )
    return Admitted(ids, input_tokens, reservation)


def _prompt_ids(params: GenerateParams, tokenizer: PromptTokenizer, chat: ChatReader | None, context: int) -> list[int]:
    most_chars = MAX_CHARS_A_TOKEN * context
    if not params.characters:
        raise PromptEmpty("the prompt is empty" if params.messages is None else "nothing is said in the conversation")
    if params.characters > most_chars:
        raise PromptTooLong(f"{params.characters} characters are over the context of {context} tokens")
    if params.messages is not None and chat is None:
        raise NoChatTemplate("this model has no chat template")
    if params.messages is not None and chat is not None:
        ids = chat.encode(params.messages, most_chars)
    else:
        ids = tokenizer.encode(params.prompt or "")
    if not ids:
        raise PromptEmpty("the prompt holds no token of this model")
    return ids


def billed_input(ids: list[int], special: frozenset[int]) -> int:
    """How many prompt tokens are billed: special tokens are free, but for so many of them that the ledger would refuse
    the bill (a prompt may spell them out). One is kept for the end token of the answer."""
    plain = sum(each not in special for each in ids)
    return max(1, plain, len(ids) - (MAX_FREE_TOKENS - 1))


def _manifest(network: NetworkReply, model: str) -> str:
    for published in network.models:
        if published.model == model:
            return published.manifest
    raise UnknownModel(f"no model {model} is published here")


def _sheet(network: NetworkReply) -> PricingPublished:
    if network.pricing is None:
        raise RefusedError("the network has published no prices", hint="The operator must publish a price sheet first.")
    return network.pricing
