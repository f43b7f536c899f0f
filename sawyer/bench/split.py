"""What a split costs: memory, time and CPU of splitting a checkpoint with random weights, beside plain copying of its
file in the same round. Each split is a process of its own, so that its peak memory is that of a split and nothing else.

Run as a module, it is that process: `python -m sawyer.bench.split CHECKPOINT OUT FORMAT TRUNK_FORMAT`.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sawyer import leash
from sawyer.bench.machine import Machine, this_machine
from sawyer.bench.result import Goal
from sawyer.bench.synthetic import Shape, write_checkpoint
from sawyer.bench.timing import Spread, ratios
from sawyer.errors import NoSpace, SawyerError
from sawyer.ids import ModelId
from sawyer.model.checkpoint import SINGLE_FILE
from sawyer.model.split import split
from sawyer.schemas.models import Format

MODULE: Final = "sawyer.bench.split"
MODEL: Final = ModelId("bench-split")
LARGE: Final = Shape(hidden=2048, ffn=5632, layers=1, experts=8, vocab=32_000)
SMALL: Final = Shape(hidden=512, ffn=1408, layers=1, experts=8)
"""One layer of the checkpoints that are split; the size asked for says how many there are."""
BF16_BYTES: Final = 2
F32_BYTES: Final = 4
WANTED_MB_PER_S: Final = 100
EXPERTS_ALLOWED: Final = 3
BYTES_ALLOWED: Final = 500_000_000
"""Peak memory is to stay below so many experts in float32 and so many bytes."""
ROOM: Final = 4
"""Times the checkpoint's size that is needed on disk: it, its copy, its split (in f32 twice as large)."""
Notice = Callable[[str], None]


@dataclass(frozen=True)
class SplitPlan:
    """What is split, how often."""

    size_bytes: int
    rounds: int
    format: Format
    trunk_format: Format
    quick: bool

    @property
    def shape(self) -> Shape:
        """A Mixtral of whole layers whose bfloat16 checkpoint has about this size."""
        layer = SMALL if self.quick else LARGE
        weights = 3 * layer.hidden * layer.ffn * layer.experts
        layers = max(1, round(self.size_bytes / (weights * BF16_BYTES)))
        return Shape(layer.hidden, layer.ffn, layers, layer.experts, vocab=layer.vocab)


class Alone(msgspec.Struct, frozen=True):
    """What one split process says of itself. `idle_bytes`: its memory before it began."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    idle_bytes: int


@dataclass(frozen=True)
class SplitResult:
    """MB are 10^6 bytes of bfloat16 input. `copies_a_split`: how often the file could be copied while it is split. Peak
    memory is the highest of all rounds; `idle_bytes` of it the process had before it began."""

    v: int
    machine: Machine
    quick: bool
    rounds: int
    format: Format
    trunk_format: Format
    input_bytes: int
    expert_f32_bytes: int
    peak_bytes: int
    idle_bytes: int
    mb_per_s: Spread
    mb_per_cpu_s: Spread
    copied_mb_per_s: Spread
    copies_a_split: Spread
    goals: tuple[Goal, ...]


def measure(plan: SplitPlan, loop: str, notice: Notice) -> SplitResult:
    """Everything, round by round, in a folder that is removed. Raises NoSpace, SawyerError if a split fails."""
    machine = this_machine(loop)
    with tempfile.TemporaryDirectory(prefix="sawyer-bench-") as name:
        folder = Path(name)
        _check_room(plan, folder)
        notice("writing a checkpoint with random weights")
        checkpoint = write_checkpoint(folder / "checkpoint", plan.shape)
        file = checkpoint / SINGLE_FILE
        size = file.stat().st_size
        copied_s, alone = [], []
        for number in range(plan.rounds):
            where = f"round {number + 1} of {plan.rounds}: "
            notice(f"{where}copying {size / 1e9:.1f} GB")
            copied_s.append(_copy_s(file, folder / "copy"))
            notice(f"{where}splitting it to {plan.format}")
            alone.append(_split_alone(checkpoint, folder / "out", plan))
    expert = 3 * plan.shape.hidden * plan.shape.ffn * F32_BYTES
    megabytes = size / 1e6
    peak = max(each.peak_bytes for each in alone)
    rate = Spread.of([megabytes / each.seconds for each in alone])
    most = EXPERTS_ALLOWED * expert + BYTES_ALLOWED
    return SplitResult(
        v=1, machine=machine, quick=plan.quick, rounds=plan.rounds, format=plan.format, trunk_format=plan.trunk_format,
        input_bytes=size, expert_f32_bytes=expert, peak_bytes=peak,
        idle_bytes=max(each.idle_bytes for each in alone), mb_per_s=rate,
        mb_per_cpu_s=Spread.of([megabytes / each.cpu_seconds for each in alone]),
        copied_mb_per_s=Spread.of([megabytes / seconds for seconds in copied_s]),
        copies_a_split=Spread.of(ratios([each.seconds for each in alone], copied_s)),
        goals=(
            Goal("mb_per_s", WANTED_MB_PER_S, rate.median, rate.median >= WANTED_MB_PER_S),
            Goal("peak_bytes", most, peak, peak < most),
        ),
    )  # fmt: skip


def _check_room(plan: SplitPlan, folder: Path) -> None:
    needed, free = ROOM * plan.size_bytes, shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpace(
            f"{needed / 1e9:.1f} GB are needed in {folder.parent}, and {free / 1e9:.1f} GB are free there",
            hint="Set TMPDIR to a folder on another disk, or measure with a smaller --size-gb.",
        )


def _copy_s(file: Path, copy: Path) -> float:
    """Copies a file as a program would, to the disk, and removes the copy."""
    started = time.perf_counter()
    with file.open("rb") as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    seconds = time.perf_counter() - started
    copy.unlink()
    return seconds


def _split_alone(checkpoint: Path, out: Path, plan: SplitPlan) -> Alone:
    argv = [sys.executable, "-P", "-m", MODULE, str(checkpoint), str(out), plan.format, plan.trunk_format]
    done = subprocess.run(leash.argv(argv), check=False, capture_output=True)
    if done.returncode:
        raise SawyerError(f"the split failed: {done.stderr.decode(errors='replace').strip()[-500:]}")
    shutil.rmtree(out)
    return msgspec.json.decode(done.stdout, type=Alone)


def peak_bytes() -> int:
    """The most memory that this process ever had resident, since its program began."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _main(checkpoint: str, out: str, format: Format, trunk_format: Format) -> None:
    idle, started, computed = peak_bytes(), time.perf_counter(), time.process_time()
    split(Path(checkpoint), Path(out), model=MODEL, format=format, trunk_format=trunk_format)
    took = Alone(time.perf_counter() - started, time.process_time() - computed, peak_bytes(), idle)
    sys.stdout.buffer.write(msgspec.json.encode(took))


if __name__ == "__main__":
    _main(*sys.argv[1:])  # type: ignore[arg-type]
