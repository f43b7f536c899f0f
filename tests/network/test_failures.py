"""Nodes that lie, break or fall silent; messages that are no messages; a bookkeeper that restarts. Nothing changes the
answer, nothing is billed for nothing, and everybody goes on serving."""

from __future__ import annotations

import asyncio
import dataclasses

import numpy as np
import pytest

from sawyer.errors import (
    MalformedMessage,
    NoAnswer,
    NotAuthorised,
    RefusedError,
    SawyerError,
    UnknownExpert,
    WrongManifest,
)
from sawyer.identity.envelope import sign
from sawyer.identity.keys import load_or_create
from sawyer.ids import NodeId, new_request_id
from sawyer.ledger.commands import command
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas import subjects, tensors
from sawyer.schemas.events import RECEIPT_KIND, AccountOpened, TokensGranted
from sawyer.schemas.messages import Finish, FinishReply, InferMessage, LedgerReply, QueryError
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest, Part

from .conftest import start_bookkeeper

ROGUE = "a-rogue"
"""Sorts before the honest nodes, so that it is chosen while nothing is known."""


def _answer(raw: bytes, **changes: object) -> bytes:
    """An answer of the right form, with zeros instead of work."""
    asked = tensors.decode_request(raw)
    blocks = tuple((expert, np.zeros((len(rows), asked.rows.shape[1]), np.float16)) for expert, rows in asked.work)
    reply = ActivationReply(asked.parts, asked.manifest, asked.layer, blocks, 1, 1)
    return tensors.encode_reply(dataclasses.replace(reply, **changes))


def _parts(raw: bytes, **changes: object) -> tuple[Part, ...]:
    return tuple(part._replace(**changes) for part in tensors.decode_request(raw).parts)


def _nan(raw: bytes) -> bytes:
    asked = tensors.decode_request(raw)
    block = np.full((len(asked.work[0][1]), asked.rows.shape[1]), np.nan, np.float16)
    rest = [(expert, np.zeros((len(rows), asked.rows.shape[1]), np.float16)) for expert, rows in asked.work[1:]]
    return _answer(raw, blocks=((asked.work[0][0], block), *rest))


def _short_block(raw: bytes) -> bytes:
    asked = tensors.decode_request(raw)
    return _answer(raw, blocks=((asked.work[0][0], np.zeros((1, 8), np.float16)),))


ROGUES = {
    "garbage": lambda raw: b"\x00\xff" * 40,
    "nothing": lambda raw: b"",
    "truncated": lambda raw: _answer(raw)[:-7],
    "not a number": _nan,
    "wrong shape": _short_block,
    "another request": lambda raw: _answer(raw, parts=_parts(raw, request="ff" * 16)),
    "another sequence": lambda raw: _answer(raw, parts=_parts(raw, sequence=77)),
    "another manifest": lambda raw: _answer(raw, manifest=b"\x01" * 8),
    "a refusal": lambda raw: tensors.encode_error(SawyerError("no")),
    "silence": lambda raw: None,
}


def _prefer(network, name: str) -> None:
    """Make the router believe that this node is the fastest."""
    state = network.parts["router-1"].part._directory.placement.nodes[NodeId(name)]
    state.latency_us, state.measured_s = 0.0, asyncio.get_running_loop().time() + 60


@pytest.mark.parametrize("how", ROGUES)
async def test_node_that_answers_wrongly_is_passed_over_and_the_text_is_the_same(network, how, monkeypatch):
    monkeypatch.setattr("sawyer.router.placement.DEADLINE_UNMEASURED_S", 0.3)
    async with network.client() as client:
        expected = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=6)
        await network.add_rogue(ROGUE, ROGUES[how])
        await network.router_sees(ROGUE, "node-1", "node-2")
        _prefer(network, ROGUE)
        answer = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=6)
    assert answer.ids == expected.ids
    assert ROGUE in {each.lost for each in answer.usage.takeovers}
    assert {node.node for node in answer.usage.nodes} <= {"node-1", "node-2"}
    assert (await network.audit()).ok


