"""Runs a program that ends when the one who started it ends, however that happened.

Linux tells a child that its parent died (PR_SET_PDEATHSIG), and the wish survives exec; so no process outlives a demo
that was killed. Elsewhere the program is just run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def argv(program: Sequence[str]) -> list[str]:
    """The command line that runs this program on a leash held by the calling process. -P: code that lies in the current
    directory is never run."""
    return [sys.executable, "-P", "-m", "sawyer.leash", str(os.getpid()), *program]


def main() -> None:
    """Tie, then become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606


if __name__ == "__main__":
    main()
