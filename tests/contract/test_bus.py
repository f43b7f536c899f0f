"""What every bus keeps, run over the bus in memory, that of simulations (in calm weather), and NATS with a real server:
delivery, order, wildcards, queue groups, typed refusals, and an end that everyone hears of."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from simulation.wire import Wire

from sawyer.bus.connection import NatsBus
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import MAX_PAYLOAD_BYTES, Bus, Message, Subscription
from sawyer.bus.server import LocalServer
from sawyer.bus.shortcut import ShortClient
from sawyer.errors import NoAnswer, NobodyServes, ServerUnreachable, UsageError

Connect = Callable[[], Awaitable[Bus]]
PATIENCE_S = 10.0


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalServer.start(tmp_path_factory.mktemp("nats")) as server:
        yield server.url


@pytest.fixture(params=["memory", "simulated", "nats", "nats-py's own way"])
async def connect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Connect]:
    """Makes participants of one network; all are closed at the end."""
    if request.param == "nats-py's own way":
        monkeypatch.setattr(ShortClient, "send_now", lambda *_: False)
        monkeypatch.setattr(ShortClient, "hand_over", lambda *_: None)
    network, made = MemoryNetwork(), contextlib.AsyncExitStack()
    wire = Wire(random.Random(0), network)

    async def one() -> Bus:
        bus: Bus
        if request.param == "memory":
            bus = MemoryBus(network)
        elif request.param == "simulated":
            bus = await wire.join("contract")
        else:
            bus = await NatsBus.connect(request.getfixturevalue("nats_url"), name="contract")
        made.push_async_callback(bus.close)
        return bus

    async with made:
        yield one


class Ear:
    """One subscription whose messages wait in order."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.subscription: Subscription

    @classmethod
    async def on(cls, bus: Bus, subject: str, queue: str = "") -> Ear:
        ear = cls()
        ear.subscription = await bus.subscribe(subject, ear.heard.put_nowait, queue)
        await bus.flush()
        return ear

    async def next(self) -> Message:
        return await asyncio.wait_for(self.heard.get(), PATIENCE_S)


async def answerer(bus: Bus, subject: str, answer: Callable[[bytes], bytes]) -> None:
    """Answers every message, as a program would: the handler only enqueues."""
    tasks: set[asyncio.Task[None]] = set()

    def handle(message: Message) -> None:
        tasks.add(asyncio.create_task(bus.publish(message.reply, answer(message.data))))

    await bus.subscribe(subject, handle)
    await bus.flush()