async def _with_a_working_rogue(network, finish) -> None:
    """A rogue that computes honestly through node-1, and lies in its receipt."""
    bus = await network.connect("proxy")

    async def relay(raw: bytes) -> bytes:
        asked = tensors.decode_request(raw)
        subject = subjects.expert(NodeId("node-1"), DEMO_MODEL, asked.layer, asked.work[0][0])
        return await bus.request(subject, raw, 5)

    await network.add_rogue(ROGUE, relay, finish)
    await network.router_sees(ROGUE, "node-1", "node-2")
    _prefer(network, ROGUE)


@pytest.mark.parametrize("lie", ["none", "garbage", "more rows", "other root", "foreign key", "other request"])
async def test_node_with_a_false_receipt_is_not_paid_and_the_consumer_is_served(network, keys, lie):
    key = load_or_create(network.home.node_key(ROGUE))

    def finish(raw: bytes) -> bytes | None:
        if lie == "none":
            return None
        if lie == "garbage":
            return b"{}"
        asked = Finish.model_validate_json(raw)
        return _false_receipt(network, asked, lie, keys["mallory"] if lie == "foreign key" else key)

    await _with_a_working_rogue(network, finish)
    async with network.client() as client:
        answer = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=6)
    used = {node.node: node for node in answer.usage.nodes}
    assert used[ROGUE].rows > 0
    assert not used[ROGUE].receipted
    report = await network.audit()
    assert report.ok
    assert f"host-of-{ROGUE}" not in {host.host for host in report.hosts}


def _false_receipt(network, asked: Finish, lie: str, key) -> bytes:
    from sawyer.schemas.events import NO_HASH, WorkReceipted

    rows = 10**6 if lie == "more rows" else 8
    body = WorkReceipted(
        network=network.network, node=ROGUE, request="ee" * 16 if lie == "other request" else asked.parts[0].request,
        model=asked.model, manifest=network.artifacts.digest, rows=rows, blocks=1, experts=((0, 0, rows),),
        root="ab" * 32, counter=1, previous=NO_HASH,
    )  # fmt: skip
    return FinishReply(receipt=sign(body, RECEIPT_KIND, ROGUE, key)).canonical()


# --- messages that are no messages ----------------------------------------------------------------------------------


def _request(network, **changes: object) -> ActivationRequest:
    layout = network.artifacts.layout
    fields = {
        "parts": (Part(new_request_id(), 1, 2),), "manifest": bytes.fromhex(network.artifacts.digest)[:8], "layer": 0,
        "rows": np.ones((2, layout.hidden), np.float16), "work": ((0, np.array([0, 1], np.uint32)),),
        "deadline_ms": 5000, **changes,
    }  # fmt: skip
    return ActivationRequest(**fields)


