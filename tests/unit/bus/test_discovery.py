"""Being found by the tools of NATS: every answer is read with nats-py's own classes for micro services."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.micro.service import (
    INFO_RESPONSE_TYPE,
    PING_RESPONSE_TYPE,
    SEMVER_REGEX,
    STATS_RESPONSE_TYPE,
    ServiceConfig,
    ServiceInfo,
    ServicePing,
    ServiceStats,
    ServiceVerb,
    control_subject,
)

from sawyer.bus.discovery import NODE, VERBS, About, Discovery, Endpoint, semver
from sawyer.bus.memory import MemoryBus
from sawyer.bus.protocol import Message
from sawyer.bus.service import Counts, Service
from sawyer.errors import NobodyServes, UnknownModel
from sawyer.schemas import subjects

STARTED_MS = 1_700_000_000_123
PATIENCE_S = 10.0
ABOUT = About(NODE, "node-a", "0.2.0.dev3", STARTED_MS, "experts of a model", {"model": "austen", "format": "q4"})
COUNTS = Counts(requests=4, errors=1, busy_ns=4001, last_error="busy")


@pytest.fixture
async def found(asked: MemoryBus) -> AsyncIterator[Discovery]:
    experts = Endpoint("experts", "sawyer.v1.expert.node-a.austen.>", lambda: COUNTS, data=lambda: {"rows": 12})
    idle = Endpoint("infer", "sawyer.v1.infer.austen", Counts, queue="routers")
    made = Discovery(asked, ABOUT, [experts, idle])
    await made.start()
    yield made
    await made.stop()


async def ask(bus: MemoryBus, subject: str) -> dict[str, object]:
    answer: dict[str, object] = json.loads(await bus.request(subject, b"", PATIENCE_S))
    return answer


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("named", [(), (NODE,), (NODE, "node-a")], ids=["all", "kind", "one"])
async def test_every_verb_answers_everybody_its_kind_and_itself(
    found: Discovery, asker: MemoryBus, verb: str, named: tuple[str, ...]
) -> None:
    subject = subjects.discovery(verb, *named)  # type: ignore[arg-type]
    assert subject == control_subject(ServiceVerb(verb), *named)
    answer = await ask(asker, subject)
    assert (answer["name"], answer["id"], answer["version"]) == (NODE, "node-a", "0.2.0-dev3")
    assert answer["metadata"] == {"model": "austen", "format": "q4"}


async def test_answers_are_what_nats_py_would_send_and_reads(found: Discovery, asker: MemoryBus) -> None:
    raw = await ask(asker, subjects.discovery("PING", NODE))
    ping = ServicePing.from_dict(raw)
    assert ping.to_dict() == raw
    assert raw["type"] == PING_RESPONSE_TYPE
    ServiceConfig(name=ping.name, version=ping.version, metadata=ping.metadata)  # checks name and version

    raw = await ask(asker, subjects.discovery("INFO", NODE))
    info = ServiceInfo.from_dict(raw)
    assert info.to_dict() == raw
    assert raw["type"] == INFO_RESPONSE_TYPE
    assert info.description == "experts of a model"
    assert [(each.name, each.queue_group) for each in info.endpoints] == [("experts", ""), ("infer", "routers")]

    raw = await ask(asker, subjects.discovery("STATS", NODE))
    stats = ServiceStats.from_dict(raw)
    assert stats.to_dict() == raw
    assert raw["type"] == STATS_RESPONSE_TYPE
    assert stats.started.replace(tzinfo=UTC) == datetime.fromtimestamp(STARTED_MS / 1000, UTC)
    experts, idle = stats.endpoints
    assert (experts.num_requests, experts.num_errors, experts.last_error) == (4, 1, "busy")
    assert (experts.processing_time, experts.average_processing_time) == (4001, 1000)
    assert experts.data == {"rows": 12}
    assert (idle.num_requests, idle.average_processing_time) == (0, 0)


async def test_name_that_nobody_has_is_free_at_once(found: Discovery, asker: MemoryBus) -> None:
    with pytest.raises(NobodyServes):
        await ask(asker, subjects.discovery("PING", NODE, "node-b"))


async def test_question_that_wants_no_answer_is_passed_over(found: Discovery, asker: MemoryBus) -> None:
    await asker.publish(subjects.discovery("PING"), b"")
    await asker.publish(subjects.discovery("PING"), b"x" * 100_000)
    assert (await ask(asker, subjects.discovery("PING")))["id"] == "node-a"


async def test_stopped_program_is_found_no_more(found: Discovery, asker: MemoryBus) -> None:
    await found.stop()
    with pytest.raises(NobodyServes):
        await ask(asker, subjects.discovery("PING"))


async def test_endpoint_of_a_service_tells_what_the_service_counted(asked: MemoryBus, asker: MemoryBus) -> None:
    async def answer(message: Message) -> bytes:
        if message.data == b"bad":
            raise UnknownModel("no such model")
        return message.data

    service = Service(asked, "questions", answer, lambda _: b"no", limit=4, queue="desk")
    await service.start()
    for data in (b"good", b"bad", b"good"):
        await asker.request("questions", data, PATIENCE_S)
    endpoint = Endpoint.of("questions", service)
    counts = endpoint.counts()
    assert (endpoint.subject, endpoint.queue) == ("questions", "desk")
    assert (counts.requests, counts.errors, counts.last_error) == (3, 1, "no such model")
    assert counts.busy_ns > 0
    await service.stop()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.0.1", "0.0.1"), ("1.2", "1.2.0"), ("0.2.0.dev3", "0.2.0-dev3"), ("1.0.0rc1", "1.0.0-rc1"),
        ("1.0.0+local.1", "1.0.0-local-1"), ("1.2.3.4", "1.2.3"), ("01.002.3", "1.2.3"), ("", "0.0.0"),
        ("test", "0.0.0"),
    ],
)  # fmt: skip
def test_semver_keeps_what_it_can_of_our_version(version: str, expected: str) -> None:
    assert semver(version) == expected


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9a-z.+-]{1,12}"))
def test_semver_is_always_a_semantic_version(version: str) -> None:
    assert SEMVER_REGEX.match(semver(version))
