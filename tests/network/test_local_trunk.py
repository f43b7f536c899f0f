"""A client that runs the trunk itself: the tokens and bills of a hosted one, and nothing private on the wire."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from sawyer.bus.calls import ask_at
from sawyer.errors import (
    BudgetTooSmall,
    ExpertUnavailable,
    MalformedMessage,
    PromptTooLong,
    RequestConflict,
    SessionEnded,
    UsageError,
    WrongManifest,
)
from sawyer.ids import RequestId, new_request_id
from sawyer.router import sessions
from sawyer.schemas import subjects
from sawyer.schemas.session_rows import HiddenRows, SummedRows, decode_session, encode_session
from sawyer.schemas.sessions import SessionClose, SessionClosed, SessionOpen, SessionOpened

from .test_speculation import ASKED, ORDINARY, said

LONG = ORDINARY * 16
"""More rows than one chunk of a prompt."""
PATIENCE_S = 20.0


def local_client(network, trunk=None):
    return network.client(trunk=trunk or network.artifacts.folder)


@pytest.mark.parametrize("options", [*ASKED, {"prompt": LONG, "max_tokens": 5}, {"prompt": "Emma was", "stop": ["e"]}])
async def test_tokens_text_and_bill_are_those_of_a_hosted_trunk(network, options):
    async with network.client() as hosted, local_client(network) as local:
        expected = await said(hosted, network.model, speculate=False, **options)
        got = await said(local, network.model, **options)
    assert got[:3] == expected[:3]
    bills = [(each.input_tokens, each.output_tokens, each.billed_tokens) for each in (got[3], expected[3])]
    assert bills[0] == bills[1]
    rows = [sum(node.rows for node in each.nodes) for each in (got[3], expected[3])]
    assert rows[0] == rows[1]
    assert all(node.receipted for node in got[3].nodes)
    assert (await network.audit()).ok


async def test_neither_prompt_nor_text_nor_token_leaves_the_client(network):
    heard = []
    ear = await network.connect("ear")
    await ear.subscribe(">", heard.append)
    async with local_client(network) as client:
        text, ids, *_ = await said(client, network.model, prompt=ORDINARY, max_tokens=12)
    await ear.flush()
    assert any(message.subject == subjects.activate("router-1") for message in heard)
    assert not any(message.subject.startswith("sawyer.v1.infer") for message in heard)
    for message in heard:
        assert ORDINARY.encode() not in message.data
        assert text.encode() not in message.data
        assert json.dumps(ids, separators=(",", ":")).encode()[1:-1] not in message.data


async def test_local_and_hosted_clients_at_once_get_what_each_gets_alone(network):
    async with network.client() as hosted, local_client(network) as local, local_client(network) as other:
        asked = [(local, ASKED[0]), (other, ASKED[2]), (hosted, ASKED[1]), (local, ASKED[3])]
        alone = [await said(client, network.model, **options) for client, options in asked]
        both = await asyncio.gather(*(said(client, network.model, **options) for client, options in asked))
    assert [each[:3] for each in both] == [each[:3] for each in alone]
    assert (await network.audit()).ok


async def test_node_that_vanishes_in_mid_text_changes_nothing(network):
    await network.add_node("node-3", 0, 1)
    await network.router_sees("node-1", "node-2", "node-3")
    async with local_client(network) as client:
        expected = await said(client, network.model, prompt=ORDINARY, max_tokens=30)
        async with client.stream(ORDINARY, model=network.model, max_tokens=30) as stream:
            async for _ in stream:
                if len(stream.ids) == 3:
                    await network.parts["node-1"].vanish()
    assert stream.ids == expected[1]
    assert stream.usage.billed_tokens == expected[3].billed_tokens
    assert (await network.audit()).ok


async def test_router_that_is_started_anew_in_mid_text_is_asked_again_and_billed_once(network):
    async with local_client(network) as client:
        expected = await said(client, network.model, prompt=ORDINARY, max_tokens=40)
        before = await client.balance()
        async with client.stream(ORDINARY, model=network.model, max_tokens=40) as stream:
            pieces = []
            async for piece in stream:
                pieces.append(piece)
                if len(stream.ids) == 5:
                    await network.parts["router-1"].vanish()
                    await network.add_router()
        left = before.available - (await client.balance()).available
    assert ("".join(pieces), stream.ids) == expected[:2]
    assert left == stream.usage.billed_tokens == expected[3].billed_tokens
    assert (await network.audit()).ok


async def test_text_leaves_nothing_behind_in_its_client(network):
    async with local_client(network) as client:
        bus = client._bus

        async def ask():
            await client.generate(ORDINARY, model=network.model, max_tokens=3)
            return len(bus._on_disconnect), len(bus._client._subs), len(bus._client._handlers)

        first = await ask()
        tasks = len(asyncio.all_tasks())
        assert [await ask() for _ in range(3)] == [first] * 3
        assert len(asyncio.all_tasks()) <= tasks


async def test_text_cancelled_while_its_router_is_started_anew_is_billed_as_it_was_given(network):
    async with local_client(network) as client:
        async with client.stream(ORDINARY, model=network.model, max_tokens=200) as stream:
            async for _ in stream:
                if len(stream.ids) == 5:
                    await network.parts["router-1"].vanish()
                    await stream.cancel()
                    await network.add_router()
        assert stream.finish == "cancelled"
        assert len(stream.ids) == stream.usage.output_tokens >= 5
    assert (await network.audit()).ok


async def test_expert_without_a_replica_is_a_typed_error_and_nothing_is_billed(network):
    async with local_client(network) as client:
        before = await _budget(client)
        async with client.stream(ORDINARY, model=network.model, max_tokens=40) as stream:
            await anext(aiter(stream))
            await network.parts["node-1"].vanish()
            await network.parts["node-2"].vanish()
            for _ in range(2):
                with pytest.raises(ExpertUnavailable) as error:
                    await stream.result()
                assert error.value.experts
        assert await _budget(client) == before
    assert (await network.audit()).ok


async def test_cancelled_text_ends_within_a_token_and_bills_what_was_given(network):
    async with local_client(network) as client:
        async with client.stream(ORDINARY, model=network.model, max_tokens=200) as stream:
            async for _ in stream:
                if len(stream.ids) == 4:
                    await stream.cancel()
        assert stream.finish == "cancelled"
        assert len(stream.ids) == stream.usage.output_tokens <= 7
    assert (await network.audit()).ok


async def test_client_that_leaves_is_billed_what_it_got_and_its_hold_is_given_back(network):
    async with local_client(network) as client:
        before = await client.balance()
        async with client.stream(ORDINARY, model=network.model, max_tokens=200) as stream:
            async for _ in stream:
                if len(stream.ids) == 4:
                    break
        await _until(lambda: network.parts["router-1"].part._sessions.running == 0)
        after = await client.balance()
    assert after.held == 0
    assert 0 < before.available - after.available < 40
    assert (await network.audit()).ok


async def test_client_that_vanishes_is_billed_what_it_got_after_a_while(network, monkeypatch):
    monkeypatch.setattr(sessions, "IDLE_S", 0.05)
    async with local_client(network) as client:
        opened, order = await _opened(client, network)
        await _ask_layers(network, opened, order, rows=2)
        monkeypatch.setattr(sessions, "SWEEP_S", 0.05)
        part = network.parts["router-1"].part._sessions
        await _until(lambda: part.running == 0)
        closed = await _close(network, opened)
        assert (closed.finish, closed.usage.input_tokens, closed.usage.output_tokens) == ("cancelled", 2, 1)
        assert (await client.balance()).held == 0
    assert (await network.audit()).ok


async def test_bill_that_nobody_takes_is_let_go_when_the_router_stops(network, monkeypatch):
    monkeypatch.setattr(sessions, "STOP_PATIENCE_S", 0.1)
    async with local_client(network) as client:
        opened, order = await _opened(client, network)
        await _ask_layers(network, opened, order, rows=2)
        await network.parts["bookkeeper"].vanish()
        await network.parts["router-1"].vanish()
        left = [task.get_name() for task in asyncio.all_tasks() if order.request in task.get_name()]
    assert left == []


async def test_sessions_left_in_mid_layer_cost_the_router_none_of_its_workers(network, monkeypatch):
    reached, sessions_of = asyncio.Event(), network.parts["router-1"].part._sessions

    async def never(*_):
        reached.set()
        await asyncio.Event().wait()

    async with local_client(network) as client:
        opened, order = await _opened(client, network)
        monkeypatch.setattr(sessions_of._dispatcher, "layer", never)
        asking = asyncio.create_task(_rows(network, opened, order, 0, network.artifacts.layout.moe_layers[0], 2))
        await reached.wait()
        await _close(network, opened)
        with pytest.raises(SessionEnded):
            await asking
    assert not any(worker.done() for service in sessions_of._services for worker in service._tasks)


async def test_rows_sent_again_after_an_expert_was_missing_are_told_the_same(network):
    layer = network.artifacts.layout.moe_layers[0]
    async with local_client(network) as client:
        opened, order = await _opened(client, network)
        for name in ("node-1", "node-2"):
            await network.parts[name].vanish()
        for _ in range(2):
            with pytest.raises(ExpertUnavailable):
                await _rows(network, opened, order, 0, layer, 2)


async def test_same_rows_sent_again_get_the_same_answer_and_are_metered_once(network):
    async with local_client(network) as client:
        opened, order = await _opened(client, network)
        first = await _ask_layers(network, opened, order, rows=2)
        layers = network.artifacts.layout.moe_layers
        again = await _rows(network, opened, order, 0, layers[-1], 2)
        assert again.rows.tobytes() == first.rows.tobytes()
        assert (await _close(network, opened)) == (await _close(network, opened))
        with pytest.raises(SessionEnded):
            await _rows(network, opened, order, 1, layers[0], 1)
    assert (await network.audit()).ok


async def test_rows_out_of_turn_of_others_or_of_no_number_are_refused_and_cost_nothing(network):
    layers = network.artifacts.layout.moe_layers
    async with local_client(network) as client:
        before = await _budget(client)
        opened, order = await _opened(client, network)
        for step, layer, rows in ((1, layers[0], 1), (0, layers[1], 2), (0, layers[0], 1), (0, layers[0], 3)):
            with pytest.raises(MalformedMessage, match="expected"):
                await _rows(network, opened, order, step, layer, rows)
        with pytest.raises(MalformedMessage, match="NaN"):
            await _rows(network, opened, order, 0, layers[0], 2, fill=np.nan)
        with pytest.raises(MalformedMessage, match="width"):
            await _rows(network, opened, order, 0, layers[0], 2, hidden=8)
        for stranger, request in ((opened.model_copy(update={"session": "ab" * 16}), order),
                                  (opened, SimpleNamespace(request="cd" * 16))):  # fmt: skip
            with pytest.raises(SessionEnded):
                await _rows(network, stranger, request, 0, layers[0], 2)
        assert (await _close(network, opened)).usage.billed_tokens == 0
        assert await _budget(client) == before
    assert (await network.audit()).ok


async def test_more_rows_than_were_ordered_are_refused(network):
    layers = network.artifacts.layout.moe_layers
    async with local_client(network) as client:
        opened, order = await _opened(client, network, max_tokens=2)
        await _ask_layers(network, opened, order, rows=2)
        await _ask_layers(network, opened, order, rows=1, step=1)
        with pytest.raises(MalformedMessage, match="all rows that were ordered"):
            await _rows(network, opened, order, 2, layers[0], 1)
        assert (await _close(network, opened)).usage.output_tokens == 2
    assert (await network.audit()).ok


async def test_session_that_cannot_be_is_refused_before_anything_is_held(network):
    context = network.artifacts.layout.context
    async with local_client(network) as client:
        before = await _budget(client)
        for changes, refusal in (
            ({"manifest": "ab" * 32}, WrongManifest),
            ({"rows": context}, PromptTooLong),
            ({"rows": 20, "input_tokens": 12}, MalformedMessage),
            ({"rows": 2, "input_tokens": 3}, MalformedMessage),
            ({"rows": 60, "input_tokens": 60}, BudgetTooSmall),
        ):
            with pytest.raises(refusal):
                await _opened(client, network, **changes)
        assert await _budget(client) == before


async def test_session_opened_again_is_the_same_until_rows_came(network):
    async with local_client(network) as client:
        request = new_request_id()
        asked = _asked(client, network, request=request)
        first, second = [await _open(network, asked) for _ in range(2)]
        assert first == second
        await _rows(network, first, asked.order.body, 0, network.artifacts.layout.moe_layers[0], 2)
        with pytest.raises(RequestConflict):
            await _open(network, asked)


async def test_trunk_that_is_not_here_is_said_with_what_brings_it(network, tmp_path, monkeypatch):
    monkeypatch.setenv("SAWYER_HOME", str(tmp_path))
    async with local_client(network, trunk="local") as client:
        with pytest.raises(UsageError, match="is not in") as error:
            await client.generate(ORDINARY, model=network.model)
        assert "sawyer models pull" in error.value.hint


async def test_trunk_is_found_in_the_home(network, tmp_path, monkeypatch):
    models = tmp_path / "models"
    models.mkdir()
    (models / "broken").mkdir()
    (models / "broken" / "manifest.json").write_text("{}")
    (models / "here").symlink_to(network.artifacts.folder)
    monkeypatch.setenv("SAWYER_HOME", str(tmp_path))
    async with local_client(network, trunk="local") as client:
        assert (await client.generate(ORDINARY, model=network.model, max_tokens=3)).ids


def _asked(client, network, *, request="", max_tokens=8, **changes) -> SessionOpen:
    stream = client.stream("It", model=network.model, max_tokens=max_tokens, request_id=request or None,
                           token_ceiling=50)  # fmt: skip
    whole = SessionOpen(order=stream._request.order, manifest=network.artifacts.digest, rows=2, input_tokens=2)
    return whole.model_copy(update=changes)


async def _open(network, asked) -> SessionOpened:
    return await ask_at(network.bus, subjects.open_session(network.model), SessionOpened, asked, PATIENCE_S)


async def _opened(client, network, **changes):
    asked = _asked(client, network, **changes)
    return await _open(network, asked), asked.order.body


async def _close(network, opened) -> SessionClosed:
    asked = SessionClose(session=opened.session, finish="length")
    return await ask_at(network.bus, subjects.close_session(opened.router), SessionClosed, asked, PATIENCE_S)


async def _rows(network, opened, order, step, layer, rows, *, fill=0.5, hidden=0) -> SummedRows:
    width = hidden or network.artifacts.layout.hidden
    values = np.full((rows, width), fill, np.float32)
    manifest = bytes.fromhex(network.artifacts.digest)[:8]
    sent = HiddenRows(RequestId(order.request), opened.session, manifest, step, layer, values)
    raw = await network.bus.request(subjects.activate(opened.router), encode_session(sent), PATIENCE_S)
    return decode_session(raw, SummedRows)


async def _ask_layers(network, opened, order, *, rows, step=0) -> SummedRows:
    for layer in network.artifacts.layout.moe_layers:
        last = await _rows(network, opened, order, step, layer, rows)
    return last


async def _budget(client) -> tuple[int, int]:
    told = await client.balance()
    return told.available, told.held


async def _until(holds) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  (the router tells nobody)
            await asyncio.sleep(0.01)
