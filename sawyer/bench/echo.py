"""A process that answers plain requests with as many bytes as they ask for: the other end of the yardstick."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Final

from sawyer.bus.plain import PlainClient
from sawyer.loop import run as run_on_loop

READY: Final = "ready: "
MODULE: Final = "sawyer.bench.echo"


def subject(name: str, answer_bytes: int) -> str:
    """Where to ask this echo for so many bytes."""
    return f"{_prefix(name)}.{answer_bytes}"


def _prefix(name: str) -> str:
    return f"sawyer.bench.echo.{name}"


async def main(url: str, name: str) -> None:
    """Answers until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    client = await PlainClient.connect(url, name)
    await client.answer(_prefix(name))
    sys.stdout.write(f"{READY}{name}\n")
    sys.stdout.flush()
    await stopped.wait()
    await client.close()


if __name__ == "__main__":
    run_on_loop(main(*sys.argv[1:]), os.environ.get("SAWYER_LOOP", "auto"))
