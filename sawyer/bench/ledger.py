"""What the book can do: appends, appends of commands that are verified first, a replay, a start. Each beside its
yardstick
in the same round, on the same cores. Owns what is measured; the numbers' form is ledger_result.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sawyer.bench.ledger_book import (
    INPUT_TOKENS,
    OUTPUT_TOKENS,
    START_MS,
    LedgerNetwork,
    commit_all,
    write_book,
)
from sawyer.bench.ledger_result import LedgerRounds, Start
from sawyer.bench.signatures import Prepared, prepared, verify_s
from sawyer.bookkeeper.collector import calm_collector
from sawyer.bookkeeper.group_commit import GroupCommit
from sawyer.bookkeeper.verifying import JOB_COMMANDS, Verified, Verifiers
from sawyer.clock import ManualClock
from sawyer.errors import SawyerError, VerificationError
from sawyer.ledger.commands import Claim, VerifiedCommand, claims, first_claims
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.plain import PlainLedger
from sawyer.ledger.replay import replay
from sawyer.ledger.source import SQLiteSource
from sawyer.schemas.messages import LedgerCommand, LedgerReply

CLIENTS: Final = 64
VERIFIED_CLIENTS: Final = 256
"""Where signatures are verified too: with fewer, verifiers and writer wait for each other's answers."""
APPEND_NODES: Final = 2
REPLAY_NODES: Final = 8
"""Nodes whose receipts a request has: 2 where appends alone are measured, 8 where signatures are verified."""
JOBS: Final = 4
Notice = Callable[[str], None]
Pair = tuple[VerifiedCommand, VerifiedCommand]


@dataclass(frozen=True)
class LedgerPlan:
    """How much is measured a round: requests (two entries each) that are appended, that the yardstick appends, that are
    verified first, and in the replayed book; `start_entries`: of the book that a writer starts on, 0 for none."""

    rounds: int
    appended: int = 3_200
    plain: int = 640
    verified: int = 1_280
    replayed: int = 2_000
    start_entries: int = 0

    @classmethod
    def fast(cls, rounds: int, start_entries: int) -> LedgerPlan:
        return cls(rounds, 960, 192, 256, 400, start_entries)


def measure(plan: LedgerPlan, notice: Notice) -> LedgerRounds:
    """Everything, round by round, in a folder that is removed. Raises SawyerError."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = LedgerRounds(cores=cores)
    with _folder() as folder:
        notice("writing the book that is replayed")
        book, who = folder / "replayed.sqlite", LedgerNetwork(nodes=REPLAY_NODES)
        found.replay_entries = write_book(book, plan.replayed, network=who)
        signatures = _signatures_of(book)
        found.replay_signatures = len(signatures)
        for number in range(plan.rounds):
            where = f"round {number + 1} of {plan.rounds}: "
            with _folder(folder) as place:
                _appends(plan, place, found, _prefixed(where, notice))
                for workers in sorted({1, cores}):
                    notice(f"{where}a replay with {workers} workers, and its signatures alone")
                    found.pure_s.setdefault(workers, []).append(verify_s(signatures, workers))
                    found.replay_s.setdefault(workers, []).append(_replay_s(book, who, workers))
    if plan.start_entries:
        notice(f"a start on a book of {plan.start_entries} entries")
        with _folder() as folder:
            found.start = measure_start(folder, plan.start_entries)
    return found


def _prefixed(where: str, notice: Notice) -> Notice:
    return lambda what: notice(where + what)


def _appends(plan: LedgerPlan, folder: Path, found: LedgerRounds, notice: Notice) -> None:
    notice("load, mutate, save")
    found.plain_per_s.append(2 * plan.plain / _plain_s(folder / "plain.sqlite", plan.plain))
    notice("durable appends")
    who = LedgerNetwork(nodes=APPEND_NODES, accounts=CLIENTS)
    pairs = [who.request(number, START_MS) for number in range(plan.appended)]
    found.append_per_s.append(2 * plan.appended / asyncio.run(_append_s(folder / "append.sqlite", who, pairs)))
    notice("appends with every signature verified")
    who = LedgerNetwork(nodes=REPLAY_NODES, accounts=CLIENTS)
    pairs = [who.request(number, START_MS) for number in range(plan.verified)]
    signatures = prepared(claim for pair in pairs for asked in pair for claim in _claims(asked))
    found.verified_signatures = len(signatures)
    found.verified_commands = 2 * len(pairs)
    found.pure_commands_s.append(verify_s(signatures, found.cores))
    found.verified_s.append(asyncio.run(_verified_s(folder / "verified.sqlite", who, pairs, found.cores)))


def _plain_s(path: Path, requests: int) -> float:
    with PlainLedger(path) as ledger:
        accounts = [ledger.open(1_000_000_000) for _ in range(CLIENTS)]
        ceiling, billed = INPUT_TOKENS + OUTPUT_TOKENS, INPUT_TOKENS + OUTPUT_TOKENS
        started = time.perf_counter()
        for number in range(requests):
            account = accounts[number % CLIENTS]
            ledger.reserve(account, f"{number:032x}", ceiling)
            ledger.complete(account, f"{number:032x}", ceiling, billed)
        return time.perf_counter() - started


async def _append_s(path: Path, who: LedgerNetwork, pairs: Sequence[Pair]) -> float:
    """64 clients, each with one command under way: the writer commits what is there, durably, then answers."""
    async with _writing(path, who) as writer:

        async def client(number: int) -> None:
            for pair in pairs[number::CLIENTS]:
                for asked in pair:
                    await _submit(writer, asked)

        started = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        return time.perf_counter() - started


async def _verified_s(path: Path, who: LedgerNetwork, pairs: Sequence[Pair], cores: int) -> float:
    """The same from the commands' bytes, as they come over the bus: read, every signature verified, then committed."""
    raws = [tuple(map(_raw, pair)) for pair in pairs]
    arrived: asyncio.Queue[tuple[bytes, asyncio.Future[VerifiedCommand]]] = asyncio.Queue()
    with Verifiers(cores) as verifiers:
        await asyncio.gather(*(verifiers.verify([raws[0][0]] * JOB_COMMANDS) for _ in range(cores * 2)))
        jobs = [asyncio.create_task(_verify(arrived, verifiers)) for _ in range(JOBS)]
        async with _writing(path, who) as writer:

            async def client(number: int) -> None:
                for pair in raws[number::VERIFIED_CLIENTS]:
                    for raw in pair:
                        verified = asyncio.get_running_loop().create_future()
                        arrived.put_nowait((raw, verified))
                        await _submit(writer, await verified)

            started = time.perf_counter()
            await asyncio.gather(*(client(number) for number in range(VERIFIED_CLIENTS)))
            took = time.perf_counter() - started
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        return took


