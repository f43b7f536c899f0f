"""Attacks on a real NATS server that knows an authority: who gets in, what each may say and hear, and how fast somebody
is out. Every refusal here is the server's, not ours."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sawyer.authority.admission import Admission
from sawyer.authority.files import Authority
from sawyer.authority.service import AuthorityService
from sawyer.bus.calls import ask_at
from sawyer.bus.connection import NatsBus
from sawyer.bus.membership import Member, join, renew, write_credentials
from sawyer.bus.protocol import Message
from sawyer.bus.server import LocalServer
from sawyer.clock import SystemClock
from sawyer.contexts import NatsTarget
from sawyer.errors import BadSignature, CertificateRefused, NobodyServes, NotAuthorised, SawyerError, ServerUnreachable
from sawyer.home import Home, Pin
from sawyer.identity import jwt
from sawyer.identity.certificate import certificate_jwt
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ids import ModelId, NodeId
from sawyer.schemas import subjects
from sawyer.schemas.certificates import REQUESTED_KIND, SUCCEEDED_KIND, CertificateReply, Gone, Renewing
from sawyer.schemas.permissions import Role
from sawyer.schemas.signed import Signature

NETWORK = "sawyer-net/3f9a1c22"
ATTIC, CELLAR, MODEL = NodeId("attic"), NodeId("cellar"), ModelId("austen")


@dataclass
class Guarded:
    """A server that lets in whom its authority certified, and connections of members."""

    home: Home
    server: LocalServer
    admission: Admission
    operator: Key
    open: contextlib.AsyncExitStack
    keys: dict[str, Key] = field(default_factory=dict)

    def credentials(self, role: Role, name: str, **terms: object) -> Path:
        """A file with a certificate as the authority issues it. `expires_s`, `signer`: another one."""
        now_s = int(time.time())
        key = self.keys.setdefault(f"{role}-{name}", Key.generate())
        authority = self.admission.authority
        signer = terms.get("signer") or authority._signers[role]
        expires_s = terms.get("expires_s", now_s + 60)
        assert isinstance(signer, Key)
        assert isinstance(expires_s, int)
        token = certificate_jwt(
            signer, authority.account, key.id, name, now_s=now_s, expires_s=expires_s, models=[MODEL]
        )
        file = self.home.credentials(role, name)
        write_credentials(file, token, key)
        return file

    async def connect(self, file: Path | None, name: str = "test") -> NatsBus:
        bus = await NatsBus.connect(NatsTarget(url=self.server.url, creds=file), name=name)
        self.open.push_async_callback(bus.close)
        return bus

    async def member(self, role: Role, name: str) -> NatsBus:
        return await self.connect(self.credentials(role, name), name)

    async def run_authority(self) -> AuthorityService:
        """At work until the end of the test."""
        server = await self.connect(self.admission.authority.server_credentials)
        bus = await self.member("authority", "authority")
        pin = Pin(NETWORK, "unused", self.operator.id)
        service = AuthorityService(bus, server, self.admission, pin, SystemClock())
        ready = asyncio.Event()
        task = asyncio.create_task(service.run(ready.set))

        async def end() -> None:
            service.stop()
            await task

        self.open.push_async_callback(end)
        await ready.wait()
        return service


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    home, operator = Home(tmp_path / "home"), Key.generate("O")
    admission = Admission.open(Authority.open(home, NETWORK, operator, int(time.time())))
    with LocalServer.start(home.nats, trust=admission.authority.trust) as server:
        async with contextlib.AsyncExitStack() as stack:
            yield Guarded(home, server, admission, operator, stack)


async def heard(bus: NatsBus, subject: str, say: Callable[[], object]) -> list[Message]:
    """What a subscription to this subject hears of what `say` sends. The server handles what one connection asks in
    order, so after a flush of both there is no more to come."""
    found: list[Message] = []
    await bus.subscribe(subject, found.append)
    await bus.flush()
    result = say()
    assert asyncio.iscoroutine(result)
    await result
    await bus.flush()
    return found


async def says(bus: NatsBus, subject: str, reply: str = "") -> None:
    await bus.publish(subject, b"x", reply)
    await bus.flush()


# --- who gets in ------------------------------------------------------------------------------------------------------


async def test_member_connects(guarded: Guarded) -> None:
    bus = await guarded.member("node", ATTIC)
    await bus.flush()


async def test_stranger_without_a_certificate_is_refused(guarded: Guarded) -> None:
    with pytest.raises(ServerUnreachable, match="refused us"):
        await guarded.connect(None)


@pytest.mark.parametrize(
    "terms",
    [{"expires_s": 1_000_000_000}, {"signer": Key.from_raw(b"\7" * 32, "A")}, {"signer": Key.from_raw(b"\7" * 32)}],
    ids=["expired", "of another network", "signed by itself"],
)
async def test_certificate_that_does_not_hold_is_refused(guarded: Guarded, terms: dict[str, object]) -> None:
    file = guarded.credentials("node", ATTIC, **terms)
    with pytest.raises(ServerUnreachable, match=f"refused us, connecting with creds {file}"):
        await guarded.connect(file)


async def test_tampered_certificate_is_refused(guarded: Guarded) -> None:
    file = guarded.credentials("node", ATTIC)
    text = file.read_text()
    body = text.split("\n")[1].split(".")[1]
    file.write_text(text.replace(body, body[:40] + ("A" if body[40] != "A" else "B") + body[41:]))
    with pytest.raises(ServerUnreachable, match="refused us"):
        await guarded.connect(file)


async def test_certificate_of_somebody_else_is_of_no_use_without_their_key(guarded: Guarded) -> None:
    file = guarded.credentials("node", ATTIC)
    seed = guarded.keys["node-attic"].seed
    file.write_text(file.read_text().replace(seed, Key.generate().seed))
    with pytest.raises(ServerUnreachable, match="refused us"):
        await guarded.connect(file)


async def test_credentials_that_others_may_read_are_refused(guarded: Guarded) -> None:
    file = guarded.credentials("node", ATTIC)
    file.chmod(0o644)
    with pytest.raises(NotAuthorised, match="mode 0644, expected 0600"):
        await guarded.connect(file)


# --- what a member may hear and say -----------------------------------------------------------------------------------


async def test_node_hears_what_is_asked_of_it(guarded: Guarded) -> None:
    node, router = await guarded.member("node", ATTIC), await guarded.member("router", "router-1")
    subject = subjects.expert(ATTIC, MODEL, 0, 3)
    assert len(await heard(node, subjects.experts_of(ATTIC, MODEL), lambda: says(router, subject))) == 1


@pytest.mark.parametrize(
    ("listens", "said"),
    [
        (subjects.experts_of(CELLAR, MODEL), subjects.expert(CELLAR, MODEL, 0, 3)),
        (subjects.experts_of(ATTIC, ModelId("emma")), subjects.expert(ATTIC, ModelId("emma"), 0, 3)),
        (f"sawyer.v1.expert.{ATTIC}.>", subjects.expert(ATTIC, MODEL, 0, 3)),
        ("sawyer.v1.expert.>", subjects.expert(CELLAR, MODEL, 0, 3)),
        (subjects.finish(CELLAR), subjects.finish(CELLAR)),
        ("sawyer.>", subjects.finish(CELLAR)),
        (">", subjects.finish(CELLAR)),
    ],
    ids=["another node's rows", "a model it has no consent for", "all its models", "all rows", "another's finish",
         "everything of ours", "everything"],
)  # fmt: skip
async def test_node_hears_nothing_that_is_anothers(guarded: Guarded, listens: str, said: str) -> None:
    node, router = await guarded.member("node", ATTIC), await guarded.member("router", "router-1")
    assert await heard(node, listens, lambda: says(router, said)) == []


@pytest.mark.parametrize("role", ["node", "account", "router", "bookkeeper", "operator"])
async def test_nobody_reads_what_another_is_answered(guarded: Guarded, role: Role) -> None:
    spy, node = await guarded.member(role, "spy"), await guarded.member("node", ATTIC)
    router = await guarded.member("router", "router-1")
    found: list[Message] = []

    def answer(message: Message) -> None:
        found.append(message)

    await node.subscribe(subjects.experts_of(ATTIC, MODEL), answer)
    await node.flush()
    inbox = router.new_inbox()
    spied = await heard(spy, inbox, lambda: says(router, subjects.expert(ATTIC, MODEL, 0, 0), inbox))
    await node.flush()
    assert [each.reply for each in found] == [inbox]
    await node.publish(inbox, b"the answer")
    await node.flush()
    await spy.flush()
    assert spied == []


@pytest.mark.parametrize(
    ("role", "subject"),
    [
        ("node", subjects.heartbeat(CELLAR)),
        ("node", subjects.ledger("inference-completed")),
        ("node", subjects.ledger("tokens-granted")),
        ("node", subjects.network("gone")),
        ("node", subjects.expert(CELLAR, MODEL, 0, 0)),
        ("account", subjects.ledger("tokens-granted")),
        ("account", subjects.expert(ATTIC, MODEL, 0, 0)),
        ("account", subjects.heartbeat(ATTIC)),
        ("router", subjects.ledger("tokens-granted")),
        ("router", subjects.heartbeat(ATTIC)),
        ("router", subjects.network("gone")),
        ("newcomer", subjects.query("members")),
        ("newcomer", subjects.infer(MODEL)),
        ("newcomer", subjects.network("renew")),
        ("bookkeeper", subjects.expert(ATTIC, MODEL, 0, 0)),
        ("account", "$JS.API.STREAM.DELETE.SAWYER"),
        ("node", "$JS.API.CONSUMER.CREATE.SAWYER"),
        ("node", "$JS.API.STREAM.CREATE.SAWYER"),
        ("router", "$SYS.REQ.CLAIMS.UPDATE"),
    ],
)
async def test_member_says_nothing_that_is_not_its_own(guarded: Guarded, role: Role, subject: str) -> None:
    """The listener has the server's own credentials where a subject is the server's: nobody hears it at all."""
    member = await guarded.member(role, ATTIC)
    listener = await guarded.connect(_everything(guarded))
    assert await heard(listener, subject, lambda: says(member, subject)) == []


def _everything(guarded: Guarded) -> Path:
    """Credentials that may hear all of the account: what the account's own key signs has no role, and so no bounds."""
    key, account = Key.generate(), guarded.admission.authority._account
    unbounded = {"type": "user", "subs": -1, "data": -1, "payload": -1}
    file = guarded.home.credentials("test", "everything")
    write_credentials(file, jwt.encode(account, key.id, "everything", unbounded, now_s=int(time.time())), key)
    return file


