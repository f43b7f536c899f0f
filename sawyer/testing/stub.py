"""`StubNetwork`: a whole network in this process, for tests of programs that use Sawyer. No server, no model, no files.

The bookkeeper, the book, its rules and the clients are the real ones, over the bus in memory; the router is a stub that
says what a function says (router.py). So what is billed, refused or repeated is what a network would bill, refuse or
repeat; tests/network/test_stub_contract.py runs the same tests over both.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from sawyer.bookkeeper.service import Bookkeeper
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.client.aio import DEFAULT_TIMEOUT_S, AsyncClient
from sawyer.client.sync import Client
from sawyer.client.waiting import LoopThread
from sawyer.clock import Clock, SystemClock
from sawyer.errors import UsageError
from sawyer.identity.keys import Key
from sawyer.ids import AccountId, ModelId, is_slug, new_network_id
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, command
from sawyer.ledger.store import Store
from sawyer.schemas.events import (
    AccountOpened,
    Body,
    KeyAdded,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
    NodeRegistered,
    PricingPublished,
    TokensGranted,
)
from sawyer.schemas.messages import BalanceReply, InferRequest
from sawyer.schemas.models import ModelLayout
from sawyer.testing.router import HOST, NODE, ROUTER, Answering, StubNode, StubRouter

GRANT_MS: Final = 30 * 24 * 3600 * 1000
MANIFEST: Final = "5a" * 32
FORMAT: Final = "f32"


class StubNetwork:
    """Use it as `with StubNetwork(answering) as network:`, in asynchronous tests too; it has a thread of its own.

        with StubNetwork(lambda prompt, params: f"{prompt} rainy day.") as network, network.client("alice") as client:
            assert client.generate("It was a", model=network.model).text == "It was a rainy day."

    A word with the space behind it is a token, of prompts and of answers given as one text; in an answer given in
    pieces each piece is one. `answering` may be replaced while it runs. `requests` are those that reached the router,
    resends too. An account is opened with a key and a budget of its own when a client for it is first asked for.
    """

    def __init__(
        self,
        answering: Answering = lambda prompt, _: prompt,
        *,
        model: str = "stub",
        context_tokens: int = 4096,
        budget_tokens: int = 100_000,
        price_milli: int = 1000,
        chats: bool = True,
        clock: Clock | None = None,
    ) -> None:
        """`price_milli`: budget tokens a thousand text tokens. `chats`: the model has a chat template. Raises
        UsageError for a name that no model can have."""
        if not is_slug(model):
            raise UsageError(f"{model!r} is not a name of a model", hint="Lower-case letters, digits, - and _.")
        self.answering = answering
        self.model = ModelId(model)
        self.requests: list[InferRequest] = []
        self._budget_tokens = budget_tokens
        self._price_milli = price_milli
        self._chats = chats
        self._clock = clock or SystemClock()
        self._wire = MemoryNetwork()
        self._network = new_network_id("stub-net")
        self._operator, self._ledger_key, self._router_key = Key.generate("O"), Key.generate(), Key.generate()
        self._node = StubNode()
        self._layout = _layout(context_tokens)
        self._book = Book(
            Store.in_memory(), network=self._network, operator=self._operator.id, ledger_key=self._ledger_key
        )
        self._keys: dict[str, Key] = {}
        self._thread: LoopThread | None = None
        self._router: StubRouter | None = None
        self._bookkeeper: Bookkeeper | None = None
        self._keeping: asyncio.Task[None] | None = None

    def __enter__(self) -> StubNetwork:
        self._found()
        self._thread = LoopThread()
        self._thread.call(self._start_book)
        self.start_router()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.stop_router()
            self._running().call(self._stop_book)
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.stop()
            self._book.close()

    def client(
        self, account: str = "alice", *, budget_tokens: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Client:
        """A client of this network, not yet connected. The account is opened, and given `budget_tokens` (by default the
        network's), if there is none yet."""
        key = self._open(account, budget_tokens)
        return Client(account=account, key=key, bus=self.bus(), timeout_s=timeout_s, clock=self._clock)

    def async_client(
        self, account: str = "alice", *, budget_tokens: int | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> AsyncClient:
        """`client`, for code that awaits."""
        key = self._open(account, budget_tokens)
        return AsyncClient(account=account, key=key, bus=self.bus(), timeout_s=timeout_s, clock=self._clock)

    def bus(self) -> MemoryBus:
        """A participant's connection, for clients with keys of their own: `Client(account=..., key=..., bus=...)`."""
        self._running()
        return MemoryBus(self._wire)

    def grant(self, account: str, tokens: int) -> None:
        """One more grant to an account that was opened. Raises UnknownAccount."""
        now_ms, grants = self._clock.now_ms(), self._book.account(AccountId(account), self._clock.now_ms()).grants
        self._record(
            TokensGranted(
                network=self._network,
                account=account,
                grant=f"{account[:50]}-{grants + 1}",
                tier="",
                tokens=tokens,
                valid_from_ms=now_ms,
                period_end_ms=now_ms + GRANT_MS,
                expires_ms=now_ms + GRANT_MS,
                paid_uusd=0,
                mode="test",
                sealed=(),
            )
        )

    def balance(self, account: str = "alice") -> BalanceReply:
        """What an account has, without a client. Raises UnknownAccount."""
        return self._book.balance(AccountId(account), self._clock.now_ms())

    def stop_router(self) -> None:
        """From now on nobody serves the model, and what the router remembered of its requests is gone."""
        router, self._router = self._router, None
        if router is not None:
            self._running().call(router.stop)

    def start_router(self) -> None:
        """A router that remembers nothing; the book does."""
        if self._router is None:
            self._router = self._running().call(self._new_router)

    async def _new_router(self) -> StubRouter:
        router = StubRouter(
            MemoryBus(self._wire),
            self._router_key,
            self._node,
            self._layout,
            self._clock,
            lambda: self.answering,
            self.requests,
            chats=self._chats,
        )
        await router.start(self.model)
        return router

    async def _start_book(self) -> None:
        listening = asyncio.Event()
        self._bookkeeper = Bookkeeper(MemoryBus(self._wire), self._book, self._clock)
        self._keeping = asyncio.create_task(self._bookkeeper.run(listening.set))
        await listening.wait()

    async def _stop_book(self) -> None:
        if self._bookkeeper is not None and self._keeping is not None:
            self._bookkeeper.stop()
            await self._keeping

    def _running(self) -> LoopThread:
        if self._thread is None:
            raise UsageError("the stub network does not run", hint="Use it as `with StubNetwork(...) as network:`.")
        return self._thread

    def _open(self, account: str, budget_tokens: int | None) -> Key:
        self._running()
        if account in self._keys:
            return self._keys[account]
        key = Key.generate()
        self._record(AccountOpened(network=self._network, account=account, key=key.id), account, key)
        self._keys[account] = key
        tokens = self._budget_tokens if budget_tokens is None else budget_tokens
        if tokens:
            self.grant(account, tokens)
        return key

    def _found(self) -> None:
        network, layout = self._network, self._layout
        vkey, now_ms = vkey_of(network, self._ledger_key), self._clock.now_ms()
        self._record(
            NetworkFounded(
                network=network, operator=self._operator.id, ledger_vkey=vkey, mode="test", founded_ms=now_ms
            )
        )
        self._record(KeyAdded(network=network, role="router", name=ROUTER, key=self._router_key.id))
        self._record(
            ModelPublished(
                network=network,
                model=self.model,
                manifest=MANIFEST,
                family=layout.family,
                format=FORMAT,
                moe_layers=len(layout.moe_layers),
                experts=layout.experts,
                top_k=layout.top_k,
                expert_parameters=layout.expert_parameters,
            )
        )
        price = ModelPrice(model=self.model, format=FORMAT, price_milli=self._price_milli, quant_milli=1000)
        self._record(
            PricingPublished(
                network=network, sheet="stub", input_weight_milli=1000, output_weight_milli=1000, prices=(price,)
            )
        )
        node = NodeRegistered(
            network=network, node=NODE, host=HOST, key=self._node.key.id, device="none", memory_mb=0, promised_us=0
        )
        self._record(node, NODE, self._node.key)

    def _record(self, body: Body, by: str = OPERATOR_NAME, key: Key | None = None) -> None:
        asked = self._book.verify(command(body, by, key or self._operator))
        (reply,) = self._book.commit([asked], self._clock.now_ms())
        if reply.error is not None:
            raise reply.error.to_error()


def _layout(context_tokens: int) -> ModelLayout:
    """A model of 2 MoE layers with 4 experts each, top 2, that was never trained."""
    return ModelLayout(
        family="stub",
        vocab=2,
        hidden=16,
        layers=2,
        heads=1,
        kv_heads=1,
        head_dim=16,
        ffn=64,
        experts=4,
        top_k=2,
        context=context_tokens,
        moe_layers=(0, 1),
        rms_eps="1e-05",
        rope_theta="10000.0",
        eos=(0,),
    )
