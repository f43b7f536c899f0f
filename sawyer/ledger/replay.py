"""Replay: read a whole book and believe nothing. Bytes, signatures, decisions, postings, checkpoints, views: all of it.

It stops at the first thing that does not hold, and reports it; nothing is repaired. Needs no bus, model or server.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from sawyer.economy.allocation import host_pool, split
from sawyer.errors import BookCorrupt, RefusedError, SawyerError, UsageError, VerificationError, ViewDiffers
from sawyer.home import Home, Pin
from sawyer.ledger.audit import Accounts, check_views
from sawyer.ledger.chain import check_covers, read_checkpoint, read_next
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.commands import Claim, VerifiedCommand, claims
from sawyer.ledger.decide import decide
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.source import Source, SQLiteSource, ViewsSnapshot
from sawyer.ledger.state import State
from sawyer.projections.balances import AccountRow
from sawyer.projections.fold import ROWS_VERSION, Entry
from sawyer.schemas.events import NetworkFounded

log = logging.getLogger(__name__)

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
    """What a replay found. `anchored`: verified against a ledger key that the caller brought; without one the book is
    only consistent with itself. `operator_anchored`: founded by the operator key that the caller brought; without one,
    whoever holds the ledger key may have founded it. `note`: the newest checkpoint. `views_seq`: the entry up to which
    live views were compared; None if none were, `views_note` says why."""

    problem: Problem | None
    anchored: bool
    operator_anchored: bool
    network: str
    operator: str
    mode: str
    entries: int
    signatures: int
    checkpoints: int
    size: int
    root: str
    note: str
    kinds: dict[str, int]
    unknown_kinds: dict[str, int]
    lowest_balance: int
    digests: dict[str, str]
    views_seq: int | None
    views_note: str
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
    operator: str | None = None,
    views: Path | None = None,
    held: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> ReplayReport:
    """Verify a book.

    `key`: the ledger's verifier key to trust; `operator`: the key that must have founded the network; `views`: the live
    views to compare; `held`: checkpoints that were kept elsewhere, which the book must contain. What is wrong with the
    book is in the report; what is wrong with the question raises: UsageError (no such file, a checkpoint that is none),
    VerificationError (not a key), SawyerError (a file that cannot be read, or was changed while it was read).
    """
    started_ns = time.perf_counter_ns()
    anchor = Verifier.parse(key) if key is not None else None
    checkpoints = [_held(note, anchor) for note in held]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count() or 1))
        run = _Run(_Trust(anchor, operator or "", held, checkpoints), pool)
        problem = None
        try:
            run.compare_with(stack.enter_context(ViewsSnapshot.open(views)) if views is not None else None)
            run.all(source, progress)
        except VerificationError as error:
            problem = _problem(error)
        finally:
            pool.shutdown(cancel_futures=True)
        return replace(run.report(problem), duration_us=(time.perf_counter_ns() - started_ns) // 1000)


def replay_home(
    home: Home,
    *,
    key: str | None = None,
    operator: str | None = None,
    held: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> ReplayReport:
    """Verify the book of a home and its live views, against the keys pinned there unless others are given, and against
    the checkpoint that the last replay kept there. If all holds by the pinned keys, the newest checkpoint is kept: so a
    book that is cut short or forked later is found. Raises as `replay` does, and VerificationError for a damaged pin or
    kept checkpoint."""
    pin = home.pin()
    key = key or (pin.ledger_vkey if pin is not None else None)
    operator = operator or (pin.operator if pin is not None else None)
    pinned = pin is not None and (key, operator) == (pin.ledger_vkey, pin.operator)
    report = replay(
        SQLiteSource(home.book),
        key=key,
        operator=operator,
        views=home.views if home.views.is_file() else None,
        held=(*held, *_kept(home, pin)) if pin is not None and pinned else held,
        progress=progress,
    )
    if report.ok and pinned:
        try:
            home.keep_checkpoint(report.note)
        except OSError as error:  # an auditor may read a home that is not theirs
            log.warning("cannot keep the checkpoint in %s: %s", home.checkpoint, error)
    return report


def _kept(home: Home, pin: Pin) -> tuple[str, ...]:
    """The checkpoint that was kept in this home, if any. Raises VerificationError if it is not its network's."""
    verifier = Verifier.parse(pin.ledger_vkey)
    if verifier.name != pin.network:
        raise VerificationError(
            f"{home.path} is pinned to network {pin.network}, and to the ledger key of {verifier.name}",
            hint="Restore its network.json, or start with an empty home.",
        )
    note = home.held_checkpoint()
    if note is None:
        return ()
    try:
        Checkpoint.verify(note, verifier)
    except VerificationError as error:
        raise VerificationError(
            f"{home.checkpoint}: {error.message}",
            hint="Restore it. Only if you cannot: delete it, and lose the proof of what the book held.",
        ) from error
    return (note,)


