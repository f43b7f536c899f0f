"""The accounting programs that judge an export, as programs: `bean-check` from the dev extra, `hledger` from wherever
it can be had without root. Nothing of them is imported."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HLEDGER_PLACE: Final = Path(sys.prefix) / "share" / "hledger"
"""Where Debian's hledger is unpacked to, once, if the machine has none."""
NO_HLEDGER: Final = "hledger check: no hledger here; install it, or name one with SAWYER_HLEDGER"
TIMEOUT_S: Final = 60


def bean_check(journal: Path) -> str:
    """What bean-check complains of; "" if it accepts the journal."""
    return _complaint([str(Path(sys.executable).with_name("bean-check")), "--no-cache", str(journal)])


def hledger_check(journal: Path) -> str:
    """What hledger complains of; "" if it accepts the journal: balanced, asserted, every account and unit declared, and
    its days in order."""
    return _complaint([str(hledger()), "--file", str(journal), "check", "--strict", "ordereddates"])


def hledger_report(journal: Path, *words: str) -> str:
    """What hledger reports."""
    done = subprocess.run(
        [str(hledger()), "--file", str(journal), *words], check=True, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return done.stdout


@functools.cache
def hledger() -> Path | None:
    """A working hledger, or None: of SAWYER_HLEDGER, of this machine, or unpacked from Debian's package into .venv."""
    return next((each for each in _candidates() if _runs(each)), None)


def _candidates() -> Iterator[Path]:
    for named in (os.environ.get("SAWYER_HLEDGER"), shutil.which("hledger")):
        if named:
            yield Path(named)
    unpacked = HLEDGER_PLACE / "usr" / "bin" / "hledger"
    if unpacked.is_file() or _unpack():
        yield unpacked


def _runs(program: Path) -> bool:
    try:
        done = subprocess.run([str(program), "--version"], check=False, capture_output=True, timeout=TIMEOUT_S)
    except OSError:
        return False
    return done.returncode == 0


def _unpack() -> bool:
    """`apt-get download` needs neither root nor an installed package, only Debian or Ubuntu with its lists."""
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return False
    HLEDGER_PLACE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HLEDGER_PLACE.parent) as folder:
        fetched = subprocess.run(
            ["apt-get", "-q", "download", "hledger"], cwd=folder, check=False, capture_output=True, timeout=TIMEOUT_S
        )
        packages = list(Path(folder).glob("*.deb"))
        if fetched.returncode or not packages:
            return False
        draft = Path(folder) / "unpacked"
        done = subprocess.run(["dpkg", "-x", str(packages[0]), str(draft)], check=False, timeout=TIMEOUT_S)
        if done.returncode:
            return False
        with contextlib.suppress(OSError):  # another worker was faster
            draft.rename(HLEDGER_PLACE)
    return True


def _complaint(command: list[str]) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode == 0:
        return ""
    return (done.stdout + done.stderr).strip() or f"exit code {done.returncode}"
