"""May this request run? Every refusal is typed and comes before a token is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from sawyer.economy.pricing import sheet_hash
from sawyer.engine.prompt import MAX_CHARS_A_TOKEN
from sawyer.errors import (
    BadSignature,
    BudgetTooSmall,
    ConversationRefused,
    MalformedMessage,
    NoChatTemplate,
    NotAuthorised,
    PromptEmpty,
    PromptTooLong,
    RefusedError,
    UnknownModel,
)
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.router.admission import HOLD_MS, admit, check_request
from sawyer.schemas.base import Fact
from sawyer.schemas.events import REQUEST_KIND, InferenceRequested, PricingPublished
from sawyer.schemas.generation import ChatMessage, GenerateParams
from sawyer.schemas.messages import InferRequest, NetworkReply

NETWORK, MODEL, REQUEST, SALT = "sawyer-net/3f9a1c22", "austen", "0f" * 16, "5a" * 32
NOW_MS = 1_700_000_000_000
CONTEXT = 40
PARAMS = GenerateParams(prompt="Emma was", max_tokens=3)

Build = Callable[..., InferRequest]


class Letters:
    """One token a character; `^` is special and free."""

    special = frozenset({ord("^")})

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


LAYOUT: Any = SimpleNamespace(context=CONTEXT)
TOKENIZER: Any = Letters()


@pytest.fixture
def network(event_examples: dict[str, Fact]) -> NetworkReply:
    founded: Any = event_examples["network.founded.v1"]
    return NetworkReply(
        network=NETWORK, ledger_vkey=founded.ledger_vkey, operator=founded.operator, successors=(),
        mode="test", models=(event_examples["model.published.v1"],), pricing=event_examples["pricing.published.v1"],
        size=5, checkpoint="a signed note", now_ms=1,
    )  # fmt: skip


@pytest.fixture
def build(keys: dict[str, Key], event_examples: dict[str, Fact]) -> Build:
    """A whole request of alice; `params`, and any field of the order, may differ from the good one."""
    sheet = event_examples["pricing.published.v1"]
    assert isinstance(sheet, PricingPublished)

    def make(params: GenerateParams = PARAMS, by: str = "alice", key: str = "alice", **changes: Any) -> InferRequest:
        body = InferenceRequested(
            network=NETWORK, request=REQUEST, account="alice", model=MODEL, content=params.commitment(SALT),
            max_tokens=params.max_tokens, token_ceiling=1000, price_sheet=sheet_hash(sheet), issued_ms=NOW_MS,
            expires_ms=NOW_MS + 60_000,
        ).changed(**changes)  # fmt: skip
        return InferRequest(order=sign(body, REQUEST_KIND, by, keys[key]), params=params, salt=SALT)

    return make


def test_whole_order_is_taken(build: Build, network: NetworkReply) -> None:
    check_request(build(), network, MODEL, NOW_MS)
    check_request(build(), network, MODEL, NOW_MS + 59_999)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"network": "other-net/3f9a1c22"}, NotAuthorised, "other-net"),
        ({"model": "mixtral-8x7b"}, UnknownModel, "mixtral-8x7b"),
        ({"expires_ms": NOW_MS}, RefusedError, "expired"),
        ({"expires_ms": NOW_MS - 1}, RefusedError, "expired"),
        ({"max_tokens": 4}, MalformedMessage, "commits"),
        ({"content": "00" * 32}, MalformedMessage, "commits"),
        ({"by": "bob"}, NotAuthorised, "signed by bob"),
        ({"account": "bob"}, NotAuthorised, "names account bob"),
    ],
)
def test_order_that_is_not_whole_is_refused(
    build: Build, network: NetworkReply, changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says) as refused:
        check_request(build(**changes), network, MODEL, NOW_MS)
    assert type(refused.value) is error


@pytest.mark.parametrize(
    "params",
    [{"prompt": "Emma is"}, {"temperature_milli": 1}, {"seed": 1}, {"top_k": 2}, {"top_p_milli": 999}],
)
def test_parameters_that_the_order_does_not_commit_to_are_refused(
    build: Build, network: NetworkReply, params: dict[str, Any]
) -> None:
    changed = build().model_copy(update={"params": PARAMS.model_copy(update=params)})
    with pytest.raises(MalformedMessage, match="commits"):
        check_request(changed, network, MODEL, NOW_MS)


def test_other_salt_is_refused(build: Build, network: NetworkReply) -> None:
    with pytest.raises(MalformedMessage, match="commits"):
        check_request(build().model_copy(update={"salt": "5b" * 32}), network, MODEL, NOW_MS)


@pytest.mark.parametrize("field", ["token_ceiling", "issued_ms", "request"])
def test_order_that_was_altered_after_signing_is_refused(build: Build, network: NetworkReply, field: str) -> None:
    good = build()
    value: object = "1f" * 16 if field == "request" else 7
    order = good.order.changed(body=good.order.body.changed(**{field: value}))
    with pytest.raises(BadSignature):
        check_request(good.model_copy(update={"order": order}), network, MODEL, NOW_MS)


def test_signature_by_a_key_other_than_the_one_it_names_is_refused(
    build: Build, network: NetworkReply, keys: dict[str, Key]
) -> None:
    forged = build(key="mallory")
    claim = forged.order.signature.changed(key_id=keys["alice"].id)
    order = forged.order.changed(signature=claim)
    with pytest.raises(BadSignature):
        check_request(forged.model_copy(update={"order": order}), network, MODEL, NOW_MS)


def test_admitted_request_asks_to_hold_the_most_it_can_cost(build: Build, network: NetworkReply) -> None:
    request = build()
    admitted = admit(request, network, TOKENIZER, LAYOUT, NOW_MS)
    assert admitted.ids == [ord(letter) for letter in "Emma was"]
    assert admitted.input_tokens == 8
    held = admitted.reservation
    assert (held.tokens, held.input_tokens, held.expires_ms) == (8 + 3, 8, NOW_MS + HOLD_MS)
    assert (held.request, held.network, held.manifest) == (request.order, NETWORK, network.models[0].manifest)


@pytest.mark.parametrize(("prompt", "billed"), [("^Emma^", 4), ("^", 1), ("^^^", 1), ("E", 1)])
def test_special_tokens_enter_the_model_and_are_not_billed(
    build: Build, network: NetworkReply, prompt: str, billed: int
) -> None:
    admitted = admit(build(PARAMS.model_copy(update={"prompt": prompt})), network, TOKENIZER, LAYOUT, NOW_MS)
    assert len(admitted.ids) == len(prompt)
    assert (admitted.input_tokens, admitted.reservation.tokens) == (billed, billed + 3)


def test_empty_prompt_is_refused(build: Build, network: NetworkReply) -> None:
    with pytest.raises(PromptEmpty):
        admit(build(GenerateParams(prompt="", max_tokens=3)), network, TOKENIZER, LAYOUT, NOW_MS)


def test_prompt_without_a_token_is_refused(build: Build, network: NetworkReply) -> None:
    silent: Any = SimpleNamespace(special=frozenset(), encode=lambda text: [])
    with pytest.raises(PromptEmpty):
        admit(build(), network, silent, LAYOUT, NOW_MS)


# --- conversations ----------------------------------------------------------------------------------------------------


class Tagged:
    """Writes each role's first letter before what is said; takes no conversation that an assistant begins."""

    def __init__(self) -> None:
        self.most_chars = 0

    def encode(self, messages: Sequence[ChatMessage], most_chars: int) -> list[int]:
        self.most_chars = most_chars
        if messages[0].role == "assistant":
            raise ConversationRefused("no")
        return [ord(letter) for each in messages for letter in f"^{each.role[0]}{each.content}"]