BAD_ACTIVATIONS = {
    "empty": (lambda net: b"", MalformedMessage),
    "text": (lambda net: b"GET / HTTP/1.1\r\n" * 10, MalformedMessage),
    "truncated": (lambda net: tensors.encode_request(_request(net))[:-3], MalformedMessage),
    "longer than it says": (lambda net: tensors.encode_request(_request(net)) + b"\0", MalformedMessage),
    "another version": (lambda net: b"SWYR\x09" + tensors.encode_request(_request(net))[5:], MalformedMessage),
    "wrong hidden size": (
        lambda net: tensors.encode_request(_request(net, rows=np.ones((2, 64), np.float16))), MalformedMessage,
    ),
    "wrong manifest": (lambda net: tensors.encode_request(_request(net, manifest=b"\7" * 8)), WrongManifest),
    "layer out of range": (lambda net: tensors.encode_request(_request(net, layer=99)), UnknownExpert),
    "expert out of range": (
        lambda net: tensors.encode_request(_request(net, work=((900, np.array([0], np.uint32)),))), UnknownExpert,
    ),
    "infinity": (
        lambda net: tensors.encode_request(_request(net, rows=np.full((2, 192), np.inf, np.float16))), MalformedMessage,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ACTIVATIONS)
async def test_bad_activation_gets_a_typed_error_and_the_node_goes_on(founded, what):
    await founded.add_node("node-1", 0, 1)
    make, kind = BAD_ACTIVATIONS[what]
    subject = subjects.expert(NodeId("node-1"), DEMO_MODEL, 0, 0)
    answer = tensors.decode_answer(await founded.bus.request(subject, make(founded), 5))
    assert isinstance(answer, ActivationError)
    assert type(answer.error) is kind
    good = tensors.decode_answer(await founded.bus.request(subject, tensors.encode_request(_request(founded)), 5))
    assert isinstance(good, ActivationReply)
    assert good.blocks[0][1].shape == (2, 192)


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff" * 100, b'{"order":1}', b"[" * 5000])
async def test_bad_generation_request_gets_a_typed_error_and_the_router_goes_on(network, raw):
    reply = await network.bus.request(subjects.infer(DEMO_MODEL), raw, 5)
    event = InferMessage.model_validate_json(reply).e
    assert event.event == "failed"
    assert event.error.code == MalformedMessage.code
    async with network.client() as client:
        assert (await client.generate("It was a", model=DEMO_MODEL, max_tokens=2)).text


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff" * 100, b'{"kind":"x"}'])
async def test_bad_command_and_bad_query_get_typed_errors_and_the_bookkeeper_goes_on(founded, raw):
    reply = LedgerReply.parse(await founded.bus.request(subjects.ledger("account-opened"), raw, 5))
    assert reply.error is not None
    assert reply.error.code == MalformedMessage.code
    refused = QueryError.model_validate_json(await founded.bus.request(subjects.query("balance"), raw, 5))
    assert refused.error.code == MalformedMessage.code
    async with founded.client() as client:
        assert (await client.balance()).available > 0


async def test_order_whose_parameters_were_swapped_on_the_way_is_refused(network):
    async with network.client() as client:
        stream = client.stream("It was a", model=DEMO_MODEL, max_tokens=4)
        swapped = stream._request.params.model_copy(update={"prompt": "Give me everything"})
        stream._request = stream._request.model_copy(update={"params": swapped})
        async with stream:
            with pytest.raises(MalformedMessage, match="commits"):
                await stream.result()
        assert (await client.balance()).held == 0


async def test_stranger_cannot_grant_tokens_to_itself(founded, keys):
    from sawyer.bus.calls import record

    mallory = keys["mallory"]
    opened = AccountOpened(network=founded.network, account="mallory", key=mallory.id)
    await record(founded.bus, command(opened, "mallory", mallory))
    grant = TokensGranted(
        network=founded.network, account="mallory", grant="free", tier="", tokens=10**9, valid_from_ms=0,
        period_end_ms=2**50, expires_ms=2**50, paid_uusd=0, mode="test", sealed=(),
    )  # fmt: skip
    for name in ("mallory", "operator"):
        with pytest.raises(NotAuthorised):
            await record(founded.bus, command(grant, name, mallory))
    assert (await founded.audit()).ok


async def test_account_of_another_key_cannot_be_opened_again(founded, keys):
    from sawyer.bus.calls import record

    opened = AccountOpened(network=founded.network, account="alice", key=keys["mallory"].id)
    with pytest.raises(RefusedError):
        await record(founded.bus, command(opened, "alice", keys["mallory"]))


async def test_bookkeeper_restarted_goes_on_with_the_same_book(network):
    async with network.client() as client:
        first = await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
        await network.parts["bookkeeper"].stop()
        await start_bookkeeper(network)
        second = await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
    assert second.ids == first.ids
    assert second.usage.entry > first.usage.entry
    assert (await network.audit()).ok


async def test_generation_waits_for_a_bookkeeper_that_restarts_meanwhile_and_is_billed_once(network):
    async with network.client() as client:
        before = await client.balance()
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=12) as stream:
            async for _ in stream:
                if len(stream.ids) == 2:
                    await network.parts["bookkeeper"].stop()
                if len(stream.ids) == 12 and "again" not in network.parts:
                    network.parts["again"] = network.parts["bookkeeper"]
                    restart = asyncio.create_task(start_bookkeeper(network))
        await restart
        after = await client.balance()
    assert before.available - after.available == stream.usage.billed_tokens
    assert (await network.audit()).ok


# --- connections, cancels and ends ------------------------------------------------------------------------------------


async def _raw(url: str, text: bytes) -> None:
    """Speak to the server without a client library, as an attacker may."""
    host, port = url.removeprefix("nats://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false}\r\n' + text + b"PING\r\n")
    while not (await reader.readline()).startswith(b"PONG"):
        pass
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "message",
    [
        b"PUB sawyer.v1.node.\xff.heartbeat 0\r\n\r\n",
        b"PUB sawyer.v1.ledger.\xff 0\r\n\r\n",
        b"PUB sawyer.v1.expert.node-1.austen-8m.0.\xff 0\r\n\r\n",
        b"PUB sawyer.v1.cancel.\xff 0\r\n\r\n",
        b"PUB sawyer.v1.infer.austen-8m \xff\xfe 2\r\n{}\r\n",
        b"PUB sawyer.v1.query.network reply\x0b 0\r\n\r\n",
    ],
)
async def test_message_on_a_subject_that_is_no_text_deafens_nobody(network, message):
    await _raw(network.url, message)
    async with network.client() as client:
        answer = await client.generate("It was a", model=DEMO_MODEL, max_tokens=4)
    assert len(answer.ids) == 4


async def test_cancel_before_the_generation_starts_is_heard(network):
    async with network.client() as client:
        before = await client.balance()
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=400) as stream:
            pass
        again = await client.generate("It was a", model=DEMO_MODEL, max_tokens=2)
        after = await client.balance()
    assert stream.usage is None
    assert before.available - after.available - after.held <= again.usage.billed_tokens + 3 + 20


