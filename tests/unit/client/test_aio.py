"""The client's door: what it signs, what it refuses before anything is sent, and what it asks the bookkeeper."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.client.aio import ORDER_VALID_MS, AsyncClient
from sawyer.clock import ManualClock
from sawyer.economy.pricing import sheet_hash
from sawyer.errors import (
    NoAnswer,
    NobodyServes,
    RefusedError,
    SawyerError,
    ServerUnreachable,
    UnknownAccount,
    UnknownModel,
    UsageError,
)
from sawyer.identity.envelope import check_signed
from sawyer.identity.keys import Key
from sawyer.ids import RequestId
from sawyer.router.admission import check_request
from sawyer.schemas.events import MAX_FREE_TOKENS, REQUEST_KIND, Decided
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.messages import (
    BalanceQuery,
    BalanceReply,
    EntryRef,
    ErrorBody,
    InferRequest,
    LedgerCommand,
    LedgerReply,
    NetworkReply,
    QueryError,
)

MODEL, NOW_MS = "austen", 1_700_000_000_000
REQUEST = RequestId("0f" * 16)
BALANCE = BalanceReply(account="alice", available=7, held=1, consumed=2, expired=0, granted=10, seq=5)
ENTRY = EntryRef(seq=6, leaf="ab" * 32, kind="account.opened.v1", ts_ms=1, decided=Decided())


@dataclass
class Bookkeeper:
    """Answers what the client asks of it."""

    network: NetworkReply
    commands: list[LedgerCommand] = field(default_factory=list)

    async def answer(self, message: Message) -> bytes:
        match message.subject.split(".")[2:]:
            case ["query", "network"]:
                return self.network.canonical()
            case ["query", "balance"]:
                account = BalanceQuery.parse(message.data).account
                if account != "alice":
                    raise UnknownAccount(f"no account {account}")
                return BALANCE.canonical()
        self.commands.append(LedgerCommand.parse(message.data))
        return LedgerReply(entry=ENTRY, repeated=False).canonical()


@pytest.fixture
async def bookkeeper(memory: MemoryNetwork, network_reply: NetworkReply) -> AsyncIterator[Bookkeeper]:
    def refuse(error: SawyerError) -> bytes:
        return QueryError(error=ErrorBody.of(error)).canonical()

    made = Bookkeeper(network_reply)
    services = [
        Service(MemoryBus(memory), f"sawyer.v1.{what}.*", made.answer, refuse, limit=8) for what in ("query", "ledger")
    ]
    for service in services:
        await service.start()
    yield made
    for service in services:
        await service.stop()


@pytest.fixture
async def client(
    memory: MemoryNetwork, bookkeeper: Bookkeeper, keys: dict[str, Key], clock: ManualClock
) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(account="alice", key=keys["alice"], bus=MemoryBus(memory), clock=clock) as connected:
        yield connected


def sent(router: Any) -> InferRequest:
    return InferRequest.parse(router.requests[-1].data)


async def test_order_is_signed_whole_and_the_router_would_take_it(
    client: AsyncClient, router: Any, say: Any, network_reply: NetworkReply, keys: dict[str, Key]
) -> None:
    router.script = lambda _: [say.accepted(), say.delta(1, "It"), say.done(2)]
    answer = await client.generate("Emma was", model=MODEL, max_tokens=3, temperature=0.7, top_k=5, top_p=0.9, seed=4)
    assert (answer.text, answer.usage) == ("It", say.usage)
    request = sent(router)
    check_request(request, network_reply, MODEL, NOW_MS)
    check_signed(request.order, REQUEST_KIND)
    assert request.order.signature.key_id == keys["alice"].id
    params = request.params
    assert (params.prompt, params.max_tokens, params.seed) == ("Emma was", 3, 4)
    assert (params.temperature_milli, params.top_k, params.top_p_milli) == (700, 5, 900)
    order = request.order.body
    assert (order.account, order.request, order.expires_ms) == ("alice", answer.request, NOW_MS + ORDER_VALID_MS)
    assert order.price_sheet == sheet_hash(network_reply.pricing)  # type: ignore[arg-type]


@pytest.mark.parametrize(("stop", "stops"), [("\n", ("\n",)), (["\n", "END"], ("\n", "END")), ((), ())])
async def test_sampling_options_are_ordered_as_they_were_given(
    client: AsyncClient, router: Any, say: Any, stop: Any, stops: tuple[str, ...]
) -> None:
    router.script = lambda _: [say.accepted(), say.done(1)]
    await client.generate("Emma", model=MODEL, min_p=0.05, repetition_penalty=1.1, stop=stop, logprobs=0)
    params = sent(router).params
    assert (params.min_p_milli, params.repetition_penalty_milli) == (50, 1100)
    assert (params.stop, params.logprobs) == (stops, 0)


async def test_sampling_options_left_out_change_nothing(client: AsyncClient, router: Any, say: Any) -> None:
    router.script = lambda _: [say.accepted(), say.done(1)]
    await client.generate("Emma", model=MODEL, max_tokens=3)
    assert sent(router).params == GenerateParams(prompt="Emma", max_tokens=3)


async def test_conversation_leaves_to_the_model_what_nobody_chose(client: AsyncClient, router: Any, say: Any) -> None:
    router.script = lambda _: [say.accepted(), say.done(1)]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Emma?"}]
    await client.chat(turns, model=MODEL, max_tokens=3, top_p=0.9)
    params = sent(router).params
    assert params.prompt is None
    assert [(each.role, each.content) for each in params.messages or ()] == [("system", "Be brief."), ("user", "Emma?")]
    assert (params.from_model, params.top_p_milli) == (("min_p", "repetition_penalty", "temperature", "top_k"), 900)
    await client.chat("Emma?", model=MODEL, max_tokens=3, model_defaults=False)
    assert sent(router).params.from_model is None
    await client.generate("Emma", model=MODEL, max_tokens=3, model_defaults=["top_k"], top_k=5)
    assert (sent(router).params.from_model, sent(router).params.top_k) == (("top_k",), 5)


@pytest.mark.parametrize(
    "messages",
    [[], [7], 7, None, [{"role": "tool", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 7}]],
)
async def test_conversation_that_is_none_is_refused_before_anything_is_sent(
    client: AsyncClient, router: Any, messages: Any
) -> None:
    with pytest.raises(UsageError):
        await client.chat(messages, model=MODEL)
    assert router.requests == []


@pytest.mark.parametrize(("prompt", "letters"), [("Emma", 4), ("é", 2), ("漢字", 6)])
async def test_ceiling_is_by_default_what_the_request_can_cost_at_most(
    client: AsyncClient, router: Any, say: Any, prompt: str, letters: int
) -> None:
    """No token is shorter than a byte; special tokens come on top."""
    router.script = lambda _: [say.accepted(), say.done(1)]
    await client.generate(prompt, model=MODEL, max_tokens=3)
    assert sent(router).order.body.token_ceiling == letters + MAX_FREE_TOKENS + 3
    await client.generate(prompt, model=MODEL, max_tokens=3, token_ceiling=1)
    assert sent(router).order.body.token_ceiling == 1


async def test_same_request_id_commits_to_the_same_content_and_others_do_not(
    client: AsyncClient, router: Any, say: Any
) -> None:
    router.script = lambda _: [say.accepted(), say.done(1)]
    made = []
    for request in (REQUEST, REQUEST, RequestId("1f" * 16), None, None):
        await client.generate("Emma", model=MODEL, request_id=request)
        made.append(sent(router))
    assert made[0] == made[1]
    assert len({each.salt for each in made}) == len({each.order.body.content for each in made}) == 4
    assert len({each.order.body.request for each in made}) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"temperature": -0.5},
        {"temperature": 1000.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"temperature": "hot"},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": float("nan")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 11.0},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": 5},
        {"stop": [5]},
        {"stop": "x" * 257},
        {"stop": ["a"] * 17},
        {"stop": "\ud800"},
        {"logprobs": -1},
        {"logprobs": 21},
        {"logprobs": True},
        {"seed": -1},
        {"seed": 2**53},
        {"token_ceiling": 0},
        {"token_ceiling": -5},
        {"token_ceiling": 2**53},
        {"request_id": "not an id"},
        {"request_id": "0F" * 16},
        {"request_id": "0f" * 16 + "\n"},
        {"prompt": "x" * 1_000_001},
        {"prompt": "\ud800"},
    ],
    ids=lambda options: f"{next(iter(options))}={next(iter(options.values()))!r}"[:30],
)
async def test_parameters_that_make_no_sense_are_refused_before_anything_is_sent(
    client: AsyncClient, router: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        client.stream(**{"prompt": "Emma", "model": MODEL, **options})
    assert router.requests == []


async def test_unknown_model_names_the_published_ones(client: AsyncClient, router: Any) -> None:
    with pytest.raises(UnknownModel, match="mixtral") as error:
        client.stream("Emma", model="mixtral")
    assert error.value.hint == "Published: austen."
    assert router.requests == []


async def test_network_without_prices_or_models_is_refused(client: AsyncClient, bookkeeper: Bookkeeper) -> None:
    bookkeeper.network = bookkeeper.network.model_copy(update={"models": ()})
    await client.network()
    with pytest.raises(UnknownModel) as error:
        client.stream("Emma", model=MODEL)
    assert error.value.hint == "Published: none."
    bookkeeper.network = bookkeeper.network.model_copy(update={"pricing": None})
    await client.network()
    with pytest.raises(RefusedError, match="no prices"):
        client.stream("Emma", model=MODEL)


async def test_account_is_opened_with_the_clients_own_key(
    client: AsyncClient, bookkeeper: Bookkeeper, keys: dict[str, Key]
) -> None:
    assert await client.open_account() == ENTRY
    (command,) = bookkeeper.commands
    assert command.kind == "account.opened.v1"
    assert command.body == {"network": "sawyer-net/3f9a1c22", "account": "alice", "key": keys["alice"].id}


async def test_balance_is_the_accounts_own(
    client: AsyncClient, memory: MemoryNetwork, keys: dict[str, Key], bookkeeper: Bookkeeper
) -> None:
    assert await client.balance() == BALANCE
    async with AsyncClient(account="bob", key=keys["mallory"], bus=MemoryBus(memory)) as bob:
        with pytest.raises(UnknownAccount, match="bob"):
            await bob.balance()


async def test_offer_is_the_published_models_by_name_with_shape_and_price(
    client: AsyncClient, bookkeeper: Bookkeeper, network_reply: NetworkReply
) -> None:
    (austen,) = network_reply.models
    later = austen.changed(model="zola")
    bookkeeper.network = network_reply.model_copy(update={"models": (later, austen)})
    first, second = await client.models()
    told = {name: getattr(first, name) for name in vars(first) if name != "pricing"}
    assert told == {key: value for key, value in austen.plain().items() if key != "network"}
    assert first.price(5, 3) == 8
    with pytest.raises(RefusedError, match="zola"):
        second.price(5, 3)


async def test_question_waits_as_long_as_it_is_told(memory: MemoryNetwork, client: AsyncClient) -> None:
    """A bookkeeper that hears and says nothing."""
    for what in ("account", "balance", "network"):
        silent = MemoryNetwork()
        await MemoryBus(silent).subscribe(f"sawyer.v1.query.{what}", lambda _: None)
        client._bus = MemoryBus(silent)
        with pytest.raises(NoAnswer, match=r"0\.01 s"):
            await getattr(client, what)(timeout_s=0.01)
        client._timeout_s = 0.02
        with pytest.raises(NoAnswer, match=r"0\.02 s"):
            await getattr(client, what)()


@pytest.mark.parametrize("account", ["", "Alice", "a b", "a.b", "a>", "x" * 64, "alice\n"])
def test_account_name_that_cannot_be_one_is_refused(keys: dict[str, Key], account: str) -> None:
    with pytest.raises(UsageError, match="account name"):
        AsyncClient(account=account, key=keys["alice"])


async def test_client_that_is_not_connected_says_how_to_connect(keys: dict[str, Key]) -> None:
    client = AsyncClient(account="alice", key=keys["alice"])
    for call in (client.network, client.balance, client.open_account):
        with pytest.raises(UsageError, match="not connected") as error:
            await call()
        assert "async with" in error.value.hint
    with pytest.raises(UsageError, match="not connected"):
        client.stream("Emma", model=MODEL)
    await client.close()


async def test_network_without_a_bookkeeper_is_told_at_connect(memory: MemoryNetwork, keys: dict[str, Key]) -> None:
    with pytest.raises(NobodyServes):
        await AsyncClient(account="alice", key=keys["alice"], bus=MemoryBus(memory)).connect()


async def test_connect_that_fails_leaves_no_connection_open(
    memory: MemoryNetwork, keys: dict[str, Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = MemoryBus(memory)

    async def connect(*_: object, **__: object) -> MemoryBus:
        return bus

    monkeypatch.setattr("sawyer.bus.connection.NatsBus.connect", connect)
    with pytest.raises(NobodyServes):
        async with AsyncClient("nats://here:1", account="alice", key=keys["alice"]):
            pass
    with pytest.raises(ServerUnreachable, match="closed"):
        await bus.publish("still.open", b"")


async def test_bus_of_the_caller_is_left_open(
    memory: MemoryNetwork, bookkeeper: Bookkeeper, keys: dict[str, Key]
) -> None:
    bus = MemoryBus(memory)
    async with AsyncClient(account="alice", key=keys["alice"], bus=bus) as client:
        await client.close()
    await bus.publish("still.open", b"")
