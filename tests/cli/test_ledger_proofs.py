"""Proofs for people who do not trust us: `sawyer ledger prove`, `verify`, `checkpoint`, `consistency`."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from sawyer.cli.targets import MAX_FILE_BYTES
from sawyer.identity.keys import load
from sawyer.ledger.checkpoint import Checkpoint, Verifier, signatures_of
from sawyer.ledger.keyring import node_cosigner
from sawyer.ledger.proof import ConsistencyProof, InclusionProof
from sawyer.ledger.witness import cosign, merge, witness_name

from .test_commands import NETWORK_PACKAGES, _without

AT_S = 1_700_000_000


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """The home of somebody who has nothing but what he is given."""
    return tmp_path / "nobody"


@pytest.fixture(scope="session")
def vkey(demo_home: Path) -> str:
    return json.loads((demo_home / "network.json").read_text())["ledger_vkey"]


@pytest.fixture
def proof(sawyer, demo_home: Path, tmp_path: Path) -> Path:
    """Of entry 3."""
    file = tmp_path / "entry-3.tlog-proof"
    done = sawyer("ledger", "prove", "3", "-o", file, "--home", demo_home)
    assert (done.code, done.out) == (0, ""), done.err
    assert f"{file}: proof of entry 3" in done.err
    return file


def signed(home: Path, size: int, root: bytes) -> str:
    """A checkpoint that only whoever has the ledger's key can make."""
    network = json.loads((home / "network.json").read_text())["network"]
    return Checkpoint(network, size, root).sign(load(home / "keys" / "ledger.nk"))


# --- prove and verify -------------------------------------------------------------------------------------------------


def test_proof_is_verified_by_who_has_only_the_key(sawyer, proof, nobody, vkey, demo_home):
    done = sawyer(
        "ledger", "verify", "--proof", proof, "--key", vkey, "--home", nobody, program=_without(*NETWORK_PACKAGES)
    )
    assert done.code == 0, done.err
    assert done.out.startswith("OK: entry 3 is in the tree")
    shown = sawyer("ledger", "show", "3", "--home", demo_home)
    told = {line.split()[0]: line.split()[1] for line in done.out.splitlines()[1:]}
    assert told["leaf"] in shown.out
    assert told["kind"] in shown.out
    assert not nobody.exists()


def test_proof_on_stdout_is_the_file(sawyer, proof, demo_home):
    done = sawyer("ledger", "prove", "3", "--home", demo_home)
    assert done.out == proof.read_text()
    assert InclusionProof.decode(done.out).index == 2


def test_verify_trusts_the_key_that_the_home_pinned(sawyer, proof, demo_home):
    done = sawyer("ledger", "verify", "--proof", proof, "--home", demo_home, "--json")
    assert done.code == 0
    assert (done.json["ok"], done.json["seq"]) == (True, 3)
    assert done.json["checkpoint"]["size"] >= 3


def test_verify_without_a_key_asks_for_one(sawyer, proof, nobody):
    done = sawyer("ledger", "verify", "--proof", proof, "--home", nobody)
    assert done.code == 2
    assert "--key VKEY" in done.err


def test_verify_takes_several_keys(sawyer, proof, nobody, vkey, keys):
    other = Verifier(vkey.split("+")[0], keys["mallory"].public).vkey
    assert sawyer("ledger", "verify", "--proof", proof, "--key", other, "--key", vkey, "--home", nobody).code == 0
    done = sawyer("ledger", "verify", "--proof", proof, "--key", other, "--home", nobody)
    assert done.code == 3
    assert "no valid signature" in done.err