def talk(*turns: tuple[Any, str]) -> GenerateParams:
    return GenerateParams(messages=tuple(ChatMessage(role=role, content=said) for role, said in turns), max_tokens=3)


def test_conversation_is_priced_as_the_model_reads_it(build: Build, network: NetworkReply) -> None:
    chat = Tagged()
    request = build(talk(("system", "S"), ("user", "Hi")))
    check_request(request, network, MODEL, NOW_MS)
    admitted = admit(request, network, TOKENIZER, LAYOUT, NOW_MS, chat)
    assert admitted.ids == [ord(letter) for letter in "^sS^uHi"]
    assert (admitted.input_tokens, admitted.reservation.tokens) == (5, 8)
    assert chat.most_chars == MAX_CHARS_A_TOKEN * CONTEXT


def test_conversation_that_the_order_does_not_commit_to_is_refused(build: Build, network: NetworkReply) -> None:
    changed = build(talk(("user", "Hi"))).model_copy(update={"params": talk(("system", "Hi"))})
    with pytest.raises(MalformedMessage, match="commits"):
        check_request(changed, network, MODEL, NOW_MS)


def test_conversation_with_a_model_without_a_template_is_refused_and_a_prompt_is_not(
    build: Build, network: NetworkReply
) -> None:
    with pytest.raises(NoChatTemplate) as refused:
        admit(build(talk(("user", "Hi"))), network, TOKENIZER, LAYOUT, NOW_MS)
    assert "sawyer generate" in refused.value.hint
    assert admit(build(), network, TOKENIZER, LAYOUT, NOW_MS).input_tokens == 8


