"""Everything that a running network says is in schemas/asyncapi.yaml: its subject, its payload, and its answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from sawyer.bus.calls import ask
from sawyer.bus.protocol import Message
from sawyer.errors import Cancelled, UnknownAccount
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas import generate, subjects, tensors
from sawyer.schemas.base import Strict
from sawyer.schemas.messages import (
    AccountQuery,
    AccountReply,
    BalanceQuery,
    BalanceReply,
    MembersReply,
    NetworkReply,
    RouterReply,
)
from sawyer.schemas.metrics import Metrics

BINARY_KINDS = {
    "ActivationRequest": tensors.Kind.REQUEST,
    "ActivationReply": tensors.Kind.REPLY,
    "ActivationError": tensors.Kind.ERROR,
}


@dataclass
class Described:
    """Judges messages by the document alone. `seen`: the names of the messages that it found a description for."""

    document: dict[str, Any]
    seen: set[str] = field(default_factory=set)
    asked: dict[str, list[str]] = field(default_factory=dict)

    def judge(self, message: Message) -> str:
        """What is wrong with it; nothing if it is exactly one of the described messages of its subject or inbox."""
        if message.subject in self.asked:
            allowed = self.asked[message.subject]
        else:
            channel = self._channel(message.subject)
            if channel is None:
                return f"no channel for {message.subject}"
            allowed = list(self.document["channels"][channel]["messages"])
            if message.reply:
                self.asked[message.reply] = self._replies(channel)
        found = [name for name in allowed if self._fits(name, message.data)]
        self.seen.update(found)
        return "" if len(found) == 1 else f"{message.subject}: {found} of {allowed}: {message.data[:200]!r}"

    def _channel(self, subject: str) -> str | None:
        for name, channel in self.document["channels"].items():
            if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^.]+", re.escape(channel["address"] or "")), subject):
                return str(name)
        return None

    def _replies(self, channel: str) -> list[str]:
        operations = self.document["operations"].values()
        replies = [each["reply"] for each in operations if each["channel"]["$ref"].endswith(f"/{channel}")]
        return sorted({each["$ref"].rpartition("/")[2] for reply in replies for each in reply["messages"]})

    def _fits(self, name: str, data: bytes) -> bool:
        described = self.document["components"]["messages"][name]
        payload = described["payload"]
        if "contentType" in described:
            kind = BINARY_KINDS.get(name)
            long_enough = payload.get("minLength", 0) <= len(data) <= payload.get("maxLength", len(data))
            return long_enough and (kind is None or data[5] == kind)
        try:
            value = json.loads(data)
        except ValueError:
            return False
        return Draft7Validator({**payload, "components": self.document["components"]}).is_valid(value)


async def test_every_message_of_a_network_is_described(founded):
    heard: list[Message] = []
    listener = await founded.connect("listener")
    await listener.subscribe(">", heard.append)
    await listener.flush()
    await founded.add_node("node-1", 0, 2)
    await founded.add_node("node-2", 1, 2)
    await founded.add_router()
    async with founded.client() as client:
        async with client.stream("It was a", model=DEMO_MODEL, max_tokens=4, trace=True) as stream:
            assert [piece async for piece in stream]
        async with client.stream("Emma", model=DEMO_MODEL, max_tokens=64) as stream:
            await stream.cancel()
            with contextlib.suppress(Cancelled):  # if the cancel came first
                await stream.result()
    questions: list[tuple[str, type[Strict], Strict | None]] = [
        ("network", NetworkReply, None),
        ("members", MembersReply, None),
        ("router", RouterReply, None),
        ("metrics", Metrics, None),
        ("balance", BalanceReply, BalanceQuery(account="alice")),
        ("account", AccountReply, AccountQuery(account="alice")),
    ]
    for what, reply, question in questions:
        await ask(founded.bus, what, reply, question)
    with pytest.raises(UnknownAccount):
        await ask(founded.bus, "balance", BalanceReply, BalanceQuery(account="nobody"))
    await founded.bus.request(subjects.discovery("PING"), b"", 5)
    await listener.flush()

    document = yaml.safe_load(generate.FOLDER.with_name(generate.ASYNCAPI).read_text(encoding="utf-8"))
    described = Described(document)
    assert [wrong for wrong in await asyncio.to_thread(lambda: list(map(described.judge, heard))) if wrong] == []
    assert described.seen >= {
        "ActivationRequest", "ActivationReply", "Finish", "FinishReply", "SignedHeartbeat", "InferRequest",
        "InferMessage", "Empty", "NodeRegistered", "TokensReserved", "InferenceCompleted", "LedgerReply",
        "NetworkReply", "MembersReply", "RouterReply", "BalanceQuery", "BalanceReply", "AccountQuery",
        "AccountReply", "Metrics", "QueryError", "MicroPing",
    }  # fmt: skip
