"""A client's side of a network in memory: what a bookkeeper and a router say is written by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.schemas import subjects
from sawyer.schemas.base import Fact
from sawyer.schemas.messages import Accepted, Delta, Done, ErrorBody, Failed, InferMessage, NetworkReply, Trace, Usage

MODEL = "austen"
PATIENCE_S = 10.0
USAGE = Usage(
    input_tokens=2, output_tokens=3, billed_tokens=5, entry=9, nodes=(), takeovers=(), prefill_us=1, decode_us=1
)


class Say:
    """A router's events, by number."""

    usage = USAGE

    def accepted(self, n: int = 0, *, repeated: bool = False) -> Accepted:
        return Accepted(n=n, router="router-1", input_tokens=2, held_tokens=8, repeated=repeated)

    def delta(self, n: int, text: str = "") -> Delta:
        return Delta(n=n, text=text or f"<{n}>", ids=(n,))

    def trace(self, n: int) -> Trace:
        return Trace(n=n, step=0, layer=1, calls=())

    def done(self, n: int, finish: Any = "length") -> Done:
        return Done(n=n, finish=finish, usage=USAGE)

    def failed(self, n: int, error: Any) -> Failed:
        return Failed(n=n, error=ErrorBody.of(error))


class ScriptedRouter:
    """Takes requests and cancels; sends what the test tells it to."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.requests: list[Message] = []
        self.cancelled: list[str] = []
        self.script: Callable[[int], list[Any]] = lambda _: []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self.listening = await self.bus.subscribe(subjects.infer(MODEL), self._hear)  # type: ignore[arg-type]
        await self.bus.subscribe("sawyer.v1.cancel.*", lambda m: self.cancelled.append(m.subject.rsplit(".", 1)[1]))

    def _hear(self, message: Message) -> None:
        self.requests.append(message)
        self._tasks.add(asyncio.create_task(self.send(message.reply, *self.script(len(self.requests) - 1))))

    async def send(self, inbox: str, *events: Any) -> None:
        for event in events:
            await self.bus.publish(inbox, event if isinstance(event, bytes) else InferMessage(e=event).canonical())


@pytest.fixture
def say() -> Say:
    return Say()


@pytest.fixture
def memory() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
async def router(memory: MemoryNetwork) -> ScriptedRouter:
    made = ScriptedRouter(MemoryBus(memory))
    await made.start()
    return made


@pytest.fixture
def network_reply(event_examples: dict[str, Fact]) -> NetworkReply:
    founded: Any = event_examples["network.founded.v1"]
    return NetworkReply(
        network="sawyer-net/3f9a1c22", ledger_vkey=founded.ledger_vkey, operator=founded.operator, successors=(),
        mode="test", models=(event_examples["model.published.v1"],), pricing=event_examples["pricing.published.v1"],
        size=5, checkpoint="a signed note", now_ms=1,
    )  # fmt: skip


@pytest.fixture
def settle() -> Callable[[], Awaitable[None]]:
    """Lets all that was published arrive."""

    async def some_turns() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    return some_turns
