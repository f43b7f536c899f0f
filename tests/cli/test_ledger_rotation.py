"""After `sawyer keys rotate ledger`: who knows the new key takes the newest checkpoints, and nothing that the old one
signs from then on; who does not is told how to get it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from sawyer.identity.keys import load
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.proof import ConsistencyProof, InclusionProof

from .conftest import Done


@dataclass
class Rotated:
    """A network whose ledger changed its key twice: the newest checkpoint is by the second. `auditor` is another home,
    which was told of it; `held` a checkpoint by the first key."""

    home: Path
    auditor: Path
    held: Path
    vkeys: list[str]

    def signed_by_old(self, note: str) -> str:
        """The same tree, signed by who has the first key: who may extend it as he likes."""
        return Checkpoint.read(note).sign(load(self.home / "keys" / "ledger.nk"))


@pytest.fixture(scope="module")
def rotated(sawyer, demo_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Rotated:
    folder = tmp_path_factory.mktemp("rotated")
    home, auditor, held = folder / "home", folder / "auditor", folder / "held.txt"
    shutil.copytree(demo_home, home, ignore=shutil.ignore_patterns("models", "nats", "logs", "lock", "running.json"))
    vkeys = [json.loads((home / "network.json").read_text())["ledger_vkey"]]
    assert sawyer("ledger", "checkpoint", "-o", held, "--home", home).code == 0
    for _ in range(2):
        done = sawyer("keys", "rotate", "ledger", "--home", home, "--json")
        assert done.code == 0, done.err
        vkeys.append(done.json["vkey"])
    auditor.mkdir()
    for name in ("network.json", "successors.ndjson"):
        shutil.copy(home / name, auditor)
    return Rotated(home, auditor, held, vkeys)


@pytest.fixture
def proof(sawyer, rotated: Rotated, tmp_path: Path) -> Path:
    """Of entry 3, in the newest tree."""
    file = tmp_path / "entry-3.tlog-proof"
    done = sawyer("ledger", "prove", "3", "-o", file, "--home", rotated.home)
    assert done.code == 0, done.err
    return file


@pytest.fixture
def growth(sawyer, rotated: Rotated, tmp_path: Path) -> Path:
    """Proof that the newest tree extends the one that is held."""
    file = tmp_path / "growth"
    done = sawyer("ledger", "consistency", rotated.held, "-o", file, "--home", rotated.home)
    assert done.code == 0, done.err
    return file


def refused(done: Done) -> None:
    assert done.code == 3, done.out + done.err
    assert "signed by a key out of its time" in done.err


@pytest.mark.parametrize("who", ["home", "auditor"])
def test_home_that_knows_the_new_key_verifies_what_it_signed(sawyer, rotated, proof, growth, who):
    home = getattr(rotated, who)
    verified = sawyer("ledger", "verify", "--proof", proof, "--home", home)
    assert verified.code == 0, verified.err
    grown = sawyer("ledger", "consistency", rotated.held, "--proof", growth, "--home", home)
    assert grown.code == 0, grown.err
    assert sawyer("ledger", "checkpoint", "--home", rotated.home).code == 0


def test_home_that_knows_the_new_key_refuses_a_fork_by_the_old_one(sawyer, rotated, proof, growth):
    inclusion, consistency = InclusionProof.decode(proof.read_text()), ConsistencyProof.decode(growth.read_text())
    forged = rotated.signed_by_old(inclusion.note)
    proof.write_text(InclusionProof(inclusion.index, inclusion.hashes, inclusion.entry, forged).encode())
    growth.write_text(ConsistencyProof(consistency.old_size, consistency.hashes, forged).encode())
    refused(sawyer("ledger", "verify", "--proof", proof, "--home", rotated.auditor))
    refused(sawyer("ledger", "consistency", rotated.held, "--proof", growth, "--home", rotated.auditor))


def test_book_that_goes_on_with_the_old_key_gives_no_checkpoint(sawyer, rotated, tmp_path):
    """Whether it has the new key's entry, or leaves it out."""
    home = tmp_path / "home"
    shutil.copytree(rotated.home, home)
    newest = sawyer("ledger", "checkpoint", "--home", home).out
    with sqlite3.connect(home / "book.sqlite") as book:
        book.execute(
            "UPDATE stored_events SET state = ? WHERE rowid = (SELECT MAX(rowid) FROM stored_events)",
            (rotated.signed_by_old(newest).encode(),),
        )
    book.close()
    refused(sawyer("ledger", "checkpoint", "--home", home))
    with sqlite3.connect(home / "book.sqlite") as book:
        book.execute("DELETE FROM stored_events WHERE rowid > (SELECT MAX(rowid) FROM stored_events) - 4")
    book.close()
    done = sawyer("ledger", "checkpoint", "--home", home)
    assert (done.code, "is left out" in done.err) == (3, True), done.err


def test_who_has_only_the_old_key_is_told_that_there_may_be_a_newer_one(sawyer, rotated, proof, tmp_path):
    verify = ("ledger", "verify", "--proof", proof, "--home", tmp_path / "nobody")
    old, second, _ = rotated.vkeys
    done = sawyer(*verify, "--key", old)
    assert done.code == 3
    assert "only a key of this ledger that is not known here" in done.err
    assert "If the ledger's key was rotated: give --key of the new one" in done.err
    assert sawyer(*verify, "--key", second).code == 0
    assert sawyer(*verify, "--key", old, "--key", second).code == 0


def test_new_verifier_key_is_shown_to_who_rotates_and_to_who_asks_the_book(sawyer, rotated, tmp_path):
    held = sawyer("keys", "ls", "--all", "--json", "--home", rotated.home).json
    assert [each["vkey"] for each in held if each["role"] == "ledger"] == rotated.vkeys
    assert {each["vkey"] for each in held if each["role"] != "ledger"} == {""}
    assert rotated.vkeys[-1] in sawyer("keys", "ls", "--home", rotated.home).err
    home = tmp_path / "home"
    shutil.copytree(rotated.home, home)
    done = sawyer("keys", "rotate", "ledger", "--home", home)
    vkey = next(line for line in done.out.splitlines() if "--key" in line).split()[-1]
    assert vkey in sawyer("keys", "ls", "--home", home).err