async def test_published_message_arrives_with_subject_data_and_reply(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    await sender.publish(subject, b"\x00\xff", "answer.here")
    assert await ear.next() == Message(subject, b"\x00\xff", "answer.here")


async def test_every_subscriber_gets_its_own_copy(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ears = [await Ear.on(receiver, subject), await Ear.on(receiver, subject), await Ear.on(sender, subject)]
    await sender.publish(subject, b"once")
    assert [(await ear.next()).data for ear in ears] == [b"once"] * 3


@pytest.mark.parametrize(
    ("pattern", "heard", "not_heard"),
    [
        ("*", "a", "a.b"),
        ("a.*.c", "a.b.c", "a.c"),
        ("a.*", "a.b", "a.b.c"),
        ("a.>", "a.b.c.d", "a"),
        ("a.*.>", "a.b.c", "a.b"),
        ("a.b", "a.b", "a.B"),
    ],
)
async def test_wildcard_takes_what_it_says_and_nothing_else(
    connect: Connect, subject: str, pattern: str, heard: str, not_heard: str
) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, f"{subject}.{pattern}")
    await sender.publish(f"{subject}.{not_heard}", b"no")
    await sender.publish(f"{subject}.{heard}", b"yes")
    assert await ear.next() == Message(f"{subject}.{heard}", b"yes")


async def test_queue_group_gives_each_message_to_one_member_and_others_all(connect: Connect, subject: str) -> None:
    sender = await connect()
    members = [await Ear.on(await connect(), subject, queue="routers") for _ in range(3)]
    watcher = await Ear.on(await connect(), subject)
    sent = [b"%d" % number for number in range(60)]
    for each in sent:
        await sender.publish(subject, each)
    assert [(await watcher.next()).data for _ in sent] == sent
    taken = asyncio.Queue[bytes]()
    movers = [asyncio.create_task(_move(ear, taken)) for ear in members]
    got = [await asyncio.wait_for(taken.get(), PATIENCE_S) for _ in sent]
    for mover in movers:
        mover.cancel()
    assert sorted(got) == sorted(sent)
    assert taken.empty()


async def _move(ear: Ear, into: asyncio.Queue[bytes]) -> None:
    while True:
        into.put_nowait((await ear.heard.get()).data)


async def test_two_queue_groups_each_get_a_message(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ears = [await Ear.on(receiver, subject, queue="one"), await Ear.on(receiver, subject, queue="two")]
    await sender.publish(subject, b"both")
    assert [(await ear.next()).data for ear in ears] == [b"both"] * 2


async def test_messages_of_one_sender_arrive_in_order(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, f"{subject}.*")
    for number in range(500):
        await sender.publish(f"{subject}.{number % 3}", b"%d" % number)
    assert [int((await ear.next()).data) for _ in range(500)] == list(range(500))


async def test_request_returns_the_answer(connect: Connect, subject: str) -> None:
    asker, other = await connect(), await connect()
    await answerer(other, subject, bytes.upper)
    answers = await asyncio.gather(*(asker.request(subject, b"q%d" % n, PATIENCE_S) for n in range(5)))
    assert answers == [b"Q%d" % n for n in range(5)]


async def test_request_that_nobody_serves_fails_at_once_and_names_the_subject(connect: Connect, subject: str) -> None:
    asker = await connect()
    with pytest.raises(NobodyServes, match=subject):
        await asyncio.wait_for(asker.request(subject, b"", 3600), PATIENCE_S)


async def test_request_without_an_answer_fails_after_its_timeout(connect: Connect, subject: str) -> None:
    asker = await connect()
    ear = await Ear.on(await connect(), subject)
    with pytest.raises(NoAnswer, match=subject):
        await asker.request(subject, b"hello", 0.05)
    assert (await ear.next()).data == b"hello"


async def test_sender_is_told_on_its_reply_subject_that_nobody_listens(connect: Connect, subject: str) -> None:
    sender = await connect()
    inbox = sender.new_inbox()
    ear = await Ear.on(sender, f"{inbox}.*")
    await sender.publish(subject, b"anybody?", f"{inbox}.7")
    assert await ear.next() == Message(f"{inbox}.7", b"", "", no_responders=True)


async def test_empty_answer_is_not_mistaken_for_nobody(connect: Connect, subject: str) -> None:
    asker, other = await connect(), await connect()
    await answerer(other, subject, lambda _: b"")
    assert await asker.request(subject, b"", PATIENCE_S) == b""


async def test_unsubscribed_gets_nothing_more(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    await sender.publish(subject, b"first")
    await ear.next()
    await ear.subscription.unsubscribe()
    await receiver.flush()
    with pytest.raises(NobodyServes):
        await sender.request(subject, b"second", PATIENCE_S)
    assert ear.heard.empty()
    await ear.subscription.unsubscribe()


async def test_drained_has_all_that_was_sent_before_and_gets_nothing_more(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    for number in range(100):
        await sender.publish(subject, b"%d" % number)
    await sender.flush()
    await ear.subscription.drain()
    await receiver.flush()
    assert [int(ear.heard.get_nowait().data) for _ in range(100)] == list(range(100))
    with pytest.raises(NobodyServes):
        await sender.request(subject, b"after", PATIENCE_S)
    assert ear.heard.empty()


async def test_payload_over_the_limit_is_refused_and_the_connection_lives_on(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    with pytest.raises(UsageError, match=str(MAX_PAYLOAD_BYTES)):
        await sender.publish(subject, bytes(MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(UsageError, match=str(MAX_PAYLOAD_BYTES)):
        await sender.request(subject, bytes(MAX_PAYLOAD_BYTES + 1), PATIENCE_S)
    await sender.publish(subject, b"small")
    assert (await ear.next()).data == b"small"


async def test_payload_at_the_limit_arrives_whole(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    largest = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
    assert len(largest) == MAX_PAYLOAD_BYTES
    await sender.publish(subject, largest)
    assert (await ear.next()).data == largest


async def test_inboxes_are_private_to_one_participant(connect: Connect) -> None:
    mine, theirs = await connect(), await connect()
    prefixes = [bus.new_inbox() for bus in (mine, theirs) for _ in range(50)]
    assert len(set(prefixes)) == 100
    ear = await Ear.on(mine, f"{prefixes[0]}.*")
    other = await Ear.on(theirs, f"{prefixes[50]}.*")
    await theirs.publish(f"{prefixes[0]}.1", b"for me")
    await mine.publish(f"{prefixes[50]}.1", b"for them")
    assert ((await ear.next()).data, (await other.next()).data) == (b"for me", b"for them")
    assert ear.heard.empty()


async def test_handler_that_raises_loses_its_message_and_no_other(
    connect: Connect, subject: str, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = await connect(), await connect()
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    def handle(message: Message) -> None:
        if message.data == b"bad":
            raise ValueError("cannot read this")
        heard.put_nowait(message.data)

    await receiver.subscribe(subject, handle)
    await receiver.flush()
    for each in (b"one", b"bad", b"two"):
        await sender.publish(subject, each)
    assert [await asyncio.wait_for(heard.get(), PATIENCE_S) for _ in range(2)] == [b"one", b"two"]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"handler of {subject} failed; the message is dropped"
    ]


async def test_close_sends_first_what_is_queued(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    for number in range(100):
        await sender.publish(subject, b"%d" % number)
    await sender.close()
    assert [int((await ear.next()).data) for _ in range(100)] == list(range(100))


async def test_closed_bus_refuses_everything_and_closes_again_quietly(connect: Connect, subject: str) -> None:
    bus = await connect()
    await bus.close()
    await bus.close()
    with pytest.raises(ServerUnreachable):
        await bus.publish(subject, b"")
    with pytest.raises(ServerUnreachable):
        await bus.request(subject, b"", PATIENCE_S)
    with pytest.raises(ServerUnreachable):
        await bus.subscribe(subject, print)


async def test_loss_of_the_connection_is_told_to_all_who_asked(connect: Connect) -> None:
    bus, told = await connect(), list[str]()
    bus.on_disconnect(lambda: told.append("first"))
    bus.on_disconnect(lambda: told.append("second"))
    no_more = bus.on_disconnect(lambda: told.append("third"))
    no_more()
    assert told == []
    await bus.close()
    assert told == ["first", "second"]


async def test_closed_participant_hears_nothing_more(connect: Connect, subject: str) -> None:
    sender, receiver = await connect(), await connect()
    ear = await Ear.on(receiver, subject)
    await receiver.close()
    with pytest.raises(NobodyServes):
        await until_nobody_serves(sender, subject)
    assert ear.heard.empty()


async def until_nobody_serves(asker: Bus, subject: str) -> None:
    """Asks until it is refused: a server may see the end of a connection a moment later than the one who ended it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(NoAnswer):
                await asker.request(subject, b"", 0.1)


@pytest.fixture
def subject(request: pytest.FixtureRequest) -> str:
    """A subject that no other test uses: all share one server."""
    return f"contract.{abs(hash(request.node.nodeid))}"
