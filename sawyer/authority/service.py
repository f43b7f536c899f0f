"""The authority at work: answers newcomers and members, tells the server who is revoked, and routers who is gone.

It has two connections: one in the network's account, as a member, and one to the server itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from sawyer.authority.admission import Admission
from sawyer.bus.calls import ask, read, refuse_query
from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Service
from sawyer.clock import Clock
from sawyer.errors import RefusedError, SawyerError
from sawyer.home import Pin
from sawyer.ledger.succession import trusted
from sawyer.schemas import subjects
from sawyer.schemas.base import Strict
from sawyer.schemas.certificates import CertificateReply, CertifiedReply, Gone, Joining, Renewing, Revoking
from sawyer.schemas.messages import NetworkReply

CLAIMS_UPDATE: Final = "$SYS.REQ.CLAIMS.UPDATE"
CLAIMS_TIMEOUT_S: Final = 2.0
QUESTIONS_LIMIT: Final = 256
MAX_QUESTION_BYTES: Final = 64 * 1024
CUT_OFF_AFTER_S: Final = 1.0
"""A key that was replaced is still connected so long."""
RENEW_HERE_S: Final = 3600.0
"""How often certificates whose keys are in this home are looked at."""

QuestionT = TypeVar("QuestionT", bound=Strict)

log = logging.getLogger(__name__)


class AuthorityService:
    """Run it with `await run()`; it returns after `stop()`."""

    def __init__(self, bus: Bus, server: Bus, admission: Admission, pin: Pin, clock: Clock) -> None:
        self._bus = bus
        self._server = server
        self._authority = admission.authority
        self._admission = admission
        self._pin = pin
        self._clock = clock
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`. Raises RefusedError if the server does not take this authority's word."""
        await self._push(self._authority.account_token)
        services = [
            self._serving("join", Joining, self._join),
            self._serving("renew", Renewing, self._renew),
            self._serving("revoke", Revoking, self._revoke),
            Service(self._bus, subjects.network("members"), self._members, refuse_query, limit=QUESTIONS_LIMIT),
        ]
        gone = await self._server.subscribe(f"$SYS.ACCOUNT.{self._authority.account}.DISCONNECT", self._note_gone)
        for service in services:
            await service.start()
        await self._bus.flush()
        await self._server.flush()
        renewing = asyncio.create_task(self._renew_here())
        started()
        try:
            await self._stopping.wait()
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
            await gone.unsubscribe()
            for service in services:
                await service.stop()

    def stop(self) -> None:
        self._stopping.set()

    def _serving(self, what: str, kind: type[QuestionT], answer: Callable[[QuestionT], Any]) -> Service:
        async def serve(message: Message) -> bytes:
            reply: Strict = await answer(read(kind, message.data))
            return reply.canonical()

        return Service(
            self._bus, subjects.network(what), serve, refuse_query, limit=QUESTIONS_LIMIT, max_bytes=MAX_QUESTION_BYTES
        )

    async def _join(self, joining: Joining) -> CertificateReply:
        return self._reply(await asyncio.to_thread(self._admission.join, joining, self._now_s()))

    async def _renew(self, renewing: Renewing) -> CertificateReply:
        reply = self._reply(await asyncio.to_thread(self._admission.renew, renewing, self._now_s()))
        if renewing.succeeds is not None:  # who asks is connected with the key that counts no more: answered first
            asyncio.get_running_loop().call_later(CUT_OFF_AFTER_S, self._start, self._push(reply.account))
        return reply

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_noticed)

    async def _revoke(self, revoking: Revoking) -> CertifiedReply:
        network = await ask(self._bus, "network", NetworkReply)
        operator, _ = trusted(self._pin, network.successors)
        member, token = await asyncio.to_thread(self._admission.revoke, revoking, operator, self._now_s())
        await self._push(token)
        log.warning("%s %s is revoked", member.role, member.name)
        await self._tell(Gone(name=member.name, key=member.key, revoked=True))
        return CertifiedReply(members=(member,))

    async def _members(self, _: Message) -> bytes:
        return CertifiedReply(members=self._admission.registry.members).canonical()

    def _reply(self, certificate: str) -> CertificateReply:
        authority = self._authority
        return CertificateReply(
            certificate=certificate, account=authority.account_token, operator=authority.operator_token
        )

    async def _push(self, token: str) -> None:
        """Give the server the account's JWT; whoever it revokes is cut off at once."""
        raw = await self._server.request(CLAIMS_UPDATE, token.encode("ascii"), CLAIMS_TIMEOUT_S)
        told = json.loads(raw)
        if told.get("data", {}).get("code") != 200:
            raise RefusedError(f"the NATS server does not take the account's JWT: {told.get('error', told)}")

    def _note_gone(self, message: Message) -> None:
        """The server's word that a connection of our account ended. Nodes have several: what counts is the one that
        has their name."""
        with contextlib.suppress(ValueError, AttributeError):
            client = json.loads(message.data).get("client", {})
            key, name = client.get("user") or client.get("nkey") or "", client.get("name", "")
            member = self._admission.registry.of_key(key)
            if member is not None and member.role == "node" and member.name == name:
                self._start(self._tell(Gone(name=member.name, key=member.key)))

    async def _tell(self, gone: Gone) -> None:
        await self._bus.publish(subjects.network("gone"), gone.canonical())

    async def _renew_here(self) -> None:
        while True:
            await asyncio.to_thread(self._admission.renew_here, self._now_s())
            await asyncio.sleep(RENEW_HERE_S)

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000


def _noticed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and isinstance(error := task.exception(), SawyerError):
        log.warning("the server, or routers, could not be told: %s", error)
