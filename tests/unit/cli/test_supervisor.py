"""Kept processes: started again with growing pauses, stopped in the opposite order of their start, told to the home."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from sawyer.cli import supervisor
from sawyer.cli.supervisor import Supervisor, read_parts
from sawyer.errors import SawyerError


class FakeProcess:
    """A process that serves at once, and dies when it is told to."""

    def __init__(self, pid: int, order: list[str], name: str, why_not: str = "") -> None:
        self.pid = pid
        self._order = order
        self._name = name
        self._why_not = why_not
        self.end = asyncio.Event()

    async def ready(self) -> None:
        if self._why_not:
            raise SawyerError(self._why_not)

    async def died(self) -> str:
        await self.end.wait()
        return f"{self._name} ended by signal 9"

    async def stop(self) -> None:
        self._order.append(self._name)


class Yard:
    """Starts fakes, and keeps them."""

    def __init__(self) -> None:
        self.made: list[FakeProcess] = []
        self.stopped: list[str] = []
        self.broken: dict[int, str] = {}
        self.started = asyncio.Condition()

    def start(self, name: str) -> Callable[[], object]:
        async def make() -> FakeProcess:
            number = len(self.made) + 1
            self.made.append(FakeProcess(number, self.stopped, name, self.broken.get(number, "")))
            async with self.started:
                self.started.notify_all()
            return self.made[-1]

        return make

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10), self.started:
            await self.started.wait_for(lambda: len(self.made) >= count)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is kept."""
    asked: list[float] = []
    sleep = asyncio.sleep

    async def at_once(seconds: float) -> None:
        asked.append(seconds)
        await sleep(0)

    monkeypatch.setattr(supervisor.asyncio, "sleep", at_once)
    return asked


async def test_process_that_dies_is_started_again_after_pauses_that_double(tmp_path: Path, pauses: list[float]) -> None:
    yard, notices = Yard(), []
    async with Supervisor(tmp_path, notices.append) as kept:
        await kept.keep({"node-1": yard.start("node-1")})
        for death in range(3):
            yard.made[death].end.set()
            await yard.until(death + 2)
        assert kept.parts[0].restarts == 3
        assert kept.parts[0].last_end == "node-1 ended by signal 9"
    assert [each for each in pauses if each] == [0.5, 1.0, 2.0]
    assert notices[0] == "node-1 ended by signal 9. Starting it again in 0.5 s (restart 1)."
    assert "node-1 is back (process 2)." in notices


async def test_pause_never_exceeds_its_bound(tmp_path: Path, pauses: list[float]) -> None:
    yard = Yard()
    async with Supervisor(tmp_path, lambda _: None) as kept:
        await kept.keep({"node-1": yard.start("node-1")})
        for death in range(10):
            yard.made[death].end.set()
            await yard.until(death + 2)
    assert max(pauses) == supervisor.MAX_PAUSE_S


async def test_process_that_ran_long_is_started_again_after_the_first_pause(
    tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STABLE_S", -1.0)
    yard = Yard()
    async with Supervisor(tmp_path, lambda _: None) as kept:
        await kept.keep({"node-1": yard.start("node-1")})
        for death in range(2):
            yard.made[death].end.set()
            await yard.until(death + 2)
    assert [each for each in pauses if each] == [0.5, 0.5]


async def test_first_start_that_fails_is_raised_and_not_repeated(tmp_path: Path, pauses: list[float]) -> None:
    yard = Yard()
    yard.broken[1] = "node-1 ended before it was ready: no such model"
    async with Supervisor(tmp_path, lambda _: None) as kept:
        with pytest.raises(SawyerError, match="no such model"):
            await kept.keep({"node-1": yard.start("node-1")})
    assert len(yard.made) == 1
    assert pauses == []


async def test_later_start_that_fails_is_said_and_repeated(tmp_path: Path, pauses: list[float]) -> None:
    yard, notices = Yard(), []
    yard.broken[2] = "no memory"
    async with Supervisor(tmp_path, notices.append) as kept:
        await kept.keep({"node-1": yard.start("node-1")})
        yard.made[0].end.set()
        await yard.until(3)
    assert any("node-1 did not start: no memory" in each for each in notices)


async def test_processes_are_stopped_in_the_opposite_order(tmp_path: Path) -> None:
    yard = Yard()
    async with Supervisor(tmp_path, lambda _: None) as kept:
        for name in ("server", "bookkeeper", "router"):
            await kept.keep({name: yard.start(name)})
    assert yard.stopped == ["router", "bookkeeper", "server"]


async def test_groups_that_start_together_are_stopped_one_after_the_other(tmp_path: Path) -> None:
    yard = Yard()
    async with Supervisor(tmp_path, lambda _: None) as kept:
        nodes = {name: yard.start(name) for name in ("node-1", "node-2")}
        await kept.keep(nodes, {"router": yard.start("router")})
        assert {each.state for each in kept.parts} == {"running"}
    assert yard.stopped[0] == "router"
    assert set(yard.stopped[1:]) == {"node-1", "node-2"}


async def test_start_that_fails_in_any_way_is_raised_at_first_and_repeated_later(
    tmp_path: Path, pauses: list[float]
) -> None:
    """A full disk, no more processes: whatever it is, nobody waits for ever and nothing is given up."""

    async def impossible() -> FakeProcess:
        raise OSError(28, "No space left on device")

    notices: list[str] = []
    yard = Yard()
    starts = [yard.start("node-1"), impossible, yard.start("node-1")]

    async def next_one() -> object:
        return await starts.pop(0)()  # type: ignore[misc]

    async with Supervisor(tmp_path, notices.append) as kept:
        with pytest.raises(OSError, match="No space left"):
            await kept.keep({"bookkeeper": impossible})
        await kept.keep({"node-1": next_one})
        yard.made[0].end.set()
        await yard.until(2)
    assert any("did not start" in each and "No space left" in each for each in notices)


async def test_states_are_in_the_home_while_it_runs_and_gone_afterwards(tmp_path: Path) -> None:
    yard = Yard()
    async with Supervisor(tmp_path, lambda _: None) as kept:
        await kept.keep({"router-1": yard.start("router-1")})
        [row] = read_parts(tmp_path)
        assert (row.name, row.state, row.pid) == ("router-1", "running", 1)
    assert read_parts(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '[{"name": "a", "unknown": 1}]', '{"a": 1}'])
def test_states_that_make_no_sense_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / supervisor.PARTS_FILE).write_text(content)
    assert read_parts(tmp_path) == []