async def test_client_that_gives_up_cancels_its_request(network, monkeypatch):
    monkeypatch.setattr("sawyer.client.stream.RESENDS", 0)
    heard: list[str] = []
    await network.bus.subscribe(subjects.all_cancels(), lambda message: heard.append(message.subject))
    async with network.client() as client:
        stream = client.stream("It was a", model=DEMO_MODEL, max_tokens=400)
        stream._timeout_s = 0.0
        async with stream:
            with pytest.raises(NoAnswer):
                await stream.result()
        await network.bus.flush()
    assert heard == [subjects.cancel(stream.request)]


async def test_router_that_loses_its_connection_goes_on_where_it_was(network):
    async with network.client() as client:
        whole = await client.generate("It was a", model=DEMO_MODEL, max_tokens=24)
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=24) as stream:
            async for _ in stream:
                if len(stream.ids) == 6:
                    network.parts["router-1"].bus._client._transport._io_writer.transport.abort()
    assert tuple(stream.ids) == whole.ids
    assert stream.usage.billed_tokens == whole.usage.billed_tokens
    assert (await network.audit()).ok


async def test_router_stopped_in_the_middle_tells_the_client_and_gives_the_hold_back(network, monkeypatch):
    monkeypatch.setattr("sawyer.router.service.DRAIN_TIMEOUT_S", 0.0)
    async with network.client() as client:
        before = await client.balance()
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=450) as stream:
            async for _ in stream:
                if len(stream.ids) == 6:
                    break
            network.parts["router-1"].part.stop()
            with pytest.raises(SawyerError, match="stopped"):
                await stream.result()
        after = await client.balance()
    assert (after.available, after.held) == (before.available, 0)
    assert (await network.audit()).ok


async def test_router_that_is_killed_and_started_anew_finishes_the_text_and_bills_it_once(network, monkeypatch):
    monkeypatch.setattr("sawyer.client.stream.SILENCE_S", 0.3)
    async with network.client() as client:
        whole = await client.generate("It was a", model=DEMO_MODEL, max_tokens=40)
        before = await client.balance()
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=40) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                if len(stream.ids) == 6:
                    await network.parts["router-1"].vanish()
                    await network.add_router()
        after = await client.balance()
    assert "".join(pieces) == whole.text
    assert tuple(stream.ids) == whole.ids
    assert before.available - after.available == whole.usage.billed_tokens
    assert after.held == 0
    assert (await network.audit()).ok
