"""A program on a leash ends with the one who holds it, even if that one is killed. Linux only, by design."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

import pytest

from sawyer import leash

PATIENCE_S: Final = 20.0
CHILD: Final = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
HOLDER: Final = """
import subprocess, sys
from sawyer import leash
program = [sys.executable, "-c", sys.argv[2]]
subprocess.run(leash.argv(program) if sys.argv[1] == "leashed" else program)
"""


def start(kind: str) -> tuple[subprocess.Popen[bytes], int]:
    """A holder and the pid of its child. Both write to the holder's output: it ends when neither is left."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, kind, CHILD], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    return holder, int(holder.stdout.readline())


def test_child_on_the_leash_dies_when_its_holder_is_killed() -> None:
    holder, child = start("leashed")
    os.kill(child, 0)
    holder.kill()
    rest, _ = holder.communicate(timeout=PATIENCE_S)
    assert rest == b""


def test_child_without_a_leash_outlives_its_holder() -> None:
    """What the leash is for: without it, the same child stays."""
    holder, child = start("free")
    holder.kill()
    holder.wait(PATIENCE_S)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            holder.communicate(timeout=0.2)
    finally:
        os.kill(child, signal.SIGKILL)
        holder.communicate(timeout=PATIENCE_S)


def test_program_takes_the_place_of_the_leash() -> None:
    ran = subprocess.run(
        leash.argv(["/bin/sh", "-c", 'echo "$0 $1"; exit 7', "zero", "one two"]), capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (7, b"zero one two\n")


def test_child_whose_holder_is_gone_already_does_not_start() -> None:
    program = leash.argv(["/bin/echo", "started"])
    program[program.index(str(os.getpid()))] = "1"
    ran = subprocess.run(program, capture_output=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert b"the parent is gone already" in ran.stderr
