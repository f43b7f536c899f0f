"""Joined runs: every row runs once, in a bounded run, for its own request; nobody starves, nobody pays for another's
mistake; and not one bit of an answer depends on the company."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from sawyer.engine.experts import EXACT, FAST, ExpertPool
from sawyer.errors import Busy, MalformedMessage, NoAnswer, SawyerError, UnknownExpert
from sawyer.ids import RequestId
from sawyer.model.artifacts import Artifacts
from sawyer.node.batching import (
    JOINED_ROWS,
    JOINED_ROWS_TO_LOAD,
    ROWS_A_RUN,
    ROWS_A_TURN,
    Job,
    Line,
    Run,
    jobs_of,
    work,
)
from sawyer.schemas.models import Format
from sawyer.schemas.tensors import ActivationRequest, Part, Rows

HIDDEN = 4
FAILS_ON = 666.0


class Sums:
    """Experts as arithmetic, which remember what ran. They fail over a row that begins with FAILS_ON."""

    def __init__(self, *unloaded: int) -> None:
        self.ran: list[tuple[int, int, int]] = []
        self._unloaded = unloaded

    def is_loaded(self, layer: int, expert: int) -> bool:
        return expert not in self._unloaded

    def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.ran.append((layer, expert, len(rows)))
        if (rows[:, 0] == FAILS_ON).any():
            raise RuntimeError("secret internals")
        return rows * 2 + np.float32(100 * layer + expert)


def job(
    *wanted: tuple[int, int], layer: int = 0, seed: int = 0, rows: Rows | None = None, deadline_ms: int = 60_000
) -> Job:
    """A job that wants so many rows of each of these experts."""
    random = np.random.default_rng(seed)
    count = max((count for _, count in wanted), default=1)
    made = random.standard_normal((count, HIDDEN)).astype(np.float32) if rows is None else rows
    entries = tuple((expert, np.sort(random.permutation(count)[:n]).astype(np.uint32)) for expert, n in wanted)
    asked = ActivationRequest(
        (Part(RequestId(f"{seed:032x}"), 1, len(made)),), bytes(8), layer, made, entries, deadline_ms
    )
    return Job(asked, "", perf_counter())


def line_of(*jobs: Job, joins: bool = True) -> Line:
    line = Line(len(jobs), joins=joins)
    for each in jobs:
        line.add(each)
    return line


def turn_of(line: Line, experts: Sums | ExpertPool) -> tuple[list[Run], list[Job]]:
    turn = line.next_turn(experts.is_loaded)
    work(experts, turn)
    return turn, line.settle(turn)


def expect_answered(done: Job) -> None:
    """What its experts make of its rows alone."""
    request = done.request
    for (expert, indices), rows, output in zip(request.work, done.inputs(), done.outputs(), strict=True):
        np.testing.assert_array_equal(rows, request.rows[indices])
        np.testing.assert_array_equal(output, request.rows[indices] * 2 + np.float32(100 * request.layer + expert))


JOBS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.dictionaries(st.integers(0, 3), st.one_of(st.integers(1, 40), st.integers(200, 700)), min_size=1),
    ),
    min_size=1,
    max_size=12,
)


@given(JOBS, st.booleans(), st.sets(st.integers(0, 3)))
def test_every_row_runs_once_in_bounded_runs_and_turns(
    asked: list[tuple[int, dict[int, int]]], joins: bool, unloaded: set[int]
) -> None:
    jobs = [job(*sorted(wanted.items()), layer=layer, seed=seed) for seed, (layer, wanted) in enumerate(asked)]
    line, experts, ended = line_of(*jobs, joins=joins), Sums(*unloaded), list[Job]()
    while len(line):
        before = len(line)
        turn, done = turn_of(line, experts)
        first = turn[0].pieces[0].job
        assert sum(piece.end - piece.start for run in turn for piece in run.pieces if piece.job is first) <= ROWS_A_TURN
        for run in turn:
            size = sum(piece.end - piece.start for piece in run.pieces)
            joined_rows = JOINED_ROWS_TO_LOAD if run.expert in unloaded else JOINED_ROWS
            assert size <= (ROWS_A_RUN if len(run.pieces) == 1 else joined_rows)
            assert {piece.job.request.layer for piece in run.pieces} == {run.layer}
            assert joins or len(run.pieces) == 1
        assert len(line) == before - len(done)
        ended += done
    assert sorted(map(id, ended)) == sorted(map(id, jobs))
    for each in ended:
        assert each.error is None
        expect_answered(each)
    assert sum(size for *_, size in experts.ran) == sum(each.row_count for each in jobs)
    assert not line._blocks, "nothing is remembered of who is gone"


class NeverLoads(Sums):
    """Reading its file fails."""

    def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.ran.append((layer, expert, len(rows)))
        raise OSError(5, "Input/output error")


def test_expert_that_cannot_be_loaded_is_tried_once_for_all_who_wait_for_it() -> None:
    jobs = [job((1, 1), seed=seed) for seed in range(20)]
    line, experts = line_of(*jobs), NeverLoads(1)
    work(experts, line.next_turn(experts.is_loaded))
    assert experts.ran == [(0, 1, 20)]
    assert all(each.error is not None for each in jobs)


def test_expert_that_must_be_loaded_is_loaded_once_for_all_who_wait_for_it() -> None:
    jobs = [job((0, 20), (1, 20), seed=seed) for seed in range(6)]
    line, experts = line_of(*jobs), Sums(1)
    assert turn_of(line, experts)[1] == [jobs[0]]
    assert experts.ran == [(0, 0, 20), (0, 1, 120)]
    while len(line):
        turn_of(line, experts)
    assert [expert for _, expert, _ in experts.ran].count(1) == 1


def test_experts_that_are_loaded_run_before_one_that_may_take_their_place() -> None:
    experts = Sums(0, 2)
    turn_of(line_of(only := job((0, 1), (1, 1), (2, 300), (3, 1))), experts)
    assert experts.ran == [(0, 1, 1), (0, 3, 1), (0, 0, 1), (0, 2, 256), (0, 2, 44)]
    expect_answered(only)


def test_where_company_changes_bits_every_request_runs_alone() -> None:
    jobs = [job((0, 1), seed=seed) for seed in range(3)]
    line, experts = line_of(*jobs, joins=False), Sums()
    while len(line):
        turn_of(line, experts)
    assert experts.ran == [(0, 0, 1)] * 3


def test_turn_of_a_long_line_takes_bounded_rows_of_others_and_looks_at_few() -> None:
    jobs = [job(*((expert, 20) for expert in range(100)), seed=seed) for seed in range(50)]
    line = line_of(job(*((expert, 1) for expert in range(100))), *jobs)
    turn = line.next_turn()
    assert sum(piece.end - piece.start for run in turn for piece in run.pieces[1:]) <= ROWS_A_TURN


def test_block_too_big_for_the_room_left_is_passed_over() -> None:
    jobs = [job((0, 1), seed=1), job((0, 20), seed=2), job((0, 20), seed=3), job((0, 2), seed=4)]
    line, experts = line_of(*jobs), Sums()
    assert turn_of(line, experts)[1] == [jobs[0], jobs[1], jobs[3]]
    assert experts.ran == [(0, 0, 23)]


def test_waiting_rows_of_one_expert_run_together_and_the_first_is_answered_first() -> None:
    jobs = [job((0, 1), (1, 2), seed=seed) for seed in range(4)]
    other = job((0, 1), layer=5, seed=9)
    line, experts = line_of(jobs[0], other, *jobs[1:]), Sums()
    _, done = turn_of(line, experts)
    assert experts.ran == [(0, 0, 4), (0, 1, 8)]
    assert done == jobs
    assert len(line) == 1


def test_neighbour_that_wants_more_experts_keeps_what_it_has_and_runs_only_the_rest() -> None:
    first, second = job((0, 1), seed=1), job((0, 1), (1, 1), seed=2)
    line, experts = line_of(first, second), Sums()
    assert turn_of(line, experts)[1] == [first]
    assert turn_of(line, experts)[1] == [second]
    assert experts.ran == [(0, 0, 2), (0, 1, 1)]
    expect_answered(second)


def test_small_request_behind_a_huge_one_waits_for_one_turn() -> None:
    huge, small = job((0, 5000), (1, 5000), seed=1), job((2, 1), seed=2)
    line, experts = line_of(huge, small), Sums()
    assert turn_of(line, experts)[1] == []
    assert turn_of(line, experts)[1] == [small]
    while len(line):
        turn_of(line, experts)
    expect_answered(huge)


def test_huge_requests_take_turns() -> None:
    jobs = [job((seed, 3 * ROWS_A_TURN), seed=seed) for seed in range(3)]
    line, experts = line_of(*jobs), Sums()
    while len(line):
        turn_of(line, experts)
    served = [expert for _, expert, _ in experts.ran]
    runs_a_turn = ROWS_A_TURN // ROWS_A_RUN
    assert served == [expert for _ in range(3) for expert in range(3) for _ in range(runs_a_turn)]


def test_expert_that_fails_over_one_requests_rows_serves_its_neighbours() -> None:
    bad_rows = np.full((1, HIDDEN), FAILS_ON, np.float32)
    jobs = [job((0, 1), seed=1), job((0, 1), (1, 1), seed=2, rows=bad_rows), job((0, 1), seed=3)]
    line, experts = line_of(*jobs), Sums()
    turn, done = turn_of(line, experts)
    assert jobs_of(turn) == done == jobs
    assert [type(each.error) for each in jobs] == [type(None), SawyerError, type(None)]
    assert "secret" not in str(jobs[1].error)
    for each in (jobs[0], jobs[2]):
        expect_answered(each)


def test_rows_of_a_request_that_failed_are_not_counted_as_work() -> None:
    bad_rows = np.full((3, HIDDEN), FAILS_ON, np.float32)
    line = line_of(job((0, 2), seed=1), job((0, 3), seed=2, rows=bad_rows))
    assert work(Sums(), line.next_turn()) == (2, 3)


@pytest.mark.parametrize("fails", ["gather", "begin"])
def test_memory_that_runs_out_for_one_request_leaves_its_neighbours_alone(
    fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job((0, 1), seed=seed) for seed in range(3)]
    real = getattr(Job, fails)

    def out_of_memory(self: Job, *arguments: object) -> object:
        if self is jobs[1]:
            raise MemoryError
        return real(self, *arguments)

    monkeypatch.setattr(Job, fails, out_of_memory)
    line = line_of(*jobs)
    work(Sums(), turn := line.next_turn())
    assert line.settle(turn) == jobs
    assert "MemoryError" in str(jobs[1].error)
    for each in (jobs[0], jobs[2]):
        expect_answered(each)


def test_typed_error_of_an_expert_is_kept() -> None:
    class Missing(Sums):
        def run(self, layer: int, expert: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
            raise UnknownExpert("gone")

    only = job((0, 1))
    line = line_of(only)
    work(Missing(), turn := line.next_turn())
    assert line.settle(turn) == [only]
    assert isinstance(only.error, UnknownExpert)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (job((0, 1), rows=np.full((1, HIDDEN), np.nan, np.float32)), MalformedMessage),
        (job((0, 1), rows=np.full((1, HIDDEN), np.inf, np.float16)), MalformedMessage),
        (job((0, 1), deadline_ms=0), NoAnswer),
    ],
    ids=["NaN", "infinity", "late"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_request_that_is_refused_leaves_its_neighbours_alone(bad: Job, error: type[SawyerError], place: int) -> None:
    bad = Job(bad.request, "", perf_counter())
    good = [job((0, 2), seed=1), job((0, 1), seed=2)]
    jobs = [*good[:place], bad, *good[place:]]
    line, experts = line_of(*jobs), Sums()
    while len(line):
        turn_of(line, experts)
    assert isinstance(bad.error, error)
    for each in good:
        assert each.error is None
        expect_answered(each)


def test_full_line_refuses_and_has_room_again_after_a_turn() -> None:
    line, experts = line_of(job((0, 1)), job((1, 1))), Sums()
    with pytest.raises(Busy, match="2 activation requests"):
        line.add(job((0, 1)))
    turn_of(line, experts)
    line.add(job((0, 1)))
    assert len(line) == 2


# --- exactness, with real kernels ----------------------------------------------------------------------------------

KERNELS: list[tuple[Format, int]] = [("f32", EXACT), ("q4", FAST), ("q4", EXACT)]


@pytest.mark.parametrize(("format", "accuracy_level"), KERNELS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_joined_and_cut_runs_are_bit_equal_to_each_request_alone(
    format: Format, accuracy_level: int, dtype: type, demo: Callable[[Format], Artifacts]
) -> None:
    pool = ExpertPool(demo(format), [(1, 0), (1, 1), (1, 2)], accuracy_level=accuracy_level, device="cpu")
    assert pool.row_exact
    sizes = [(1, 1, 1), (3, 1, 2), (1, 9, 1), (300, 1, 700), (2, 2, 2), (1, 1, 1), (7, 1, 30)]

    def jobs() -> list[Job]:
        made = []
        for seed, counts in enumerate(sizes):
            random = np.random.default_rng(seed)
            rows = (random.standard_normal((max(counts), pool.hidden)) * 3).astype(dtype)
            made.append(job(*enumerate(counts), layer=1, seed=seed, rows=rows))
        return made

    together, apart = jobs(), jobs()
    line, runs = line_of(*together), 0
    while len(line):
        turn = line.next_turn()
        runs += work(pool, turn)[1]
        line.settle(turn)
    for with_others, alone in zip(together, apart, strict=True):
        for (expert, indices), joined in zip(alone.request.work, with_others.outputs(), strict=True):
            whole = pool.run(1, expert, alone.request.rows[indices].astype(np.float32))
            assert joined.tobytes() == whole.tobytes()
    assert runs < sum(len(counts) for counts in sizes)
