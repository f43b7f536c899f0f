"""A process that answers with as many bytes as it is asked for: plain requests, the other end of the yardstick, and
messages over our own bus, the other end of a node's way."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Final

from sawyer.bus.connection import NatsBus
from sawyer.bus.plain import PlainClient
from sawyer.bus.protocol import Message
from sawyer.loop import run as run_on_loop

READY: Final = "ready: "
MODULE: Final = "sawyer.bench.echo"


def subject(name: str, answer_bytes: int) -> str:
    """Where to ask this echo for so many bytes."""
    return f"{_prefix(name)}.{answer_bytes}"


def own_subject(name: str, answer_bytes: int) -> str:
    """The same over our own bus."""
    return f"{_own_prefix(name)}.{answer_bytes}"


def _prefix(name: str) -> str:
    return f"sawyer.bench.echo.{name}"


def _own_prefix(name: str) -> str:
    return f"sawyer.bench.own.{name}"


async def _answer(bus: NatsBus, prefix: str) -> None:
    """As a node does it: the handler enqueues, a task answers."""
    waiting: asyncio.Queue[Message] = asyncio.Queue()
    await bus.subscribe(f"{prefix}.*", waiting.put_nowait)
    await bus.flush()
    while True:
        message = await waiting.get()
        await bus.publish(message.reply, bytes(int(message.subject.rsplit(".", 1)[1])))


async def main(url: str, name: str) -> None:
    """Answers until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    client = await PlainClient.connect(url, name)
    await client.answer(_prefix(name))
    bus = await NatsBus.connect(url, name=name)
    answering = asyncio.create_task(_answer(bus, _own_prefix(name)))
    await bus.flush()
    sys.stdout.write(f"{READY}{name}\n")
    sys.stdout.flush()
    await stopped.wait()
    answering.cancel()
    await bus.close()
    await client.close()


if __name__ == "__main__":
    run_on_loop(main(*sys.argv[1:]), os.environ.get("SAWYER_LOOP", "auto"))
