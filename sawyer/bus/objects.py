"""A bucket of JetStream's object store: named files in chunks, which any NATS client can read (ADR-20 of
nats-architecture-and-design). Owns the stream behind it and the way of bytes; what they mean, and whether they are
right, is the caller's.

Reading is stateless (batched direct get, ADR-31 there), page by page: no consumer is kept on the server, a restart in
the middle costs one page, and what is longer than it should be is never taken. Writing waits for every acknowledgement,
a window of chunks at a time. docs/adr/0026 says why this is not nats-py's own object store.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from sawyer.bus.connection import NatsBus
from sawyer.bus.jetstream import END_OF_BATCH, NO_JETSTREAM, NO_STREAM, NOT_FOUND, answer, error_code, reason
from sawyer.bus.protocol import Message
from sawyer.errors import (
    Busy,
    NoAnswer,
    NobodyServes,
    NoSpace,
    NoStore,
    SawyerError,
    ServerUnreachable,
    UnreachableError,
)

CHUNK_BYTES: Final = 512 * 1024
WINDOW_BYTES: Final = 4 * 1024 * 1024
"""What is sent before an acknowledgement is waited for; what is asked for at once."""
API_TIMEOUT_S: Final = 5.0
STALL_TIMEOUT_S: Final = 10.0
"""How long nothing may come: a page is slow on a slow line, silence is not."""
MAX_OBJECTS: Final = 1_000_100
_PAGE_MESSAGES: Final = 1024
_SUBJECTS_PAGE: Final = 100_000
_SHA: Final = "SHA-256="
_NAME_IN_USE: Final = 10058
_WRONG_LAST: Final = (10071, 10164)
"""Another message came first under this subject."""
_WRITER: Final = "writer"
"""Stands where the name of an object's chunks stands: who writes this bucket."""
_PRESENCE_TIMEOUT_S: Final = 1.0
_FULL: Final = (10023, 10028, 10047, 10077, 10110)
"""Insufficient resources, memory or storage exceeded, the stream's own limit, the account's limit."""


class Stored(msgspec.Struct, frozen=True):
    """What a bucket says of one object. Anybody who may write there said it: believe none of it."""

    name: str
    nuid: str
    size: int = 0
    chunks: int = 0
    digest: str = ""
    deleted: bool = False

    @property
    def sha256(self) -> str:
        """Hex SHA-256 as it is told; "" if it is none."""
        try:
            return base64.urlsafe_b64decode(self.digest.removeprefix(_SHA)).hex()
        except ValueError:
            return ""


@dataclass(frozen=True)
class BucketState:
    """A bucket as it stands. A sealed one takes no change any more."""

    sealed: bool
    size_bytes: int


