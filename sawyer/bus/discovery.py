"""Being found: every program answers the discovery protocol of NATS micro services, so that `nats micro ls`, `info` and
`stats` show a network. Owns the answers; what is counted is counted where it happens.

The protocol is ADR-32 of nats-architecture-and-design. nats-py's own `nats.micro` wants to own the endpoints and runs
their callbacks one after another, so that a request which computes would hold up all others: only its form is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from sawyer.bus.protocol import Bus, Message
from sawyer.bus.service import Counts, Service
from sawyer.errors import SawyerError
from sawyer.schemas import subjects
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.messages import ErrorBody

NODE: Final = "sawyer-node"
ROUTER: Final = "sawyer-router"
BOOKKEEPER: Final = "sawyer-bookkeeper"
QUESTION_LIMIT: Final = 64
MAX_QUESTION_BYTES: Final = 64 * 1024

Verb = Literal["PING", "INFO", "STATS"]
VERBS: Final[tuple[Verb, ...]] = ("PING", "INFO", "STATS")


@dataclass(frozen=True)
class Endpoint:
    """One thing that a program answers. `counts` and `data` are asked for when somebody wants to know."""

    name: str
    subject: str
    counts: Callable[[], Counts]
    queue: str = ""
    data: Callable[[], Mapping[str, int]] = dict

    @classmethod
    def of(cls, name: str, service: Service) -> Endpoint:
        """A service of the bus."""
        return cls(name, service.subjects[0], lambda: service.counts, service.queue_group)


@dataclass(frozen=True)
class About:
    """A program as others find it: `kind` is NODE, ROUTER or BOOKKEEPER, `name` its name in the book."""

    kind: str
    name: str
    version: str
    started_ms: int
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class Discovery:
    """Answers PING, INFO and STATS to everybody, for its kind, and for itself alone."""

    def __init__(self, bus: Bus, about: About, endpoints: Sequence[Endpoint]) -> None:
        self._about = about
        self._endpoints = tuple(endpoints)
        asked = [
            subjects.discovery(verb, *named)
            for verb in VERBS
            for named in ((), (about.kind,), (about.kind, about.name))
        ]
        self._service = Service(bus, asked, self._answer, _refuse, limit=QUESTION_LIMIT, max_bytes=MAX_QUESTION_BYTES)

    async def start(self) -> None:
        await self._service.start()

    async def stop(self) -> None:
        await self._service.stop()

    async def _answer(self, message: Message) -> bytes | None:
        if not message.reply:
            return None
        match message.subject.split(".")[1]:
            case "PING":
                return encode_canonical(ping(self._about))
            case "INFO":
                return encode_canonical(info(self._about, self._endpoints))
        return encode_canonical(stats(self._about, self._endpoints))


def ping(about: About) -> dict[str, Any]:
    """Who is there."""
    return _standard(about, "ping")


def info(about: About, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Who is there, and what it answers."""
    told = [
        {"name": each.name, "subject": each.subject, "queue_group": each.queue, "metadata": {}} for each in endpoints
    ]
    return {**_standard(about, "info"), "description": about.description, "endpoints": told}


def stats(about: About, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """Who is there, and what came of what was asked. Times in nanoseconds."""
    started = datetime.fromtimestamp(about.started_ms / 1000, UTC).isoformat(timespec="milliseconds")
    told = [_endpoint_stats(each, each.counts()) for each in endpoints]
    return {**_standard(about, "stats"), "started": started.replace("+00:00", "Z"), "endpoints": told}


def semver(version: str) -> str:
    """Our version as the semantic version that the protocol asks for: `0.2.0.dev3` -> `0.2.0-dev3`, what is no version
    -> `0.0.0`."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?[.+-]?(.*)", version, re.ASCII)
    if found is None:
        return "0.0.0"
    major, minor, patch, rest = found.groups()
    rest = re.sub(r"[^0-9A-Za-z]+", "-", rest).strip("-")
    release = f"{int(major)}.{int(minor)}.{int(patch or 0)}"
    return f"{release}-{rest}" if re.search("[A-Za-z]", rest) else release


def _standard(about: About, answer: str) -> dict[str, Any]:
    return {
        "type": f"io.nats.micro.v1.{answer}_response",
        "name": about.kind,
        "id": about.name,
        "version": semver(about.version),
        "metadata": dict(about.metadata),
    }


def _endpoint_stats(endpoint: Endpoint, counts: Counts) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "subject": endpoint.subject,
        "queue_group": endpoint.queue,
        "num_requests": counts.requests,
        "num_errors": counts.errors,
        "last_error": counts.last_error,
        "processing_time": counts.busy_ns,
        "average_processing_time": counts.busy_ns // counts.requests if counts.requests else 0,
        "data": dict(endpoint.data()),
    }


def _refuse(error: SawyerError) -> bytes:
    return ErrorBody.of(error).canonical()