async def test_listener_of_these_tests_hears_what_is_allowed(guarded: Guarded) -> None:
    """Or they would prove nothing."""
    node, listener = await guarded.member("node", ATTIC), await guarded.connect(_everything(guarded))
    assert len(await heard(listener, subjects.heartbeat(ATTIC), lambda: says(node, subjects.heartbeat(ATTIC)))) == 1


async def test_question_that_a_role_may_not_ask_is_answered_with_why(guarded: Guarded) -> None:
    newcomer = await guarded.member("newcomer", ATTIC)
    with pytest.raises(NotAuthorised, match=r"does not let us say anything on sawyer\.v1\.query\.members"):
        await newcomer.request(subjects.query("members"), b"", 0.5)


async def test_node_answers_whoever_asked_it_once(guarded: Guarded) -> None:
    node, router = await guarded.member("node", ATTIC), await guarded.member("router", "router-1")
    asked: list[Message] = []
    await node.subscribe(subjects.experts_of(ATTIC, MODEL), asked.append)
    await node.flush()
    inbox = router.new_inbox()
    answers: list[Message] = []
    await router.subscribe(inbox, answers.append)
    await router.publish(subjects.expert(ATTIC, MODEL, 0, 0), b"", inbox)
    await router.flush()
    await node.flush()
    for _ in range(3):
        await node.publish(inbox, b"answer")
    await node.flush()
    await router.flush()
    assert len(asked) == 1
    assert len(answers) == 1


