"""Which rows run next, and running them: waiting rows of one expert, of whatever request, are joined into one run of
ONNX Runtime. Owns the line in which requests wait; knows no bus and no receipts.

Nobody waits for others to come: only what is waiting already is joined. Whether rows travel alone or joined changes no
bit of their answer (engine/experts.py), so a run may be filled up, and a huge request may be cut into turns.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import Busy, MalformedMessage, NoAnswer, SawyerError
from sawyer.schemas.tensors import ActivationRequest, Rows

ROWS_A_TURN: Final = 512
"""After so many rows (summed over experts) a request that has more goes to the end of the line."""
ROWS_A_RUN: Final = 256
"""Rows of one request in one run of ONNX Runtime."""
JOINED_ROWS: Final = 32
"""A run of fewer rows is filled up with waiting rows of others to so many: that far, a row joined costs less than a row
alone, and who was first waits little longer."""

log = logging.getLogger(__name__)

FloatRows = NDArray[np.float32]


class Experts(Protocol):
    """What runs an expert: engine.experts.ExpertPool."""

    def run(self, layer: int, expert: int, rows: FloatRows) -> FloatRows:
        """[T, H] float32 -> [T, H] float32. Blocking."""


@dataclass(eq=False, slots=True)
class Job:
    """One activation request in line: what came of it so far. `row_count` sums its rows over its experts. `begun_s` is
    when its first rows ran, `busy_s` how long the runs took that held its rows, `error` why it will not be answered.
    `done` counts the rows of each entry of its work that ran."""

    request: ActivationRequest
    reply_to: str
    arrived_s: float
    begun_s: float = 0.0
    busy_s: float = 0.0
    error: SawyerError | None = None
    done: list[int] = field(init=False)
    row_count: int = field(init=False)
    _left: int = field(init=False)
    _inputs: list[Rows | None] = field(init=False)
    _outputs: list[list[FloatRows]] = field(init=False)
    _where: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        work = self.request.work
        self.done = [0] * len(work)
        self.row_count = self._left = sum([len(indices) for _, indices in work])
        self._inputs = [None] * len(work)
        self._outputs = [[] for _ in work]

    @property
    def ended(self) -> bool:
        """Every row ran, or none of the rest will."""
        return not self._left or self.error is not None

    def entry_of(self, expert: int) -> int | None:
        """Where in its work an expert stands."""
        if not self._where:  # most jobs are never asked
            self._where = {named: at for at, (named, _) in enumerate(self.request.work)}
        return self._where.get(expert)

    def inputs(self) -> list[Rows]:
        """[n, H] of each expert as they came, in the order of the request's work."""
        return [
            self.request.rows[indices] if known is None else known
            for known, (_, indices) in zip(self._inputs, self.request.work, strict=True)
        ]

    def outputs(self) -> list[FloatRows]:
        """[n, H] of each expert, in the order of the request's work. Only when all ran."""
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in self._outputs]

    def gather(self, at: int, start: int, end: int) -> Rows:
        """Rows `start` to `end` of entry `at` of its work."""
        rows = self.request.rows[self.request.work[at][1][start:end]]
        if end - start == len(self.request.work[at][1]):
            self._inputs[at] = rows  # the receipt needs them once more
        return rows

    def take(self, piece: Piece, output: FloatRows) -> None:
        """The output of its next rows."""
        self._outputs[piece.at].append(output)
        self._left -= len(output)
        self.done[piece.at] = piece.end

    def begin(self, now_s: float) -> None:
        """Before its first rows run: refuse what came too late, or is no number."""
        self.begun_s = now_s
        waited_s = now_s - self.arrived_s
        if waited_s * 1000 > self.request.deadline_ms:
            self.error = NoAnswer(
                f"waited {waited_s * 1000:.0f} ms, past the deadline of {self.request.deadline_ms} ms"
            )
        elif not np.isfinite(self.request.rows).all():
            self.error = MalformedMessage("rows hold NaN or infinity")


class Piece(NamedTuple):
    """Rows `start` to `end` of entry `at` of a job's work."""

    job: Job
    at: int
    start: int
    end: int

    def rows(self) -> FloatRows:
        """[end - start, H] float32."""
        return self.job.gather(self.at, self.start, self.end).astype(np.float32, copy=False)