def test_prompt_of_a_model_with_a_template_is_continued_as_it_is(build: Build, network: NetworkReply) -> None:
    assert admit(build(), network, TOKENIZER, LAYOUT, NOW_MS, Tagged()).ids == [ord(each) for each in "Emma was"]


@pytest.mark.parametrize(
    ("params", "error"),
    [
        (talk(("assistant", "Hi")), ConversationRefused),
        (talk(("user", "")), PromptEmpty),
        (talk(("user", "x" * CONTEXT)), PromptTooLong),
        (talk(("user", "x" * (CONTEXT - 4)), ("assistant", "")), PromptTooLong),
        (talk(*[("user", "x" * 1000)] * 6), PromptTooLong),
    ],
)
def test_conversation_that_cannot_be_answered_is_refused(
    build: Build, network: NetworkReply, params: GenerateParams, error: type[Exception]
) -> None:
    with pytest.raises(error):
        admit(build(params), network, TOKENIZER, LAYOUT, NOW_MS, Tagged())


def test_prompt_that_can_never_fit_is_refused_before_it_is_tokenized(build: Build, network: NetworkReply) -> None:
    def encode(text: str) -> list[int]:
        raise AssertionError("work for nothing")

    eager: Any = SimpleNamespace(special=frozenset(), encode=encode)
    huge = GenerateParams(prompt="x" * (MAX_CHARS_A_TOKEN * CONTEXT + 1), max_tokens=1)
    with pytest.raises(PromptTooLong):
        admit(build(huge), network, eager, LAYOUT, NOW_MS)


def test_prompt_and_answer_must_fit_the_context(build: Build, network: NetworkReply) -> None:
    fits = GenerateParams(prompt="x" * (CONTEXT - 3), max_tokens=3)
    assert len(admit(build(fits), network, TOKENIZER, LAYOUT, NOW_MS).ids) == CONTEXT - 3
    for params in (
        GenerateParams(prompt="x" * (CONTEXT - 2), max_tokens=3),
        GenerateParams(prompt="x" * (CONTEXT - 3), max_tokens=4),
        GenerateParams(prompt="x", max_tokens=2**40),
    ):
        with pytest.raises(PromptTooLong) as refused:
            admit(build(params), network, TOKENIZER, LAYOUT, NOW_MS)
        assert refused.value.details == {"prompt_tokens": str(len(params.prompt)), "context": str(CONTEXT)}


def test_order_under_another_price_sheet_is_refused(build: Build, network: NetworkReply) -> None:
    with pytest.raises(RefusedError, match="2026-01") as refused:
        admit(build(price_sheet="cd" * 32), network, TOKENIZER, LAYOUT, NOW_MS)
    assert "prices" in refused.value.hint


def test_network_without_prices_refuses(build: Build, network: NetworkReply) -> None:
    with pytest.raises(RefusedError, match="no prices"):
        admit(build(), network.model_copy(update={"pricing": None}), TOKENIZER, LAYOUT, NOW_MS)


def test_model_without_a_price_is_refused(build: Build, network: NetworkReply) -> None:
    with pytest.raises(UnknownModel, match="mixtral-8x7b"):
        admit(build(model="mixtral-8x7b"), network, TOKENIZER, LAYOUT, NOW_MS)


def test_ceiling_is_kept_to_the_token(build: Build, network: NetworkReply) -> None:
    admit(build(token_ceiling=11), network, TOKENIZER, LAYOUT, NOW_MS)
    with pytest.raises(BudgetTooSmall, match="11 tokens, the order's ceiling is 10"):
        admit(build(token_ceiling=10), network, TOKENIZER, LAYOUT, NOW_MS)
