"""The copy of a book in JetStream: one stream a network, one message a row, in order: a message's sequence is the row's
number. Owns the stream, its settings and JetStream's API; what a row says, and whether it is true, is the ledger's.

Reading is stateless (batched direct get, ADR-31 of nats-architecture-and-design): no consumer is kept on the server, so
none is lost with it, and nothing goes silent after a restart (nats.py #504). The copy is not the book: JetStream
acknowledges before it is on the disk (nats-server #7564), and whoever copies looks again where the copy stands.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sawyer.bus.connection import NatsBus
from sawyer.bus.jetstream import END_OF_BATCH, NO_JETSTREAM, NO_STREAM, NOT_FOUND, answer, error_code, reason
from sawyer.bus.protocol import Message
from sawyer.errors import CopyDiffers, NoAnswer, NobodyServes, NoCopy, SawyerError, ServerUnreachable, UnreachableError
from sawyer.ids import NetworkId, is_network, is_slug
from sawyer.schemas import subjects

WINDOW_RECORDS: Final = 512
WINDOW_BYTES: Final = 2 * 1024 * 1024
"""What is sent before an acknowledgement is waited for; what is asked for at once."""
API_TIMEOUT_S: Final = 5.0
ACK_TIMEOUT_S: Final = 5.0
PAGE_TIMEOUT_S: Final = 5.0
DUPLICATES_NS: Final = 10 * 10**9
"""How long JetStream knows a message id, in memory. It looks at the expected sequence first, which alone keeps a row
from standing twice: the id is for who reads the stream."""

_PREFIX: Final = "SAWYER_LEDGER_"
_STREAM: Final = "Sawyer-Stream"
_VERSION: Final = "Sawyer-Version"
_TOPIC: Final = "Sawyer-Topic"
_ID: Final = "Nats-Msg-Id"
_SEQUENCE: Final = "Nats-Sequence"
_SUBJECT: Final = "Nats-Subject"
_LEFT: Final = "Nats-Num-Pending"
_KEPT_WHOLE: Final[Mapping[str, object]] = {
    "retention": "limits",
    "discard": "new",
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "allow_direct": True,
}
"""Settings without which a stream loses rows, or cannot be read."""
_SETTINGS: Final[Mapping[str, object]] = {
    **_KEPT_WHOLE,
    "storage": "file",
    "compression": "s2",
    "deny_delete": True,
    "deny_purge": True,
    "duplicate_window": DUPLICATES_NS,
}

Word = Literal["entry", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the stream holds it: the database's columns beside the exact bytes. `id` is JetStream's message id."""

    id: str
    word: Word
    stream: str
    version: int
    topic: str
    data: bytes


