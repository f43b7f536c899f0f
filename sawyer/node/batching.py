"""Which rows run next, and running them: waiting rows of one expert, of whatever request, are joined into one run of
ONNX Runtime. Owns the line in which requests wait; knows no bus and no receipts.

Nobody waits for others to come: only what is waiting already is joined. Where the answer for a row does not depend on
its company (ExpertPool.row_exact: on the CPU) that changes no bit; elsewhere nothing is joined. A huge request is cut
into turns everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sawyer.errors import Busy, MalformedMessage, NoAnswer, SawyerError
from sawyer.schemas.tensors import ActivationRequest, Rows

ROWS_A_TURN: Final = 512
"""After so many rows (summed over experts) a request that has more goes to the end of the line. At most as many rows of
others ride along."""
ROWS_A_RUN: Final = 256
"""Rows of one request in one run of ONNX Runtime."""
JOINED_ROWS: Final = 32
"""A run of fewer rows is filled up with waiting rows of others to so many: that far, a row joined costs less than a row
alone, and who was first waits little longer."""
JOINED_ROWS_TO_LOAD: Final = 256
"""So far a run is filled up whose expert must be loaded first: for a load, one should serve all who wait for it."""
PASSED_OVER: Final = 4
"""Waiting blocks that are too big for what room a run has left, before it runs as it is: choosing must cost little."""

log = logging.getLogger(__name__)

FloatRows = NDArray[np.float32]


class Experts(Protocol):
    """What runs an expert: engine.experts.ExpertPool."""

    def run(self, layer: int, expert: int, rows: FloatRows) -> FloatRows:
        """[T, H] float32 -> [T, H] float32. Blocking."""

    def is_loaded(self, layer: int, expert: int) -> bool:
        """Whether it runs without being loaded first."""


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
    """Jobs in the order they came, at most `limit`. `joins`: a turn may hold rows of those behind the first."""

    def __init__(self, limit: int, *, joins: bool = True) -> None:
        self._limit = limit
        self._joins = joins
        self._jobs: dict[Job, None] = {}
        self._blocks: dict[tuple[int, int], dict[Job, int]] = {}
        """By layer and expert: who in line, but the first, has a block that a run could be filled up with, and where in
        its work. Kept as jobs come and go, because looking for them would cost milliseconds a turn in a long line."""

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Raises Busy if the line is full."""
        if len(self._jobs) >= self._limit:
            raise Busy(f"{self._limit} activation requests are waiting already")
        self._append(job)

    def next_turn(self, is_loaded: Callable[[int, int], bool] = lambda *_: True) -> list[Run]:
        """Takes the first job out of a line that is not empty: its next runs, filled up with whole blocks of those
        behind it, in their order; further for (layer, expert) that is not loaded. Hand it to `settle` when it ran, with
        nothing between but `add`."""
        first = next(iter(self._jobs))
        self._remove(first)
        layer, room, others_room, runs = first.request.layer, ROWS_A_TURN, ROWS_A_TURN, []
        for at, (expert, indices) in enumerate(first.request.work):
            start = first.done[at]
            while room and start < len(indices):
                end = min(len(indices), start + ROWS_A_RUN, start + room)
                full = JOINED_ROWS if is_loaded(layer, expert) else JOINED_ROWS_TO_LOAD
                joined = self._take_joined(layer, expert, min(full - (end - start), others_room))
                runs.append(Run(layer, expert, (Piece(first, at, start, end), *joined)))
                room -= end - start
                others_room -= sum([piece.end - piece.start for piece in joined])
                start = end
        return runs

    def settle(self, turn: Sequence[Run]) -> list[Job]:
        """After a turn: the jobs that ended are returned, in their order; a first job that has more to do goes to the
        end of the line."""
        first = turn[0].pieces[0].job
        ended = [job for job in jobs_of(turn) if job.ended]
        for job in ended:
            if job is not first:
                self._remove(job)
        if not first.ended:
            self._append(first)
        return ended

    def _append(self, job: Job) -> None:
        if self._jobs and self._joins:  # who is the first of all is never joined to another
            layer = job.request.layer
            for at, (expert, indices) in enumerate(job.request.work):
                if 0 < len(indices) - job.done[at] < JOINED_ROWS:
                    self._blocks.setdefault((layer, expert), {})[job] = at
        self._jobs[job] = None

    def _remove(self, job: Job) -> None:
        del self._jobs[job]
        if self._blocks:
            for expert, _ in job.request.work:
                self._forget((job.request.layer, expert), job)

    def _forget(self, of: tuple[int, int], job: Job) -> None:
        blocks = self._blocks.get(of)
        if blocks is not None and blocks.pop(job, None) is not None and not blocks:
            del self._blocks[of]

    def _take_joined(self, layer: int, expert: int, room: int) -> list[Piece]:
        blocks = self._blocks.get((layer, expert))
        if blocks is None or room <= 0:
            return []
        pieces, passed_over = list[Piece](), 0
        for job, at in blocks.items():
            start, end = job.done[at], len(job.request.work[at][1])
            if end - start <= room:
                pieces.append(Piece(job, at, start, end))
                room -= end - start
            else:
                passed_over += 1
            if not room or passed_over == PASSED_OVER:
                break
        for piece in pieces:
            self._forget((layer, expert), piece.job)
        return pieces


def jobs_of(turn: Sequence[Run]) -> list[Job]:
    """The jobs that have rows in a turn, each once, in their order."""
    return list(dict.fromkeys([piece.job for run in turn for piece in run.pieces]))


def work(experts: Experts, turn: Sequence[Run]) -> tuple[int, int]:
    """Run a turn; every job keeps its own output, or its own error. Blocking. Returns how many rows were computed, in
    how many runs."""
    rows = runs = 0
    for run in sorted(turn, key=lambda each: not experts.is_loaded(each.layer, each.expert)):  # before it is dropped
        started_s = perf_counter()
        for piece in run.pieces:
            if not piece.job.begun_s:
                _begin(piece.job, started_s)
        pieces = [piece for piece in run.pieces if piece.job.error is None]
        if pieces:
            runs += _run(experts, run.layer, run.expert, pieces)
            took_s = perf_counter() - started_s
            for piece in pieces:
                piece.job.busy_s += took_s
                if piece.job.error is None:
                    rows += piece.end - piece.start
    return rows, runs


def _begin(job: Job, now_s: float) -> None:
    try:
        job.begin(now_s)
    except Exception as error:  # noqa: BLE001  (no memory for the check: told to whoever asked)
        job.error = typed(error)


def _run(experts: Experts, layer: int, expert: int, pieces: list[Piece]) -> int:
    try:
        rows = [piece.rows() for piece in pieces]
        outputs = experts.run(layer, expert, rows[0] if len(rows) == 1 else np.concatenate(rows))
    except Exception as error:  # noqa: BLE001  (told to whoever asked, and in the log)
        if len(pieces) > 1 and experts.is_loaded(layer, expert):  # the rows of one: then the others must not suffer
            return 1 + sum(_run(experts, layer, expert, [piece]) for piece in pieces)
        told = typed(error)
        for piece in pieces:  # one, or all: there is no such expert now
            piece.job.error = told
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