class Bucket:
    """One bucket, which may not exist yet."""

    def __init__(self, bus: NatsBus, name: str) -> None:
        self.name = name
        self._bus = bus
        self._stream = f"OBJ_{name}"
        self._chunks = f"$O.{name}.C."
        self._metas = f"$O.{name}.M."
        self._writer = f"{self._chunks}{_WRITER}"
        self._waiting: set[_Inbox] = set()
        bus.on_disconnect(self._lose)

    # --- the stream -------------------------------------------------------------------------------------------------

    async def state(self) -> BucketState | None:
        """None if there is no such bucket. Raises NoStore without JetStream."""
        found = await self._api("STREAM.INFO", absent_is=None)
        if found is None:
            return None
        return BucketState(bool(found["config"].get("sealed")), int(found["state"]["bytes"]))

    async def create(self, replicas: int = 1) -> None:
        """Make it, unless it is there. Raises NoStore, NoSpace, SawyerError with JetStream's word."""
        settings: dict[str, object] = {
            "name": self._stream,
            "description": "a model of Sawyer",
            "subjects": [f"{self._chunks}>", f"{self._metas}>"],
            "retention": "limits",
            "discard": "new",
            "storage": "file",
            "num_replicas": replicas,
            "max_age": 0,
            "max_bytes": -1,
            "max_msgs": -1,
            "allow_rollup_hdrs": True,
            "allow_direct": True,
        }
        if await self.state() is None:
            await self._api("STREAM.CREATE", settings, absent_is={})

    async def seal(self) -> None:
        """From now on nobody changes it; it can only be destroyed as a whole."""
        found = await self._known("STREAM.INFO")
        await self._known("STREAM.UPDATE", {**found["config"], "sealed": True})

    async def destroy(self) -> bool:
        """Delete it with all that it holds; whether it was there."""
        return await self._api("STREAM.DELETE", absent_is=None) is not None

    # --- writing ----------------------------------------------------------------------------------------------------

    async def put(self, name: str, content: AsyncIterator[bytes]) -> None:
        """Store an object in place of any of that name; it is there only when all of it is. What `content` raises is
        raised, and nothing stays. Raises NoSpace, UnreachableError, SawyerError with JetStream's word."""
        nuid = secrets.token_hex(11)
        subject, digest, size, chunks = f"{self._chunks}{nuid}", hashlib.sha256(), 0, 0
        try:
            async with _Acknowledged(self, f"{self.name}/{name}") as sending:
                async for chunk in content:
                    digest.update(chunk)
                    size, chunks = size + len(chunk), chunks + 1
                    await sending.send(subject, chunk)
            told = {
                "name": name,
                "bucket": self.name,
                "nuid": nuid,
                "size": size,
                "chunks": chunks,
                "mtime": datetime.now(UTC).isoformat(),
                "digest": _SHA + base64.urlsafe_b64encode(digest.digest()).decode(),
                "options": {"max_chunk_size": CHUNK_BYTES},
            }
            async with _Acknowledged(self, f"{self.name}/{name}") as sending:
                await sending.send(self._meta(name), json.dumps(told).encode(), {"Nats-Rollup": "sub"})
        except SawyerError as error:
            if not isinstance(error, UnreachableError):  # else who goes on later sweeps
                await self._purge(subject)
            raise

    async def sweep(self, kept: Iterable[Stored]) -> None:
        """Remove the chunks that none of these objects has, which a killed `put` left. Only inside of `alone`."""
        ours = {self._writer, *(f"{self._chunks}{each.nuid}" for each in kept)}
        for subject in await self._subjects(f"{self._chunks}>"):
            if subject not in ours:
                await self._purge(subject)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Nobody else is in here for this bucket at the same time; raises Busy if somebody is. Who is killed is out at
        once: the writer's name is kept in the bucket, and a subscription under that name says that it lives."""

        async def here(name: str) -> bool:
            try:
                await self._bus.request(f"$O.{self.name}.W.{name}", b"", _PRESENCE_TIMEOUT_S)
            except NobodyServes:
                return False
            except NoAnswer:  # somebody listens, and never answers
                pass
            return True

        ours = secrets.token_hex(11)
        living = await self._bus.subscribe(f"$O.{self.name}.W.{ours}", lambda _: None)
        try:
            last = await self._patient({"last_by_subj": self._writer})
            if last and await here(last[0].data.decode("ascii", "replace")):
                raise Busy(self._written_by_another, hint=_ANOTHER)
            expected = {"Nats-Expected-Last-Subject-Sequence": str(_sequence(last[0]) if last else 0)}
            async with _Acknowledged(self, f"{self.name}'s writer") as sending:
                await sending.send(self._writer, ours.encode(), {"Nats-Rollup": "sub", **expected})
            yield
        finally:
            await living.unsubscribe()

    @property
    def _written_by_another(self) -> str:
        return f"another process is publishing into bucket {self.name}"

    async def leave(self) -> None:
        """No writer's name stays in the bucket: the last thing before it is sealed."""
        await self._purge(self._writer)

    # --- reading ----------------------------------------------------------------------------------------------------

    async def objects(self) -> dict[str, Stored]:
        """What it holds as `put` stores it, all of whose chunks are there, by name."""
        chunks = await self._subjects(f"{self._chunks}>")
        found = (await self._described(subject) for subject in await self._subjects(f"{self._metas}>"))
        return {
            each.name: each
            async for each in found
            if each is not None
            and not each.deleted
            and chunks.get(f"{self._chunks}{each.nuid}", 0) == each.chunks
            and (each.chunks > 0 or each.size == 0)
        }

    async def read(self, name: str, limit_bytes: int) -> bytes | None:
        """All of a small object, or what is over the limit by a chunk at most; None if it has none of that name."""
        stored = await self.find(name)
        if stored is None:
            return None
        return b"".join([chunk async for page in self.get(stored, limit_bytes + 1) for chunk in page])

    async def find(self, name: str) -> Stored | None:
        """What it says of an object; None if it has none of that name."""
        found = await self._described(self._meta(name))
        return None if found is None or found.deleted or found.name != name else found

    async def get(self, stored: Stored, size_bytes: int) -> AsyncIterator[list[bytes]]:
        """The bytes of an object in pages, at most one chunk more than `size_bytes`, fewer if it ends before. A page
        that did not come is asked for again by whoever starts anew. Raises NoStore, UnreachableError."""
        subject, after, left = f"{self._chunks}{stored.nuid}", 0, size_bytes
        while left > 0:
            asked = {"next_by_subj": subject, "seq": after + 1, "batch": _PAGE_MESSAGES, "max_bytes": WINDOW_BYTES}
            page = await self._patient(asked)
            page = [each for each in page if each.subject == subject and each.data]
            if not page:
                return
            after = _sequence(page[-1])
            left -= sum(len(each.data) for each in page)
            yield [each.data for each in page]

    async def _patient(self, asked: Mapping[str, Any]) -> list[Message]:
        """A page, asked for as often as the connection is lost in between."""
        for pause_s in PAUSES_S:
            try:
                return await self._direct_get(asked)
            except ServerUnreachable:
                await asyncio.sleep(pause_s)
        return await self._direct_get(asked)

    async def _described(self, subject: str) -> Stored | None:
        found = await self._patient({"last_by_subj": subject})
        try:
            return msgspec.json.decode(found[0].data, type=Stored) if found else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    async def _subjects(self, pattern: str) -> dict[str, int]:
        """How many messages there are under each subject."""
        found: dict[str, int] = {}
        while len(found) < 2 * MAX_OBJECTS:
            told = await self._known("STREAM.INFO", {"subjects_filter": pattern, "offset": len(found)})
            page = (told.get("state") or {}).get("subjects") or {}
            found |= page
            if len(page) < _SUBJECTS_PAGE or len(found) >= int(told.get("total") or 0):
                break
        return found

    def _meta(self, name: str) -> str:
        return self._metas + base64.urlsafe_b64encode(name.encode()).decode()

    async def _purge(self, subject: str) -> None:
        await self._api("STREAM.PURGE", {"filter": subject}, absent_is=None)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _direct_get(self, question: Mapping[str, Any]) -> list[Message]:
        """What JetStream answers: messages, then the end of the batch, or one message alone."""
        found: list[Message] = []
        async with _Inbox(self) as inbox:
            await self._bus.publish(f"$JS.API.DIRECT.GET.{self._stream}", json.dumps(question).encode(), inbox.name)
            while len(found) <= _PAGE_MESSAGES:
                message = await inbox.next()
                headers = message.headers or {}
                if message.no_responders:
                    raise self._absent()
                if "Status" in headers:
                    if headers["Status"] in (END_OF_BATCH, NOT_FOUND):
                        return found
                    raise SawyerError(f"JetStream would not read {self.name}: {dict(headers)}")
                found.append(_kept(message))
                if "batch" not in question:
                    return found
        raise SawyerError(f"JetStream answers with more of {self.name} than it was asked for")

    async def _known(self, verb: str, question: Mapping[str, object] | None = None) -> dict[str, Any]:
        found = await self._api(verb, question, absent_is=None)
        if found is None:
            raise self._absent()
        return found

    async def _api(
        self, verb: str, question: Mapping[str, object] | None = None, *, absent_is: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        """An answer of JetStream's API; `absent_is` where there is no such bucket. Raises NoStore without JetStream."""
        raw = json.dumps(question).encode() if question is not None else b""
        try:
            reply = answer(await self._bus.request(f"$JS.API.{verb}.{self._stream}", raw, API_TIMEOUT_S))
        except NobodyServes as error:
            raise NoStore(_NO_STORE, hint=_SERVER) from error
        except NoAnswer as error:
            raise NoAnswer(f"JetStream does not answer {verb} for {self.name}", hint=_PERMITTED) from error
        if "error" not in reply:
            return reply
        code = error_code(reply)
        if code == NO_STREAM:
            return absent_is
        if code == _NAME_IN_USE and verb == "STREAM.CREATE":
            return reply
        raise refusal(reply, f"{verb} of {self.name}")

    def _absent(self) -> NoStore:
        if not self._bus.server.jetstream:
            return NoStore(_NO_STORE, hint=_SERVER)
        return NoStore(
            f"the network's store has no bucket {self.name}",
            hint="Its operator offers a model's files with `sawyer models publish MODEL`.",
        )

    def _lose(self) -> None:
        """The connection is gone: what was asked will not be answered."""
        for each in self._waiting:
            each.lose()


PAUSES_S: Final = (0.2, 1.0, 3.0, 10.0)
"""Before a page is asked for again."""
_NO_STORE: Final = "this NATS server has no JetStream, and so no store of models"
_SERVER: Final = "Its operator runs nats-server with JetStream (-js); `sawyer up` does."
_ANOTHER: Final = "Look again when it has ended: it may be all there then."
_PERMITTED: Final = "Check that the NATS user may use $JS.API.> and $O.> (the server logs what it refuses)."


class _Inbox:
    """Answers to one question. Silence ends it."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self.name = bucket._bus.new_inbox()
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()

    async def __aenter__(self) -> _Inbox:
        self._bucket._waiting.add(self)
        self._subscription = await self._bucket._bus.subscribe(self.name, self._arrived.put_nowait)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bucket._waiting.discard(self)
        await self._subscription.unsubscribe()

    def lose(self) -> None:
        self._arrived.put_nowait(None)

    @property
    def is_empty(self) -> bool:
        return self._arrived.empty()

    async def next(self) -> Message:
        """Raises NoAnswer when nothing comes, ServerUnreachable when the connection is lost."""
        try:
            async with asyncio.timeout(STALL_TIMEOUT_S):
                message = await self._arrived.get()
        except TimeoutError as error:
            silent = f"nothing came from {self._bucket.name} for {STALL_TIMEOUT_S:g} s"
            raise NoAnswer(silent, hint=_PERMITTED) from error
        if message is None:
            raise ServerUnreachable("the connection to the NATS server is lost")
        return message


class _Acknowledged(_Inbox):
    """Messages to JetStream, in order; left only when each of them is stored."""

    def __init__(self, bucket: Bucket, what: str) -> None:
        super().__init__(bucket)
        self._what = what
        self._sent: list[int] = []
        self._open_bytes = 0

    async def __aenter__(self) -> _Acknowledged:
        await super().__aenter__()
        return self

    async def __aexit__(self, *raised: object) -> None:
        try:
            while raised[0] is None and self._sent:
                await self._one()
        finally:
            await super().__aexit__(*raised)

    async def send(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Raises NoSpace, NoStore, UnreachableError, SawyerError with JetStream's word on this or one before."""
        while self._sent and (self._open_bytes + len(data) > WINDOW_BYTES or not self.is_empty):
            await self._one()
        await self._bucket._bus.publish(subject, data, self.name, headers)
        self._sent.append(len(data))
        self._open_bytes += len(data)

    async def _one(self) -> None:
        message = await self.next()
        if message.no_responders:
            raise self._bucket._absent()
        reply = answer(message.data)
        if "error" in reply:
            if error_code(reply) in _WRONG_LAST:
                raise Busy(self._bucket._written_by_another, hint=_ANOTHER)
            raise refusal(reply, f"storing {self._what}")
        self._open_bytes -= self._sent.pop(0)


async def bucket_names(bus: NatsBus) -> list[str]:
    """Every bucket on this server, by name. Raises NoStore without JetStream."""
    found: list[str] = []
    while True:
        raw = json.dumps({"offset": len(found)}).encode()
        try:
            reply = answer(await bus.request("$JS.API.STREAM.NAMES", raw, API_TIMEOUT_S))
        except NobodyServes as error:
            raise NoStore(_NO_STORE, hint=_SERVER) from error
        if "error" in reply:
            raise refusal(reply, "STREAM.NAMES")
        page = list(reply.get("streams") or ())
        found += page
        if not page or len(found) >= int(reply.get("total") or 0):
            return sorted(name.removeprefix("OBJ_") for name in found if name.startswith("OBJ_"))


def refusal(reply: Mapping[str, Any], what: str) -> SawyerError:
    """JetStream's no as a typed error."""
    code, why = error_code(reply), reason(reply)
    if code in _FULL:
        return NoSpace(
            f"JetStream has no room left: {what}: {why}",
            hint="Give the NATS server more disk (max_file_store), or delete models from it: "
            "sawyer models rm MODEL --from-network.",
        )
    if code in NO_JETSTREAM:
        return NoStore(f"no JetStream for us on this NATS server: {why}", hint=_SERVER)
    return SawyerError(f"JetStream refused {what}: {why}", hint="The log of the NATS server says more.")


def _kept(message: Message) -> Message:
    """A message under the subject that it was stored under."""
    subject = (message.headers or {}).get("Nats-Subject", "")
    return Message(subject, message.data, headers=message.headers)


def _sequence(message: Message) -> int:
    try:
        return int((message.headers or {})["Nats-Sequence"])
    except (KeyError, ValueError) as error:
        raise SawyerError(f"JetStream sent a message without its number: {dict(message.headers or {})}") from error