def _held(note: str, anchor: Verifier | None) -> Checkpoint:
    """A checkpoint that the caller brought. Raises UsageError if it is none, or not by the key they trust."""
    try:
        return Checkpoint.verify(note, anchor) if anchor is not None else Checkpoint.read(note)
    except VerificationError as error:
        raise UsageError(
            f"the checkpoint to hold the book against is not one: {error.message}",
            hint="Give the file as it was kept, and the key of the same network.",
        ) from error


@dataclass(frozen=True, slots=True)
class _Trust:
    """What the caller brought: the ledger's key, the operator's ("" for none), checkpoints as text and read."""

    anchor: Verifier | None
    operator: str
    notes: tuple[str, ...]
    checkpoints: Sequence[Checkpoint]


class _Run:
    """One replay on its way. Entries are folded in order; their signatures are verified beside that, and a signature
    that fails is reported before anything that is wrong in a later entry."""

    def __init__(self, trust: _Trust, pool: ThreadPoolExecutor) -> None:
        self._trust = trust
        self._views: ViewsSnapshot | None = None
        self._views_done = False
        self._views_note = "none were given"
        self._verifier = trust.anchor
        self._state = State("", "", "")
        self._accounts = Accounts()
        self._checkpoints = 0
        self._note = ""
        self._covered = 0
        self._signatures = 0
        self._chunk: list[tuple[Entry, list[Claim]]] = []
        self._futures: deque[Future[None]] = deque()
        self._pool = pool

    def compare_with(self, views: ViewsSnapshot | None) -> None:
        """These live views, if they are rows as this version makes them."""
        if views is None:
            return
        if views.version != ROWS_VERSION:
            self._views_note = f"they are of version {views.version}, this Sawyer makes {ROWS_VERSION}"
            return
        self._views, self._views_note = views, ""

    def all(self, source: Source, progress: Progress | None) -> None:
        """Raises VerificationError for the first thing that does not hold."""
        total = source.size_rows() if progress is not None else 0
        with closing(source.rows()) as rows:
            try:
                self._compare_here()
                self._fold(_counted(rows, total, progress))
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
        if self._trust.anchor is None:
            try:
                body = decode_entry(row.state).body
            except VerificationError as error:
                raise BookCorrupt(f"entry 1: {error.message}", seq=1) from error
            if not isinstance(body, NetworkFounded):
                raise BookCorrupt("a book begins with the founding of its network", seq=1)
            self._verifier = Verifier.parse(body.ledger_vkey)
        assert self._verifier is not None
        self._state = State(self._verifier.name, self._verifier.vkey, self._trust.operator)
        for note in self._trust.notes:
            try:
                Checkpoint.verify(note, self._verifier)
            except VerificationError as error:
                raise VerificationError(f"the held checkpoint is not of this book: {error.message}") from error

    def _read_entry(self, row: StoredRow) -> None:
        entry = read_next(row, self._state)
        self._queue(entry)
        self._decide_again(entry)
        self._state.apply(entry)
        self._accounts.post(entry)
        self._compare_here()

    def _compare_here(self) -> None:
        """Held checkpoints and live views that are of exactly so many entries."""
        size = self._state.tree.size
        for held in self._trust.checkpoints:
            if held.size == size:
                check_covers(held, self._state)
        if self._views is not None and self._views.position == size:
            self._compare_views(self._views)

    def _read_checkpoint(self, row: StoredRow) -> None:
        assert self._verifier is not None
        checkpoint = read_checkpoint(row, self._state, self._verifier, self._checkpoints + 1)
        if checkpoint.size == self._covered:
            raise BookCorrupt(f"checkpoint {self._checkpoints + 1} covers no new entry", seq=checkpoint.size)
        self._checkpoints += 1
        self._note = row.state.decode()
        self._covered = checkpoint.size

    def _decide_again(self, entry: Entry) -> None:
        """The ledger must have decided as the rules say: a checkpoint signed over a forged debit makes it no truer."""
        if entry.body is None:
            if self._state.registry.network is None:
                raise _wrong(entry, "a book begins with the founding of its network")
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
        longest = max((held.size for held in self._trust.checkpoints), default=0)
        if longest > size:
            raise BookCorrupt(f"the book ends at entry {size}, the held checkpoint is of {longest}", seq=size)
        if self._views is not None and not self._views_done:
            raise ViewDiffers(f"the views are at entry {self._views.position}, the book ends at {size}: it was cut")

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
            anchored=self._trust.anchor is not None,
            operator_anchored=bool(self._trust.operator),
            network=state.network,
            operator=network.operator if network else "",
            mode=network.mode if network else "",
            entries=state.audit.head.seq,
            signatures=self._signatures,
            checkpoints=self._checkpoints,
            size=state.tree.size,
            root=state.tree.root().hex(),
            note=self._note,
            kinds={kind: row.entries for kind, row in sorted(kinds)},
            unknown_kinds={kind: row.entries for kind, row in sorted(kinds) if not row.known},
            lowest_balance=self._accounts.lowest,
            digests={fold.name: fold.digest() for fold in state.folds},
            views_seq=self._views.position if self._views is not None and self._views_done else None,
            views_note=self._views_note,
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