class Journal:
    """The copy of one network's book, by number: the first row is 1."""

    def __init__(self, bus: NatsBus, network: NetworkId) -> None:
        """Raises UsageError for a network whose name is too long for a subject."""
        self._bus = bus
        self._token = subjects.network_token(network)
        self._subjects: dict[Word, str] = {
            "entry": subjects.ledger_copy(network, "entry"),
            "checkpoint": subjects.ledger_copy(network, "checkpoint"),
        }
        self._all = subjects.all_ledger_copies(network)
        self.stream = f"{_PREFIX}{self._token}"
        self._asked: set[asyncio.Future[Message]] = set()
        bus.on_disconnect(self._lose)

    @staticmethod
    async def networks(bus: NatsBus) -> list[NetworkId]:
        """Of which networks this server has a copy. A stream that is named as no copy could be is none. Raises NoCopy
        without JetStream."""
        found = await _api(bus, "STREAM.NAMES", {"subject": f"{subjects.PREFIX}.ledger.copy.>"})
        names = sorted(name.removeprefix(_PREFIX) for name in found.get("streams") or () if name.startswith(_PREFIX))
        networks = ((name, subjects.network_of(name)) for name in names)
        return [network for name, network in networks if _is_network(network, name)]

    # --- the stream -------------------------------------------------------------------------------------------------

    async def ensure(self) -> None:
        """Make the stream if there is none. Raises NoCopy without JetStream, CopyDiffers for a stream that would lose
        rows, SawyerError with JetStream's word if it refuses."""
        try:
            found = await self._api("STREAM.INFO")
        except NoCopy as error:
            if error.details.get("missing") != "stream":
                raise
            found = await self._api("STREAM.CREATE", {"name": self.stream, "subjects": [self._all], **_SETTINGS})
        config = found["config"]
        for name, expected in {"subjects": [self._all], **_KEPT_WHOLE}.items():
            if config.get(name) != expected:
                raise CopyDiffers(
                    f"stream {self.stream} has {name} {config.get(name)!r}, expected {expected!r}",
                    hint=f"nats stream edit {self.stream}, or delete the stream: it is made anew from the book.",
                )

    async def size(self) -> int:
        """How many rows there are. Raises NoCopy, CopyDiffers if some are gone."""
        state = (await self._api("STREAM.INFO"))["state"]
        size, first = int(state["last_seq"]), int(state["first_seq"])
        if size and (first != 1 or int(state["messages"]) != size):
            raise CopyDiffers(f"{size - int(state['messages'])} of the {size} rows are gone from stream {self.stream}")
        return size

    async def last(self) -> tuple[int, Record] | None:
        """The newest row and its number; None while there is none. Raises NoCopy, CopyDiffers."""
        size = await self.size()
        if not size:
            return None
        page = await self.page(size - 1)
        return (size, page[0]) if page else None

    async def last_checkpoint(self) -> int:
        """The number of the newest row that is a checkpoint; 0 for none. Raises NoCopy."""
        await self.size()
        found = await self._direct_get({"last_by_subj": self._subjects["checkpoint"]})
        return max((int((each.headers or {}).get(_SEQUENCE, "0")) for each in found), default=0)

    async def destroy(self) -> bool:
        """Delete the stream with all that it holds; whether there was one. Raises NoCopy without JetStream."""
        try:
            await self._api("STREAM.DELETE")
        except NoCopy as error:
            if error.details.get("missing") != "stream":
                raise
            return False
        return True

    # --- writing ----------------------------------------------------------------------------------------------------

    async def append(self, after: int, records: Sequence[Record]) -> None:
        """Add these rows, of which the first is number `after + 1`; what stands there already is not added twice, and
        others may add the same rows meanwhile. Raises CopyDiffers if another row stands there, UnreachableError,
        SawyerError with JetStream's word for the first row that it refuses; rows before that one may be there then."""
        for number, window in _windows(after + 1, records):
            await self._append(number, window)

    async def _append(self, number: int, window: Sequence[Record]) -> None:
        refused: SawyerError | None = None
        while window:
            if await self._send(number, window):
                return
            there = (await self.page(number - 1))[: len(window)]
            for at, (found, meant) in enumerate(zip(there, window, strict=False), number):
                if found != meant:
                    raise CopyDiffers(f"row {at} of stream {self.stream} is another than the book's")
            if not there and refused is not None:
                raise refused
            number, window = number + len(there), window[len(there) :]
            refused = None if there else await self._try(number, window[0])

    async def _send(self, number: int, window: Sequence[Record]) -> bool:
        """Whether all of it is there now. One acknowledgement for all: JetStream takes each row only as the successor
        of the one before it, so that the last one's stands for them."""
        try:
            for at, record in enumerate(window[:-1], number):
                await self._bus.publish(self._subjects[record.word], record.data, headers=self._headers(at, record))
            await self._put(number + len(window) - 1, window[-1])
        except UnreachableError:
            raise
        except SawyerError:
            return False
        return True

    async def _try(self, number: int, record: Record) -> SawyerError | None:
        """Why this row is refused, or None: it is there."""
        try:
            await self._put(number, record)
        except UnreachableError:
            raise
        except SawyerError as error:
            return error
        return None

    async def _put(self, number: int, record: Record) -> None:
        try:
            raw = await self._bus.request(
                self._subjects[record.word], record.data, ACK_TIMEOUT_S, self._headers(number, record)
            )
        except NobodyServes as error:
            raise NoCopy(f"stream {self.stream} is gone") from error
        reply = answer(raw)
        if "error" in reply:
            raise SawyerError(
                f"JetStream refused row {number} ({len(record.data)} bytes): {reason(reply)}",
                hint="The book is safe. Look at the NATS server: disk, limits, and who else writes to the stream.",
            )
        if reply.get("seq") != number:
            raise CopyDiffers(f"row {number} stands at {reply.get('seq')} in stream {self.stream}")

    def _headers(self, number: int, record: Record) -> dict[str, str]:
        return {
            _ID: record.id,
            "Nats-Expected-Last-Sequence": str(number - 1),
            _STREAM: record.stream,
            _VERSION: str(record.version),
            _TOPIC: record.topic,
        }

    # --- reading ----------------------------------------------------------------------------------------------------

    async def page(self, after: int) -> list[Record]:
        """The rows from number `after + 1` on, at most a window; none if there is no such row. Raises CopyDiffers for
        a gap or a message that is no row, NoCopy, UnreachableError."""
        found = await self._direct_get({"seq": after + 1, "batch": WINDOW_RECORDS, "max_bytes": WINDOW_BYTES})
        return [self._record(number, message) for number, message in enumerate(found, after + 1)]

    async def pages(self, after: int, upto: int) -> AsyncIterator[list[Record]]:
        """The rows from `after + 1` to `upto`. Raises as `page` does, and CopyDiffers if it ends before."""
        while after < upto:
            page = (await self.page(after))[: upto - after]
            if not page:
                raise CopyDiffers(f"row {after + 1} is gone from stream {self.stream}")
            yield page
            after += len(page)

    async def changed(self, after: int, timeout_s: float) -> None:
        """Returns when there may be rows after this number, at the latest after this time. The rows pass by on their
        subject while JetStream takes them: who is behind reads, and only who waits listens."""
        ring = asyncio.Event()
        listening = await self._bus.subscribe(self._all, lambda _: ring.set())
        try:
            await self._bus.flush()
            if await self.size() > after:
                return
            async with asyncio.timeout(timeout_s):
                await ring.wait()
        except TimeoutError:
            return
        finally:
            await listening.unsubscribe()

    def _record(self, number: int, message: Message) -> Record:
        headers = message.headers or {}
        try:
            at, version = int(headers[_SEQUENCE]), int(headers[_VERSION])
            record_id, stream, topic = headers[_ID], headers[_STREAM], headers[_TOPIC]
            word = self._word(headers[_SUBJECT])
        except (KeyError, ValueError) as error:
            raise CopyDiffers(f"row {number} of stream {self.stream} is no row of a book ({error})") from error
        if at != number:
            raise CopyDiffers(f"row {number} is gone from stream {self.stream}")
        return Record(record_id, word, stream, version, topic, message.data)

    def _word(self, subject: str) -> Word:
        for word, known in self._subjects.items():
            if known == subject:
                return word
        raise ValueError(f"its subject is {subject}")

    async def _direct_get(self, question: Mapping[str, Any]) -> list[Message]:
        """What JetStream answers: messages, then the end of the batch, or one message alone (a server before 2.11)."""
        found: list[Message] = []
        ended: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(message: Message) -> None:
            headers = message.headers or {}
            if message.no_responders or "Status" in headers:
                if not ended.done():
                    ended.set_result(message)
                return
            found.append(message)
            if _LEFT not in headers and not ended.done():
                ended.set_result(message)

        inbox, subject = self._bus.new_inbox(), f"$JS.API.DIRECT.GET.{self.stream}"
        subscription = await self._bus.subscribe(inbox, take)
        self._asked.add(ended)
        try:
            await self._bus.publish(subject, json.dumps(question).encode(), inbox)
            async with asyncio.timeout(PAGE_TIMEOUT_S):
                last = await ended
        except TimeoutError as error:
            raise NoAnswer(f"no answer from stream {self.stream} within {PAGE_TIMEOUT_S:g} s") from error
        finally:
            self._asked.discard(ended)
            await subscription.unsubscribe()
        if last.no_responders:
            raise NoCopy(f"stream {self.stream} is gone, or cannot be read directly")
        status = (last.headers or {}).get("Status", END_OF_BATCH)
        if status not in (END_OF_BATCH, NOT_FOUND):
            raise SawyerError(f"JetStream would not read {self.stream}: {dict(last.headers or {})}")
        return found

    def _lose(self) -> None:
        """The connection is gone: what was asked will not be answered."""
        for each in self._asked:
            if not each.done():
                each.set_exception(ServerUnreachable("the connection to the NATS server is lost"))

    async def _api(self, verb: str, question: Mapping[str, object] | None = None) -> dict[str, Any]:
        return await _api(self._bus, f"{verb}.{self.stream}", question)