@pytest.mark.parametrize("key", ["x", "a+00000000+AAAA", "a+0123abcd+BQ=="])
def test_text_that_is_no_key_is_the_caller_s_mistake(sawyer, proof, nobody, key):
    done = sawyer("ledger", "verify", "--proof", proof, "--key", key, "--home", nobody)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_changed_proof_is_found_wrong_and_says_why(sawyer, proof, nobody, vkey):
    good = InclusionProof.decode(proof.read_text())
    forged = InclusionProof(good.index, good.hashes, good.entry.replace(b'"seq":3', b'"seq":4'), good.note)
    proof.write_text(forged.encode())
    done = sawyer("ledger", "verify", "--proof", proof, "--key", vkey, "--home", nobody)
    assert done.code == 3
    assert "these bytes are not entry 3" in done.err
    done = sawyer("ledger", "verify", "--proof", proof, "--key", vkey, "--home", nobody, "--json")
    assert (done.code, done.json["ok"]) == (3, False)
    assert "these bytes are not entry 3" in done.json["why"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"nonsense\n\nmore", b"c2sp.org/tlog-proof@v1\n"])
def test_file_that_is_no_proof_is_found_wrong(sawyer, tmp_path, nobody, vkey, content):
    (tmp_path / "file").write_bytes(content)
    done = sawyer("ledger", "verify", "--proof", tmp_path / "file", "--key", vkey, "--home", nobody)
    assert done.code == 3
    assert "Traceback" not in done.err


def test_missing_file_is_the_caller_s_mistake(sawyer, tmp_path, nobody, vkey):
    done = sawyer("ledger", "verify", "--proof", tmp_path / "none", "--key", vkey, "--home", nobody)
    assert done.code == 2


def test_proof_in_a_tree_that_somebody_held_verifies_against_it(sawyer, demo_home, tmp_path, nobody, vkey):
    held, file = tmp_path / "held.txt", tmp_path / "proof"
    sizes = sawyer("ledger", "consistency", "1", "3", "-o", tmp_path / "c", "--home", demo_home)
    assert sizes.code == 0, sizes.err
    held.write_text(ConsistencyProof.decode((tmp_path / "c").read_text()).note)
    done = sawyer("ledger", "prove", "2", "--checkpoint", held, "-o", file, "--home", demo_home)
    assert done.code == 0, done.err
    verify = ("ledger", "verify", "--proof", file, "--checkpoint", held, "--key", vkey, "--home", nobody)
    assert "in the tree of the checkpoint you hold" in sawyer(*verify).out
    newest = sawyer("ledger", "prove", "2", "--home", demo_home)
    file.write_text(newest.out)
    done = sawyer(*verify)
    assert done.code == 3
    assert "prove SEQ --checkpoint FILE" in done.err


def test_split_view_is_told_with_both_roots(sawyer, demo_home, proof, tmp_path, vkey):
    size = Checkpoint.read(InclusionProof.decode(proof.read_text()).note).size
    held = tmp_path / "held.txt"
    held.write_text(signed(demo_home, size, bytes(32)))
    verify = ("ledger", "verify", "--proof", proof, "--checkpoint", held, "--home", demo_home)
    extend = ("ledger", "consistency", held, "--home", demo_home)
    for done in (sawyer(*verify), sawyer(*extend)):
        assert done.code == 3
        assert f"two trees of {size} entries are signed" in done.err


@pytest.mark.parametrize("seq", ["0", "-1", "999999", "x"])
def test_entry_that_is_not_there_is_the_caller_s_mistake(sawyer, demo_home, seq):
    done = sawyer("ledger", "prove", "--home", demo_home, "--", seq)
    assert done.code == 2
    assert "Traceback" not in done.err


def test_nothing_is_proven_from_a_book_with_a_changed_byte(sawyer, demo_home, tmp_path, vkey):
    book = tmp_path / "book.sqlite"
    shutil.copy(demo_home / "book.sqlite", book)
    with sqlite3.connect(book) as connection:
        connection.execute(
            "UPDATE stored_events SET state = CAST(replace(state, ?, ?) AS BLOB) WHERE topic = 'tokens.granted.v1'",
            (b'"tokens":500000', b'"tokens":900000'),
        )
    connection.close()
    for command in (("prove", "1"), ("checkpoint",), ("consistency", "1")):
        done = sawyer("ledger", *command, "--book", book, "--key", vkey)
        assert done.code == 3
        assert "one of them was changed" in done.err


