"""Replay: read a whole book and believe nothing. Bytes, signatures, decisions, postings, checkpoints, views: all of it.

It stops at the first thing that does not hold, and reports it; nothing is repaired. Needs no bus, model or server.
This is the door; replaying.py reads the rows, replay_report.py is what comes out.
"""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sawyer.errors import UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.compromise import questionable
from sawyer.ledger.replay_report import Problem, Questionable, ReplayReport
from sawyer.ledger.replaying import At, Held, Progress, Question, Replaying
from sawyer.ledger.source import Source, SQLiteSource, ViewsSnapshot
from sawyer.ledger.verifying import MAX_WORKERS, Verifying

__all__ = ["At", "Problem", "Progress", "ReplayReport", "replay", "replay_home"]

log = logging.getLogger(__name__)


def replay(
    source: Source,
    *,
    key: str | None = None,
    operator: str | None = None,
    views: Path | None = None,
    held: tuple[str, ...] = (),
    since: str | None = None,
    at: At | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> ReplayReport:
    """Verify a book.

    `key`: the ledger's verifier key to trust (the one it was founded with); `operator`: the key that must have founded
    the network; `views`: the live views to compare; `held`: checkpoints that were kept elsewhere, which the book must
    contain; `since`: one more, up to which the caller has verified the book before: signatures of those entries are not
    verified again; `at`: when to look at the balances; `workers`: processes that verify signatures, 0 for one a core.

    What is wrong with the book is in the report; what is wrong with the question raises: UsageError (no such file, a
    checkpoint that is none, no such entry), VerificationError (not a key), SawyerError (a file that cannot be read, or
    was changed while it was read, or a process of ours that ended).
    """
    started_ns = time.perf_counter_ns()
    workers = workers or cores()
    if not 1 <= workers <= MAX_WORKERS:
        raise UsageError(f"at most {MAX_WORKERS} workers, got {workers}")
    question = _question(key, operator or "", held, since, at)
    with ExitStack() as stack:
        stack.enter_context(_collecting_no_cycles())
        verifying = stack.enter_context(Verifying(workers))
        run = Replaying(question, verifying)
        problem: Problem | None = None
        suspects: tuple[Questionable, ...] = ()
        try:
            if views is not None:
                run.compare_with(stack.enter_context(ViewsSnapshot.open(views)))
            run.all(source, progress)
            suspects = questionable(source, run.state)
        except VerificationError as error:
            problem = Problem.of(error)
        duration_us = (time.perf_counter_ns() - started_ns) // 1000
        return run.report(problem, suspects, workers=workers, duration_us=duration_us)


def replay_home(
    home: Home,
    *,
    source: Source | None = None,
    key: str | None = None,
    operator: str | None = None,
    held: tuple[str, ...] = (),
    since: str | None = None,
    at: At | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> ReplayReport:
    """Verify the book of a home (`source` if it lies in a database elsewhere) and its live views, against the keys
    pinned there unless others are given, and against the checkpoint that the last replay kept there. If all holds by
    the pinned keys, and every signature was verified, the newest checkpoint is kept: so a book that is cut short or
    forked later is found. Raises as `replay` does, and VerificationError for a damaged pin or kept checkpoint."""
    pin = home.pin()
    key = key or (pin.ledger_vkey if pin is not None else None)
    operator = operator or (pin.operator if pin is not None else None)
    pinned = pin is not None and (key, operator) == (pin.ledger_vkey, pin.operator)
    report = replay(
        source or SQLiteSource(home.book),
        key=key,
        operator=operator,
        views=home.views if home.views.is_file() else None,
        held=(*held, *_kept(home, pin)) if pin is not None and pinned else held,
        since=since,
        at=at,
        workers=workers,
        progress=progress,
    )
    if report.ok and pinned and not report.trusted_entries:
        try:
            home.keep_checkpoint(report.note)
        except OSError as error:  # an auditor may read a home that is not theirs
            log.warning("cannot keep the checkpoint in %s: %s", home.checkpoint, error)
    return report


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _question(key: str | None, operator: str, held: tuple[str, ...], since: str | None, at: At | None) -> Question:
    anchor = Verifier.parse(key) if key is not None else None
    kept = [_held(note, anchor) for note in held]
    trusted = _held(since, anchor) if since is not None else None
    return Question(anchor, operator, kept if trusted is None else [*kept, trusted], trusted, at)


def _held(note: str, anchor: Verifier | None) -> Held:
    """A checkpoint that the caller brought. Who signed it is judged where the book has so many entries: a ledger has
    several keys one after the other. Raises UsageError if it is none, or of another network."""
    try:
        checkpoint = Checkpoint.read(note)
        if anchor is not None and checkpoint.origin != anchor.name:
            raise VerificationError(f"it is of {checkpoint.origin[:120]!r}, the key is of {anchor.name!r}")
    except VerificationError as error:
        raise UsageError(
            f"the checkpoint to hold the book against is not one: {error.message}",
            hint="Give the file as it was kept, and the key of the same network.",
        ) from error
    return Held(note, checkpoint)


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
        if Checkpoint.read(note).origin != pin.network:
            raise VerificationError(f"it is not of network {pin.network}")
    except VerificationError as error:
        raise VerificationError(
            f"{home.checkpoint}: {error.message}",
            hint="Restore it. Only if you cannot: delete it, and lose the proof of what the book held.",
        ) from error
    return (note,)


@contextmanager
def _collecting_no_cycles() -> Iterator[None]:
    """Entries refer to nothing that refers to them, so Python need not look for cycles among millions of them; that
    would cost more than folding them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