class Run(NamedTuple):
    """One run of one expert: pieces of different jobs."""

    layer: int
    expert: int
    pieces: tuple[Piece, ...]


class Line:
    """Jobs in the order they came, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Raises Busy if the line is full."""
        if len(self._jobs) >= self._limit:
            raise Busy(f"{self._limit} activation requests are waiting already")
        self._jobs.append(job)

    def next_turn(self) -> list[Run]:
        """Takes the first job out of a line that is not empty: its next runs, filled up with rows of those behind it.
        Hand it to `settle` when it ran."""
        first = self._jobs.popleft()
        return plan([first, *self._jobs])

    def settle(self, turn: Sequence[Run]) -> list[Job]:
        """After a turn: the jobs that ended are returned, in their order; a first job that has more to do goes to the
        end of the line."""
        first = turn[0].pieces[0].job
        ended = [job for job in jobs_of(turn) if job.ended]
        if any(job is not first for job in ended):
            gone = set(ended)
            self._jobs = deque(job for job in self._jobs if job not in gone)
        if not first.ended:
            self._jobs.append(first)
        return ended


def jobs_of(turn: Sequence[Run]) -> list[Job]:
    """The jobs that have rows in a turn, each once, in their order."""
    return list(dict.fromkeys([piece.job for run in turn for piece in run.pieces]))


def plan(jobs: Sequence[Job]) -> list[Run]:
    """The first job's next rows, at most ROWS_A_TURN; a run of few rows is filled up with whole blocks of the others
    for that expert, in their order. Pure."""
    first, others = jobs[0], jobs[1:]
    layer, room, runs = first.request.layer, ROWS_A_TURN, []
    for at, (expert, indices) in enumerate(first.request.work):
        start = first.done[at]
        while room and start < len(indices):
            end = min(len(indices), start + ROWS_A_RUN, start + room)
            joined = _joined(others, layer, expert, JOINED_ROWS - (end - start)) if others else ()
            runs.append(Run(layer, expert, (Piece(first, at, start, end), *joined)))
            room -= end - start
            start = end
    return runs


def _joined(others: Sequence[Job], layer: int, expert: int, room: int) -> list[Piece]:
    pieces = []
    for job in others:
        if room <= 0:
            break
        at = job.entry_of(expert) if job.request.layer == layer else None
        if at is None:
            continue
        start, end = job.done[at], len(job.request.work[at][1])
        if 0 < end - start <= room:
            pieces.append(Piece(job, at, start, end))
            room -= end - start
    return pieces


def work(experts: Experts, turn: Sequence[Run]) -> tuple[int, int]:
    """Run a turn; every job keeps its own output, or its own error. Blocking. Returns how many rows ran, in how many
    runs."""
    rows = runs = 0
    for run in turn:
        started_s = perf_counter()
        for piece in run.pieces:
            if not piece.job.begun_s:
                piece.job.begin(started_s)
        pieces = [piece for piece in run.pieces if piece.job.error is None]
        if pieces:
            runs += _run(experts, run.layer, run.expert, pieces)
            took_s = perf_counter() - started_s
            for piece in pieces:
                rows += piece.end - piece.start
                piece.job.busy_s += took_s
    return rows, runs


def _run(experts: Experts, layer: int, expert: int, pieces: list[Piece]) -> int:
    rows = [piece.rows() for piece in pieces]
    try:
        outputs = experts.run(layer, expert, rows[0] if len(rows) == 1 else np.concatenate(rows))
    except Exception as error:  # noqa: BLE001  (told to whoever asked, and in the log)
        if len(pieces) > 1:  # it may be the rows of one: then the others must not suffer
            return 1 + sum(_run(experts, layer, expert, [piece]) for piece in pieces)
        pieces[0].job.error = typed(error)
        return 1
    start = 0
    for piece in pieces:
        end = start + piece.end - piece.start
        piece.job.take(piece, outputs[start:end])
        start = end
    return 1


def typed(error: Exception) -> SawyerError:
    """What the other side is told: a typed error as it is; of any other only the type, and the log has the rest."""
    if isinstance(error, SawyerError):
        return error
    log.error("an activation failed", exc_info=error)
    return SawyerError(f"the node failed ({type(error).__name__}); its log has more")