async def _verify(arrived: asyncio.Queue[tuple[bytes, asyncio.Future[VerifiedCommand]]], verifiers: Verifiers) -> None:
    while True:
        job = [await arrived.get()]
        while len(job) < JOB_COMMANDS and not arrived.empty():
            job.append(arrived.get_nowait())
        try:
            verified: list[Verified] = await verifiers.verify([raw for raw, _ in job])
        except SawyerError as error:  # a verifying process ended: whoever waits for an answer has to hear of it
            verified = [error for _ in job]
        for (_, future), found in zip(job, verified, strict=True):
            if isinstance(found, SawyerError):
                future.set_exception(found)
            else:
                future.set_result(found)


@asynccontextmanager
async def _writing(path: Path, who: LedgerNetwork) -> AsyncIterator[GroupCommit]:
    """A writer over a new, opened book, in a process as the bookkeeper's is."""
    book = who.open(path, path.with_suffix(".views"), synchronous="FULL")
    commit_all(book, list(who.opening()), START_MS)
    writer = GroupCommit(book, ManualClock(START_MS))
    task = asyncio.create_task(writer.run())
    try:
        with calm_collector():
            yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        book.close()


async def _submit(writer: GroupCommit, asked: VerifiedCommand) -> None:
    done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(reply: LedgerReply) -> None:
        if reply.error is not None:
            done.set_exception(reply.error.to_error())
        else:
            done.set_result(reply.canonical())

    await writer.put(asked, answer)
    await done


def _replay_s(path: Path, who: LedgerNetwork, workers: int) -> float:
    started = time.perf_counter()
    report = replay(SQLiteSource(path), key=who.vkey, operator=who.operator.id, workers=workers)
    took = time.perf_counter() - started
    if report.problem is not None:
        raise VerificationError(f"the benchmark's own book does not hold: {report.problem.why}")
    return took


def _signatures_of(path: Path) -> list[Prepared]:
    """The signatures that a replay verifies: one that stands in the book twice is counted once, here as there."""
    entries = (decode_entry(row.state) for row in SQLiteSource(path).rows() if not row.is_checkpoint)
    return prepared(claim for each in entries for claim in first_claims(each))


def measure_start(folder: Path, entries: int) -> Start:
    """Write a book of so many entries, then open it: from its newest snapshot, and from its first entry."""
    path, views = folder / "book.sqlite", folder / "views.sqlite"
    who = LedgerNetwork(nodes=0)
    size = write_book(path, entries // 2, network=who, views=views)
    started = time.perf_counter()
    who.open(path, views).close()
    from_snapshot_s = time.perf_counter() - started
    for each in (views, views.with_name("snapshot.bin")):
        each.unlink()
    started = time.perf_counter()
    who.open(path, views).close()
    return Start(size, from_snapshot_s, time.perf_counter() - started, path.stat().st_size)


def _claims(asked: VerifiedCommand) -> list[Claim]:
    return claims(asked.kind, asked.body, asked.statement, asked.attestations)


def _raw(asked: VerifiedCommand) -> bytes:
    body = msgspec.json.decode(asked.statement)
    return LedgerCommand(kind=asked.kind, body=body, attestations=asked.attestations).canonical()


@contextmanager
def _folder(parent: Path | None = None) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="sawyer-bench-", dir=parent))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