# --- joining and leaving ----------------------------------------------------------------------------------------------


async def _join(guarded: Guarded, name: str) -> tuple[Member, Path]:
    now_s = int(time.time())
    invitation = guarded.admission.invite("node", "", "maria", guarded.server.url, "v", now_s, 60)
    asking = guarded.home.credentials("newcomer", name)
    write_credentials(asking, invitation.certificate, invitation.key)
    member = Member(NETWORK, guarded.operator.id, "node", name, Key.generate(), (MODEL,))
    token = await join(await guarded.connect(asking), invitation, member, SystemClock())
    file = guarded.home.credentials("node", name)
    write_credentials(file, token, member.key)
    return member, file


async def test_newcomer_joins_with_an_invitation_and_works(guarded: Guarded) -> None:
    await guarded.run_authority()
    _, file = await _join(guarded, ATTIC)
    node, router = await guarded.connect(file), await guarded.member("router", "router-1")
    subject = subjects.expert(ATTIC, MODEL, 0, 3)
    assert len(await heard(node, subjects.experts_of(ATTIC, MODEL), lambda: says(router, subject))) == 1


async def test_newcomer_without_an_authority_is_told(guarded: Guarded) -> None:
    with pytest.raises(NobodyServes):
        await _join(guarded, ATTIC)


