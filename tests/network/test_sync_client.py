"""The blocking client on a real network, over real sockets: in threads, in programs that are interrupted, and found
through a context."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer.client.sync import Client
from sawyer.contexts import Contexts, NatsTarget
from sawyer.errors import NobodyServes, ServerUnreachable, UnknownAccount, VerificationError
from sawyer.home import Pin
from sawyer.ids import new_request_id
from sawyer.model.catalog import DEMO_MODEL

PATIENCE_S = 60.0


@pytest.fixture
def connect(network) -> Callable[..., Client]:
    def make(account: str = "alice", **options: object) -> Client:
        return Client(network.url, account=account, key=network.home.account_key("alice"), timeout_s=20.0, **options)

    return make


async def test_answer_is_that_of_the_async_client_and_billed_once(network, connect):
    request = new_request_id()

    def ask() -> tuple:
        with connect() as client:
            before = client.balance()
            with client.stream("Emma was", model=DEMO_MODEL, max_tokens=12, request_id=request) as stream:
                pieces = list(stream)
            again = client.generate("Emma was", model=DEMO_MODEL, max_tokens=12, request_id=request)
            return before, pieces, stream, again, client.account(), client.models()

    before, pieces, stream, again, account, (offer,) = await asyncio.to_thread(ask)
    async with network.client() as client:
        answer = await client.generate("Emma was", model=DEMO_MODEL, max_tokens=12, request_id=request)
        assert await client.account() == account
    assert len(pieces) > 1
    assert "".join(pieces) == again.text == answer.text
    assert tuple(stream.ids) == again.ids == answer.ids
    assert stream.usage == again.usage == answer.usage
    assert before.available - account.balance.available == stream.usage.billed_tokens
    assert offer.price(stream.usage.input_tokens, 12) == stream.usage.billed_tokens
    assert (await network.audit()).ok


async def test_typed_errors_come_through(network, connect):
    def meet(account: str) -> None:
        with connect(account) as client:
            client.balance()

    with pytest.raises(UnknownAccount, match="carol") as refused:
        await asyncio.to_thread(meet, "carol")
    assert refused.value.hint
    await network.parts["bookkeeper"].stop()
    with pytest.raises(NobodyServes):
        await asyncio.to_thread(meet, "alice")


async def test_server_that_is_not_there_is_told_and_no_thread_stays(keys):
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        await asyncio.to_thread(Client("nats://127.0.0.1:1", account="alice", key=keys["alice"]).connect)


async def test_client_finds_its_network_by_context_and_its_key_in_the_home(network, monkeypatch, tmp_path):
    """Nothing is given but names: what the command would use is used."""
    monkeypatch.setenv("SAWYER_HOME", str(network.home.path))
    Contexts(network.home.path).add("volunteers", NatsTarget(url=network.url))

    def ask(**options: object) -> str:
        with Client(**options) as client:
            return client.account().account

    assert await asyncio.to_thread(ask, account="alice", context="volunteers") == "alice"
    monkeypatch.setenv("SAWYER_ACCOUNT", "alice")
    Contexts(network.home.path).select("volunteers")
    assert await asyncio.to_thread(ask) == "alice"
    (network.home.path / "network.json").unlink()
    network.home.write_pin(Pin(network="sawyer-net/00000000", ledger_vkey="other", operator="other"))
    with pytest.raises(VerificationError, match="pinned"):
        await asyncio.to_thread(ask)
    assert await asyncio.to_thread(ask, context="volunteers") == "alice", "who names an address, means it"


PROGRAM = """
import sys
from pathlib import Path
from sawyer import Client

url, key = sys.argv[1:]
with Client(url, account="alice", key=Path(key)) as client:
    try:
        with client.stream("It was a", model="austen-8m", max_tokens=450) as stream:
            for piece in stream:
                print(piece.encode(), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


async def test_program_that_is_interrupted_ends_and_pays_only_for_what_came(network, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    async with network.client() as client:
        before = await client.balance()
        running = await asyncio.create_subprocess_exec(
            sys.executable, program, network.url, network.home.account_key("alice"), stdout=asyncio.subprocess.PIPE
        )
        assert running.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await running.stdout.readline()
            running.send_signal(signal.SIGINT)
            printed, _ = await running.communicate()
            while (after := await client.balance()).held:
                pass
    assert printed.splitlines()[-1] == b"interrupted"
    assert running.returncode == 0
    assert 0 < before.available - after.available < 3 + 450
    assert (await network.audit()).ok
