"""No secret is in the repository: keys, tokens and passwords of any kind that gives itself away by its form."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sawyer.errors import UsageError
from sawyer.identity.keys import Key

ROOT = Path(__file__).parents[2]
SEED = re.compile(rb"\bS[UOA][A-Z2-7]{56}\b")
FORMS = {
    "a PEM private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40}",
    "a Stripe secret": rb"\b[sr]k_(live|test)_[A-Za-z0-9]{20}|\bwhsec_[A-Za-z0-9]{24}",
    "an AWS key": rb"\bAKIA[0-9A-Z]{16}\b",
    "a GitHub token": rb"\bgh[pousr]_[A-Za-z0-9]{36}\b",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{34}\b",
    "a join token": rb"\bsawyer-join-[A-Za-z0-9_-]{200}",
}
KNOWN = {
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
    "SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU",
}
"""Published vectors, of tests/unit/identity/test_keys.py and of this file."""


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=False, capture_output=True)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    files = [ROOT / name for name in names if name] or [
        file for part in ("sawyer", "schemas", "projections", "tests", "docs") for file in (ROOT / part).rglob("*")
    ]
    return [file for file in files if file.is_file() and not file.is_symlink() and "__pycache__" not in file.parts]


def seeds(raw: bytes) -> set[str]:
    """NKEY seeds whose checksum holds: other letters are none."""
    found = set()
    for match in SEED.findall(raw):
        try:
            Key.from_seed(match.decode())
        except UsageError:
            continue
        found.add(match.decode())
    return found


def test_no_tracked_file_holds_a_secret() -> None:
    forms = {name: re.compile(form) for name, form in FORMS.items()}
    told = []
    for file in tracked():
        raw = file.read_bytes()
        told += [f"{file.relative_to(ROOT)}: {name}" for name, form in forms.items() if form.search(raw)]
        told += [f"{file.relative_to(ROOT)}: an NKEY seed" for seed in seeds(raw) - KNOWN]
    assert told == []


@pytest.mark.parametrize("kind", ["U", "O", "A"])
def test_seed_that_would_be_committed_is_found(kind: str) -> None:
    """Or the test above would prove nothing."""
    seed = Key.generate(kind).seed  # type: ignore[arg-type]
    assert seeds(b"key = '" + seed.encode() + b"'\n") == {seed}