async def test_revoked_node_is_cut_off_while_others_go_on_and_routers_are_told(guarded: Guarded) -> None:
    service = await guarded.run_authority()
    member, file = await _join(guarded, ATTIC)
    _, other_file = await _join(guarded, CELLAR)
    node, other = await guarded.connect(file, ATTIC), await guarded.connect(other_file, CELLAR)
    router, told = await guarded.member("router", "router-1"), asyncio.Queue[Message]()
    await router.subscribe(subjects.network("gone"), told.put_nowait)
    await router.flush()
    _, token = guarded.admission.revoke_key(member.key.id, int(time.time()))
    await service._push(token)
    async with asyncio.timeout(10):
        await node.closed.wait()
        gone = Gone.parse((await told.get()).data)
    assert isinstance(node.why_closed, CertificateRefused)
    assert (gone.name, gone.key) == (ATTIC, member.key.id)
    await other.flush()
    with pytest.raises(ServerUnreachable, match="refused us"):
        await guarded.connect(file)
    with pytest.raises(CertificateRefused, match="revoked"):
        await renew(other, member, SystemClock())


async def test_replaced_key_counts_no_more_and_its_successor_does(guarded: Guarded) -> None:
    await guarded.run_authority()
    member, file = await _join(guarded, ATTIC)
    bus = await guarded.connect(file, ATTIC)
    successor = replace(member, key=Key.generate())
    token = await renew(bus, successor, SystemClock(), former=member.key)
    async with asyncio.timeout(10):
        await bus.closed.wait()
    with pytest.raises(ServerUnreachable, match="refused us"):
        await guarded.connect(file)
    write_credentials(file, token, successor.key)
    await (await guarded.connect(file, ATTIC)).flush()


async def test_key_is_not_replaced_by_who_does_not_have_it(guarded: Guarded) -> None:
    await guarded.run_authority()
    member, _ = await _join(guarded, ATTIC)
    thief, thiefs_file = await _join(guarded, CELLAR)
    bus = await guarded.connect(thiefs_file, CELLAR)
    with pytest.raises(CertificateRefused, match="has no certificate"):
        await renew(bus, replace(member, key=Key.generate()), SystemClock(), former=thief.key)
    forged = Renewing(
        requested=sign(replace(member, key=thief.key).request(SystemClock()), REQUESTED_KIND, ATTIC, thief.key),
        succeeds=Signature(by=ATTIC, key_id=member.key.id, type=SUCCEEDED_KIND, sig="A" * 86 + "=="),
    )
    with pytest.raises(BadSignature):
        await ask_at(bus, subjects.network("renew"), CertificateReply, forged, 5)


async def test_routers_are_told_of_a_node_whose_connection_ended_and_not_of_a_side_connection(guarded: Guarded) -> None:
    await guarded.run_authority()
    member, file = await _join(guarded, ATTIC)
    router, told = await guarded.member("router", "router-1"), asyncio.Queue[Message]()
    await router.subscribe(subjects.network("gone"), told.put_nowait)
    await router.flush()
    for name in ("pull austen", ATTIC):
        bus = await guarded.connect(file, name)
        await bus.close()
    async with asyncio.timeout(10):
        gone = Gone.parse((await told.get()).data)
    assert (gone.name, gone.key, gone.revoked) == (ATTIC, member.key.id, False)
    assert told.empty()


async def test_connection_outlives_its_certificate_when_there_is_another_by_then(guarded: Guarded) -> None:
    file = guarded.credentials("node", ATTIC, expires_s=int(time.time()) + 4)
    bus = await guarded.connect(file, ATTIC)
    lost = asyncio.Event()
    bus.on_disconnect(lost.set)
    guarded.credentials("node", ATTIC)  # renewed meanwhile
    async with asyncio.timeout(20):
        await lost.wait()
        while True:
            with contextlib.suppress(SawyerError):
                await bus.flush()
                break
            await asyncio.sleep(0.05)
    assert not bus.closed.is_set()
