"""Replay: read a whole book and believe nothing. Bytes, signatures, decisions, postings, checkpoints, views: all of it.

It stops at the first thing that does not hold, and reports it; nothing is repaired. Needs no bus, model or server.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sawyer.economy.allocation import host_pool, split
from sawyer.errors import BookCorrupt, RefusedError, SawyerError, VerificationError, ViewDiffers
from sawyer.ledger.audit import Accounts, check_views
from sawyer.ledger.chain import check_covers, read_checkpoint, read_next
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.commands import Claim, VerifiedCommand, claims
from sawyer.ledger.decide import decide
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.postings import postings
from sawyer.ledger.source import Source, SQLiteSource, ViewsSnapshot
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow
from sawyer.projections.fold import Entry
from sawyer.schemas.events import NetworkFounded
from sawyer.settings import Home

CHUNK_ENTRIES: Final = 128
"""Entries whose signatures one worker takes at a time."""
CHUNKS_AHEAD: Final = 8
"""Chunks that may wait for a worker: bounds memory."""
PROGRESS_ROWS: Final = 200
Progress = Callable[[int, int], None]
"""(rows done, rows in all, about)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that does not hold. `seq` 0: no entry in particular."""

    seq: int
    signer: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """Tokens, as of the time of the last entry."""

    account: str
    available: int
    held: int
    consumed: int
    granted: int


@dataclass(frozen=True, slots=True)
class HostEarnings:
    """`owed_uusd` is provisional: the host's part of 70 % of what paid tokens earned, before fees and refunds."""

    host: str
    nodes: tuple[str, ...]
    requests: int
    rows: int
    work: int
    owed_uusd: int


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay found. `anchored`: verified against a key that the caller brought; without one the book is only
    consistent with itself. `views_seq`: the entry up to which live views were compared; None if none were."""

    problem: Problem | None
    anchored: bool
    network: str
    mode: str
    entries: int
    signatures: int
    checkpoints: int
    size: int
    root: str
    kinds: dict[str, int]
    unknown_kinds: dict[str, int]
    lowest_balance: int
    digests: dict[str, str]
    views_seq: int | None
    balances: tuple[AccountBalance, ...]
    hosts: tuple[HostEarnings, ...]
    pool_uusd: int
    duration_us: int

    @property
    def ok(self) -> bool:
        return self.problem is None


def replay(
    source: Source,
    *,
    key: str | None = None,
    views: Path | None = None,
    held: str | None = None,
    progress: Progress | None = None,
) -> ReplayReport:
    """Verify a book.

    `key`: the verifier key to trust; `views`: the live views to compare; `held`: a checkpoint that was kept elsewhere,
    which the book must contain. What is wrong with the book is in the report; what is wrong with the question raises:
    UsageError (no such file), VerificationError (not a key), SawyerError (a quiet file was changed while it was read).
    """
    started_ns = time.perf_counter_ns()
    anchor = Verifier.parse(key) if key is not None else None
    with ExitStack() as stack:
        snapshot = stack.enter_context(ViewsSnapshot.open(views)) if views is not None else None
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        run = _Run(anchor, snapshot, held, pool)
        problem = None
        try:
            run.all(source, progress)
        except VerificationError as error:
            problem = _problem(error)
        finally:
            pool.shutdown(cancel_futures=True)
        return replace(run.report(problem), duration_us=(time.perf_counter_ns() - started_ns) // 1000)


def replay_home(
    home: Home, *, key: str | None = None, held: str | None = None, progress: Progress | None = None
) -> ReplayReport:
    """Verify the book of a home and its live views, against the key pinned there unless another is given."""
    pin = home.pin()
    return replay(
        SQLiteSource(home.book),
        key=key or (pin.ledger_vkey if pin is not None else None),
        views=home.views if home.views.is_file() else None,
        held=held,
        progress=progress,
    )


class _Run:
    """One replay on its way. Entries are folded in order; their signatures are verified beside that, and a signature
    that fails is reported before anything that is wrong in a later entry."""

    def __init__(
        self, anchor: Verifier | None, views: ViewsSnapshot | None, held: str | None, pool: ThreadPoolExecutor
    ) -> None:
        self._anchor = anchor
        self._views = views
        self._views_done = False
        self._held_note = held
        self._held: Checkpoint | None = None
        self._verifier = anchor
        self._state = State("", "")
        self._accounts = Accounts()
        self._checkpoints = 0
        self._covered = 0
        self._signatures = 0
        self._chunk: list[tuple[Entry, list[Claim]]] = []
        self._futures: deque[Future[None]] = deque()
        self._pool = pool

    def all(self, source: Source, progress: Progress | None) -> None:
        """Raises VerificationError for the first thing that does not hold."""
        total = source.size_rows() if progress is not None else 0
        try:
            self._fold(_counted(source.rows(), total, progress))
            self._finish()
        except VerificationError:
            self._drain()  # an earlier entry whose signature fails comes first
            raise
        self._drain()

    # --- one row after the other ------------------------------------------------------------------------------------

    def _fold(self, rows: Iterator[StoredRow]) -> None:
        for row in rows:
            if self._verifier is None or not self._state.network:
                self._found(row)
            if row.is_checkpoint:
                self._read_checkpoint(row)
            else:
                self._read_entry(row)

    def _found(self, row: StoredRow) -> None:
        """Who this book says it is, from its first row; with an anchor, who it must be."""
        if self._anchor is None:
            try:
                body = decode_entry(row.state).body
            except VerificationError as error:
                raise BookCorrupt(f"entry 1: {error.message}", seq=1) from error
            if not isinstance(body, NetworkFounded):
                raise BookCorrupt("a book begins with the founding of its network", seq=1)
            self._verifier = Verifier.parse(body.ledger_vkey)
        assert self._verifier is not None
        self._state = State(self._verifier.name, self._verifier.vkey)
        if self._held_note is not None:
            self._held = Checkpoint.verify(self._held_note, self._verifier)

    def _read_entry(self, row: StoredRow) -> None:
        entry = read_next(row, self._state)
        self._queue(entry)
        self._decide_again(entry)
        moved = postings(entry, self._state.payouts.earned_by(entry))
        self._state.apply(entry)
        self._accounts.post(entry, moved)
        size = self._state.tree.size
        if self._held is not None and self._held.size == size:
            check_covers(self._held, self._state)
        if self._views is not None and self._views.position == size:
            self._compare_views(self._views)

    def _read_checkpoint(self, row: StoredRow) -> None:
        assert self._verifier is not None
        checkpoint = read_checkpoint(row, self._state, self._verifier, self._checkpoints + 1)
        if checkpoint.size == self._covered:
            raise BookCorrupt(f"checkpoint {self._checkpoints + 1} covers no new entry", seq=checkpoint.size)
        self._checkpoints += 1
        self._covered = checkpoint.size

    def _decide_again(self, entry: Entry) -> None:
        """The ledger must have decided as the rules say: a checkpoint signed over a forged debit makes it no truer."""
        if entry.body is None:
            if self._state.entries.find(entry.idem) is not None:
                raise _wrong(entry, f"the idempotency key {entry.idem} was used before")
            return
        command = VerifiedCommand(entry.kind, entry.body, entry.statement, entry.attestations)
        try:
            decision = decide(self._state, command, entry.ts_ms)
        except RefusedError as error:
            raise _wrong(entry, f"the rules refuse it: {error.message}") from error
        if decision.repeated:
            raise _wrong(entry, "it stands in the book already")
        for what, expected, got in (
            ("attestations", 1, len(entry.attestations)),
            ("stream", decision.stream, entry.stream),
            ("idem", decision.idem, entry.idem),
            ("decision", decision.decided.canonical().decode(), entry.decided.canonical().decode()),
        ):
            if expected != got:
                raise _wrong(entry, f"expected {what} {expected}, got {got}")

    def _compare_views(self, views: ViewsSnapshot) -> None:
        self._views_done = True
        rows = {name: list(views.rows(name)) for name in sorted(views.names())}
        difference = check_views(self._state, rows)
        if difference is not None:
            raise ViewDiffers(f"at entry {views.position}: {difference}", details={"seq": str(views.position)})

    def _finish(self) -> None:
        size = self._state.tree.size
        if not size:
            raise BookCorrupt("the book is empty", seq=0)
        if self._covered != size:
            raise BookCorrupt(f"entries {self._covered + 1} to {size} are covered by no checkpoint", seq=size)
        self._accounts.check_rows(self._state)
        if self._held is not None and self._held.size > size:
            raise BookCorrupt(f"the book ends at entry {size}, the held checkpoint is of {self._held.size}", seq=size)
        if self._views is None or self._views_done:
            return
        if self._views.position:
            raise ViewDiffers(f"the views are at entry {self._views.position}, the book ends at {size}: it was cut")
        self._views_done = True

    # --- signatures, beside -----------------------------------------------------------------------------------------

    def _queue(self, entry: Entry) -> None:
        self._chunk.append((entry, list(claims(entry.kind, entry.body, entry.statement, entry.attestations))))
        if len(self._chunk) >= CHUNK_ENTRIES:
            self._submit()
        while len(self._futures) > CHUNKS_AHEAD:
            self._futures.popleft().result()

    def _submit(self) -> None:
        chunk, self._chunk = self._chunk, []
        self._signatures += sum(len(found) for _, found in chunk)
        self._futures.append(self._pool.submit(_check_chunk, chunk))

    def _drain(self) -> None:
        """Wait for all signatures in order of entries. Raises BookCorrupt for the first that fails."""
        self._submit()
        while self._futures:
            self._futures.popleft().result()

    # --- the result -------------------------------------------------------------------------------------------------

    def report(self, problem: Problem | None) -> ReplayReport:
        state = self._state
        network = state.registry.network
        kinds = state.audit.kinds.items()
        pool_uusd = host_pool(state.payouts.earned_uusd)
        return ReplayReport(
            problem=problem,
            anchored=self._anchor is not None,
            network=state.network,
            mode=network.mode if network else "",
            entries=state.audit.head.seq,
            signatures=self._signatures,
            checkpoints=self._checkpoints,
            size=state.tree.size,
            root=state.tree.root().hex(),
            kinds={kind: row.entries for kind, row in sorted(kinds)},
            unknown_kinds={kind: row.entries for kind, row in sorted(kinds) if not row.known},
            lowest_balance=self._accounts.lowest,
            digests={fold.name: fold.digest() for fold in state.folds},
            views_seq=self._views.position if self._views is not None and self._views_done else None,
            balances=_balances(state),
            hosts=_hosts(state, pool_uusd),
            pool_uusd=pool_uusd,
            duration_us=0,
        )


def _check_chunk(chunk: list[tuple[Entry, list[Claim]]]) -> None:
    for entry, found in chunk:
        for claim in found:
            try:
                claim.check()
            except VerificationError as error:
                raise _wrong(entry, error.message) from error


def _counted(rows: Iterator[StoredRow], total: int, progress: Progress | None) -> Iterator[StoredRow]:
    done = 0
    for row in rows:
        yield row
        done += 1
        if progress is not None and done % PROGRESS_ROWS == 0:
            progress(done, total)
    if progress is not None:
        progress(done, total)


def _balances(state: State) -> tuple[AccountBalance, ...]:
    now_ms = state.audit.head.ts_ms
    rows = {key: row for key, row in state.balances.rows.items() if isinstance(row, AccountRow)}
    accounts = {key.removeprefix("account:"): row for key, row in sorted(rows.items())}
    return tuple(
        AccountBalance(name, state.balances.available(name, now_ms), row.held, row.consumed, row.granted)
        for name, row in accounts.items()
    )


def _hosts(state: State, pool_uusd: int) -> tuple[HostEarnings, ...]:
    hosts = state.payouts.hosts
    owed = split(pool_uusd, {host: int(row.work) for host, row in hosts.items()})
    return tuple(
        HostEarnings(host, tuple(row.nodes), row.requests, row.rows, int(row.work), owed[host])
        for host, row in sorted(hosts.items())
    )


def _wrong(entry: Entry, why: str) -> BookCorrupt:
    signer = f"{entry.signer.by} ({entry.signer.key_id})"
    return BookCorrupt(f"entry {entry.seq}: {why}", seq=entry.seq, signer=signer)


def _problem(error: SawyerError) -> Problem:
    return Problem(
        seq=int(error.details.get("seq", "0")),
        signer=error.details.get("signer", ""),
        why=error.message,
        hint=error.hint or BookCorrupt.default_hint,
    )
