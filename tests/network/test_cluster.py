"""A cluster of three real NATS servers that loses one after the other, its leader first, in the middle of texts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sawyer import leash
from sawyer.bus.server import binary

from .conftest import founding

CONFIG = """\
server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{http}
cluster {{ name: sawyer, listen: 127.0.0.1:{route}, routes: [{routes}] }}
jetstream {{ store_dir: "{store}" }}
max_payload: 8MB
"""
READY_S = 20.0
TOKENS = 60


@dataclass
class Member:
    """One server of the cluster."""

    name: str
    port: int
    http: int
    config: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    def start(self) -> None:
        log = self.config.with_suffix(".log").open("ab")
        with log:
            argv = leash.argv([str(binary()), "-c", str(self.config)])
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leader(self) -> str:
        """Of all three, as this one sees it; "" while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/jsz", timeout=1) as answer:
                meta = json.load(answer).get("meta_cluster") or {}
        except OSError:
            return ""
        return meta.get("leader", "") if meta.get("cluster_size") == 3 else ""


@pytest.fixture
async def members(tmp_path):
    ports = _free_ports(9)
    routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports[6:])
    made = []
    for number in range(3):
        name, folder = f"server-{number}", tmp_path / f"server-{number}"
        folder.mkdir()
        config = folder / "nats.conf"
        port, http, route = ports[number], ports[3 + number], ports[6 + number]
        config.write_text(
            CONFIG.format(name=name, port=port, http=http, route=route, routes=routes, store=folder / "jetstream")
        )
        made.append(Member(name, port, http, config))
    with contextlib.ExitStack() as stack:
        for each in made:
            each.start()
            stack.callback(each.kill)
        await _led(made)
        yield made


@pytest.fixture
async def network(members, tmp_path, demo_q4):
    url = ",".join(f"nats://127.0.0.1:{each.port}" for each in members)
    async with founding(tmp_path / "network", demo_q4, url) as made:
        await made.add_node("node-1", 0, 2)
        await made.add_node("node-2", 1, 2)
        await made.add_router()
        yield made


async def test_cluster_that_loses_its_leader_changes_no_text_and_no_bill(network, members):
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(network.client()) for _ in range(3)]
        whole = await clients[0].generate("It was a", model=network.model, max_tokens=TOKENS)
        before = await clients[0].balance()
        lost = asyncio.Event()
        asking = [asyncio.create_task(_said(client, network, lost)) for client in clients]
        await lost.wait()
        leader = await _led(members)
        next(each for each in members if each.name == leader).kill()
        answers = await asyncio.gather(*asking)
        after = await clients[0].balance()
    assert [each.ids for each in answers] == [whole.ids] * 3
    assert [each.usage.billed_tokens for each in answers] == [whole.usage.billed_tokens] * 3
    assert (before.available - after.available, after.held) == (3 * whole.usage.billed_tokens, 0)
    assert (await network.audit()).ok


async def test_servers_that_are_restarted_one_after_the_other_change_nothing(network, members):
    async with network.client() as client:
        whole = await client.generate("It was a", model=network.model, max_tokens=TOKENS)
        for each in members:
            lost = asyncio.Event()
            asking = asyncio.create_task(_said(client, network, lost))
            await lost.wait()
            each.kill()
            answer = await asking
            assert answer.ids == whole.ids
            assert answer.usage.billed_tokens == whole.usage.billed_tokens
            each.start()
            await _led(members)
    assert (await network.audit()).ok


async def _said(client, network, begun):
    """A whole answer; `begun` is set in its middle."""
    async with client.stream("It was a", model=network.model, max_tokens=TOKENS) as stream:
        pieces = aiter(stream)
        for _ in range(4):
            await anext(pieces)
        begun.set()
        return await stream.result()


async def _led(members) -> str:
    """The leader that those who live agree on."""
    async with asyncio.timeout(READY_S):
        while True:
            living = [each for each in members if each.process.poll() is None]
            seen = set(await asyncio.gather(*(asyncio.to_thread(each.leader) for each in living)))
            if len(seen) == 1 and "" not in seen:
                return seen.pop()
            await asyncio.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
