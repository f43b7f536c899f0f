"""nats-py as its manual uses it: `nc.request` for every message, `msg.respond` for every answer. Nothing of Sawyer
runs on it: it is the yardstick that `sawyer bench` holds against bus/gather.py in the same run, so it must stay plain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from sawyer.errors import NoAnswer

REQUEST_TIMEOUT_S: Final = 10.0


class PlainClient:
    """One plain connection. Made by `connect`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def connect(cls, url: str, name: str) -> PlainClient:
        return cls(await nats.connect(url, name=name))

    async def ask_all(self, subjects: Sequence[str], data: bytes) -> list[bytes]:
        """The same bytes to each subject at once, and all answers. Raises NoAnswer."""
        requests = (self._client.request(subject, data, timeout=REQUEST_TIMEOUT_S) for subject in subjects)
        try:
            return [reply.data for reply in await asyncio.gather(*requests)]
        except nats.errors.Error as error:
            raise NoAnswer(f"no plain answer: {error}") from error

    async def answer(self, prefix: str) -> None:
        """From now on, a request to `PREFIX.<n>` is answered with n bytes."""

        async def respond(message: Msg) -> None:
            await message.respond(bytes(int(message.subject.rsplit(".", 1)[1])))

        await self._client.subscribe(f"{prefix}.*", cb=respond)
        for _ in range(2):  # plain nats-py writes the first PING past a SUB that it still holds back
            await self._client.flush()

    async def close(self) -> None:
        await self._client.close()