async def _api(bus: NatsBus, call: str, question: Mapping[str, object] | None) -> dict[str, Any]:
    """An answer of JetStream's API. Raises NoCopy, UnreachableError, SawyerError with JetStream's word."""
    raw = json.dumps(question).encode() if question is not None else b""
    try:
        reply = answer(await bus.request(f"$JS.API.{call}", raw, API_TIMEOUT_S))
    except NobodyServes as error:
        raise NoCopy("this NATS server has no JetStream", details={"missing": "jetstream"}) from error
    if "error" not in reply:
        return reply
    code = error_code(reply)
    if code in NO_JETSTREAM:
        why = f"no JetStream for us on this NATS server: {reason(reply)}"
        raise NoCopy(why, details={"missing": "jetstream"})
    if code == NO_STREAM:
        stream = call.rpartition(".")[2]
        raise NoCopy(f"there is no stream {stream} on this NATS server", details={"missing": "stream"})
    raise SawyerError(f"JetStream refused {call}: {reason(reply)}")


def _is_network(network: NetworkId, token: str) -> bool:
    return is_slug(token) and is_network(network) and subjects.network_token(network) == token


def _windows(first: int, records: Sequence[Record]) -> Iterator[tuple[int, Sequence[Record]]]:
    """(number of its first, records) of each window."""
    start = size_bytes = 0
    for at, record in enumerate(records):
        if at > start and (at - start >= WINDOW_RECORDS or size_bytes + len(record.data) > WINDOW_BYTES):
            yield first + start, records[start:at]
            start, size_bytes = at, 0
        size_bytes += len(record.data)
    if start < len(records):
        yield first + start, records[start:]