# --- files that are read and written ----------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".sqlite-shm"
    }


def test_proof_takes_the_place_of_a_proof_and_of_nothing_else(sawyer, home, tmp_path):
    note, other, fifo = tmp_path / "note", tmp_path / "precious.txt", tmp_path / "fifo"
    assert sawyer("ledger", "checkpoint", "-o", note, "--home", home).code == 0
    other.write_text("precious")
    os.mkfifo(fifo)
    link = tmp_path / "link"
    link.symlink_to(home / "views.sqlite")
    prove = ("ledger", "prove", "1", "--checkpoint", note, "--home", home, "-o")
    before = everything(home), note.read_text()
    for target in (
        note, other, fifo, "/dev/zero", tmp_path, "", tmp_path / "typo" / "proof", link, home / "book.sqlite",
        home / "views.sqlite", home / "book.sqlite-wal", home / "network.json", home / "checkpoint.txt",
    ):  # fmt: skip
        done = sawyer(*prove, target)
        assert (done.code, "hint:" in done.err) == (2, True), target
    assert ((everything(home), note.read_text()), other.read_text()) == (before, "precious")
    proof = tmp_path / "proof"
    for _ in range(2):
        assert sawyer(*prove, proof).code == 0
    assert InclusionProof.decode(proof.read_text()).index == 0
    done = sawyer("ledger", "checkpoint", "-o", proof, "--home", home)
    assert (done.code, "is something else" in done.err) == (2, True)
    done = sawyer("ledger", "consistency", "1", "-o", proof, "--home", home)
    assert (done.code, "is something else" in done.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_proof_of_a_copy_never_takes_the_place_of_the_copy(sawyer, demo_home, tmp_path, vkey):
    copy = tmp_path / "copy.ndjson"
    assert sawyer("ledger", "export", "--format", "ndjson", "-o", copy, "--home", demo_home).code == 0
    before = copy.read_bytes()
    for command in (("prove", "1"), ("checkpoint",), ("consistency", "1")):
        done = sawyer("ledger", *command, "--book", copy, "--key", vkey, "-o", copy)
        assert (done.code, "is what this command reads" in done.err) == (2, True)
    assert copy.read_bytes() == before


def test_file_without_an_end_or_a_writer_is_refused_in_time(sawyer, demo_home, tmp_path, proof, vkey):
    fifo, huge = tmp_path / "fifo", tmp_path / "huge"
    os.mkfifo(fifo)
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for path in (fifo, huge, "/dev/zero"):
        for done in (
            sawyer("ledger", "verify", "--proof", path, "--key", vkey),
            sawyer("ledger", "verify", "--proof", proof, "--checkpoint", path, "--key", vkey),
            sawyer("ledger", "consistency", path, "--home", demo_home),
            sawyer("ledger", "replay", "--checkpoint", path, "--home", demo_home),
        ):
            assert (done.code, "hint:" in done.err) == (2, True), done.err
            assert "not a regular file" in done.err or "larger than" in done.err


def test_what_does_not_verify_says_what_to_do(sawyer, demo_home, tmp_path, proof, nobody, vkey, keys):
    stranger = Verifier(vkey.split("+")[0], keys["mallory"].public).vkey
    elsewhere = Verifier("another-net/00000000", keys["mallory"].public).vkey
    note, text = tmp_path / "note", tmp_path / "text"
    sawyer("ledger", "checkpoint", "-o", note, "--home", demo_home)
    text.write_text("no checkpoint")
    verify = ("ledger", "verify", "--proof", proof, "--home", nobody, "--key")
    assert sawyer("ledger", "consistency", "1", "-o", tmp_path / "c", "--home", demo_home).code == 0
    for done in (
        sawyer(*verify, stranger), sawyer(*verify, elsewhere), sawyer(*verify, vkey, "--checkpoint", text),
        sawyer("ledger", "consistency", note, "--proof", tmp_path / "c", "--key", vkey, "--home", nobody),
        sawyer("ledger", "prove", "1", "--checkpoint", text, "--home", demo_home),
    ):  # fmt: skip
        assert (done.code, "hint:" in done.err) == (3, True), done.err


def test_folder_that_is_named_as_a_book_is_told_from_a_missing_one(sawyer, tmp_path):
    done = sawyer("ledger", "prove", "1", "--book", tmp_path)
    assert (done.code, "it is a folder" in done.err, "--home" in done.err) == (2, True, True)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoint_prints_the_signed_note_and_nothing_else(sawyer, demo_home, tmp_path, vkey):
    done = sawyer("ledger", "checkpoint", "--home", demo_home)
    found = Checkpoint.verify(done.out, Verifier.parse(vkey))
    sawyer("ledger", "checkpoint", "-o", tmp_path / "note", "--home", demo_home)
    assert (tmp_path / "note").read_text() == done.out
    told = sawyer("ledger", "checkpoint", "--json", "--home", demo_home).json
    assert (told["size"], told["root"], told["note"]) == (found.size, found.root.hex(), done.out)
    assert len(told["witnesses"]) == len(signatures_of(done.out)) - 1  # the demo's nodes may have been in time


def test_checkpoint_of_a_copy_without_a_key_says_it_is_not_anchored(sawyer, demo_home, vkey):
    book = demo_home / "book.sqlite"
    assert "not anchored" in sawyer("ledger", "checkpoint", "--book", book).err
    assert "not anchored" not in sawyer("ledger", "checkpoint", "--book", book, "--key", vkey).err


@pytest.fixture
def home(demo_home: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    copy = tmp_path / "home"
    shutil.copytree(demo_home, copy, ignore=shutil.ignore_patterns("models"))
    return copy


def cosigned(sawyer, home: Path, node: str = "node-1") -> tuple[str, str]:
    """The newest checkpoint with a node's line, as the bookkeeper keeps it, and the node's key as a witness."""
    (home / "cosigned.txt").unlink(missing_ok=True)  # the demo's nodes may have been in time
    note = sawyer("ledger", "checkpoint", "--home", home).out
    found, key = Checkpoint.read(note), load(home / "keys" / "nodes" / f"{node}.nk")
    made = merge(note, [cosign(found, witness_name(found.origin, node), key, AT_S)])
    (home / "cosigned.txt").write_text(made)
    return made, node_cosigner(found.origin, node, key.id).vkey


def test_checkpoint_comes_with_its_witnesses(sawyer, home, tmp_path, nobody, vkey):
    made, witness = cosigned(sawyer, home)
    assert sawyer("ledger", "checkpoint", "--home", home).out == made
    told = sawyer("ledger", "checkpoint", "--cosigned", "--home", home, "--json").json
    assert [(each["key"], each["time_s"]) for each in told["witnesses"]] == [(witness, AT_S)]
    note, file = tmp_path / "note", tmp_path / "proof"
    note.write_text(made)
    sawyer("ledger", "prove", "1", "--checkpoint", note, "-o", file, "--home", home)
    verify = ("ledger", "verify", "--proof", file, "--key", vkey, "--home", nobody, "--witness")
    done = sawyer(*verify, witness)
    assert done.code == 0, done.err
    assert "witness" in done.out
    assert "2023-11-14T22:13:20Z" in done.out


def test_proof_without_the_witness_that_was_asked_for_is_found_wrong(sawyer, home, proof, nobody, vkey):
    _, witness = cosigned(sawyer, home)
    done = sawyer("ledger", "verify", "--proof", proof, "--key", vkey, "--home", nobody, "--witness", witness)
    assert done.code == 3
    assert "did not cosign" in done.err


def test_forged_line_of_a_witness_is_found_wrong(sawyer, home, keys):
    made, _ = cosigned(sawyer, home)
    found = Checkpoint.read(made)
    name = witness_name(found.origin, "node-1")
    real = node_cosigner(found.origin, "node-1", load(home / "keys" / "nodes" / "node-1.nk").id)
    forged = cosign(found, name, keys["mallory"], AT_S)
    (home / "cosigned.txt").write_text(merge(made, [type(forged)(name, real.key_hash, forged.signature)]))
    done = sawyer("ledger", "checkpoint", "--cosigned", "--home", home)
    assert done.code == 3
    assert "cosignature" in done.err


def test_damaged_file_of_cosignatures_hides_no_checkpoint(sawyer, home):
    (home / "cosigned.txt").write_text("x")
    assert sawyer("ledger", "checkpoint", "--home", home).code == 0
    assert sawyer("ledger", "checkpoint", "--cosigned", "--home", home).code == 3


def test_nothing_cosigned_yet_says_so(sawyer, home):
    (home / "cosigned.txt").unlink(missing_ok=True)
    done = sawyer("ledger", "checkpoint", "--cosigned", "--home", home)
    assert done.code == 2
    assert "Nodes cosign while they serve" in done.err


# --- consistency ------------------------------------------------------------------------------------------------------


def test_held_checkpoint_is_shown_to_be_in_the_book_and_its_proof_holds_offline(
    sawyer, demo_home, tmp_path, nobody, vkey
):
    assert sawyer("ledger", "consistency", "1", "2", "-o", tmp_path / "c", "--home", demo_home).code == 0
    held, proof = tmp_path / "held.txt", tmp_path / "proof"
    held.write_text(ConsistencyProof.decode((tmp_path / "c").read_text()).note)
    done = sawyer("ledger", "consistency", held, "-o", proof, "--home", demo_home)
    assert done.code == 0, done.err
    assert "has all of the 2 before it" in done.out
    offline = ("ledger", "consistency", held, "--proof", proof, "--key", vkey, "--home", nobody, "--json")
    assert sawyer(*offline).json["old"]["size"] == 2
    proof.write_text(proof.read_text().replace("old 2", "old 1"))
    done = sawyer(*offline[:-1])
    assert done.code == 3
    assert "you hold size 2" in done.err


def test_book_that_was_cut_is_found_against_the_checkpoint_that_is_held(sawyer, demo_home, tmp_path, vkey):
    held, book = tmp_path / "held.txt", tmp_path / "book.sqlite"
    sawyer("ledger", "checkpoint", "-o", held, "--home", demo_home)
    shutil.copy(demo_home / "book.sqlite", book)
    with sqlite3.connect(book) as connection:
        connection.execute("DELETE FROM stored_events WHERE rowid > (SELECT MAX(rowid) - 2 FROM stored_events)")
    connection.close()
    done = sawyer("ledger", "consistency", held, "--book", book, "--key", vkey)
    assert done.code == 3
    assert "was signed" in done.err
    done = sawyer("ledger", "consistency", held, "--book", book, "--key", vkey, "--json")
    assert (done.code, done.json["ok"], done.json["code"]) == (3, False, "book_corrupt")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("0",), "no size 0"),
        (("999999",), "no size 999999"),
        (("2", "1"), "no size 2 before 1"),
        (("1", "999999"), "no checkpoint of exactly 999999"),
        (("nowhere.txt",), "cannot read nowhere.txt"),
        (("\u00b2",), "cannot read"),
        (("9" * 5000,), "cannot read"),
        (("1", "--proof", "x"), "a size alone proves nothing"),
        (("1", "--proof", "x", "-o", "y"), "--proof verifies without a book"),
    ],
)
def test_sizes_and_files_that_make_no_sense_are_the_caller_s_mistake(sawyer, demo_home, arguments, said):
    done = sawyer("ledger", "consistency", *arguments, "--home", demo_home)
    assert done.code == 2
    assert said in done.err
