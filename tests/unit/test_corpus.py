"""The frozen corpus (tests/corpus/v1): every file parses, is written again to the byte, verifies, and comes to what was
recorded beside it. For ever: see tests/corpus/README.md."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from corpus import cast, make
from corpus.recording import recorded

from sawyer.ledger.checkpoint import Checkpoint, Verifier, signatures_of
from sawyer.ledger.commands import claims
from sawyer.ledger.entry import StoredRow, decode_entry
from sawyer.ledger.proof import ConsistencyProof, InclusionProof
from sawyer.ledger.replay import replay
from sawyer.ledger.source_ndjson import NdjsonSource
from sawyer.ledger.witness import Cosigner, witnessed
from sawyer.schemas.base import encode_canonical, parse_as
from sawyer.schemas.events import ENTRY_VERSION, KIND_OF, KINDS, EntryFrame, InferenceRequested, WorkReceipted
from sawyer.schemas.signed import Signed

BOOKS = ("example", "book", "future")
STATEMENTS = {"inference.requested.v1": InferenceRequested, "work.receipted.v1": WorkReceipted}
NEVER = (
    "A published version is never edited. If a book may hold these bytes, mend the code so that it reads them. Only "
    "before release 0.1.0: make the corpus anew, on purpose (tests/corpus/README.md)."
)
VERIFIERS = tuple(map(Verifier.parse, cast.VKEYS))


def text(name: str) -> str:
    return (make.PLACE / name).read_text(encoding="utf-8")


def rows(name: str) -> list[StoredRow]:
    return list(NdjsonSource(make.PLACE / f"{name}.ndjson").rows())


def entries() -> list[Path]:
    return sorted((make.PLACE / "events").iterdir())


def test_files_are_those_of_the_list_to_the_byte() -> None:
    listed = dict(reversed(line.split("  ")) for line in text(make.SUMS).splitlines())
    found = {
        path.relative_to(make.PLACE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in make.PLACE.rglob("*")
        if path.is_file() and path.name != make.SUMS
    }
    assert found == listed, NEVER


def test_code_still_makes_the_corpus() -> None:
    made = make.files()
    differing = sorted(name for name, content in made.items() if (make.PLACE / name).read_bytes() != content)
    assert differing == [], NEVER


def test_every_kind_and_statement_has_its_example() -> None:
    assert {path.name.removesuffix(".json") for path in entries()} == set(KINDS), "a kind without an example"
    statements = {path.name.removesuffix(".json") for path in (make.PLACE / "statements").iterdir()}
    assert statements == set(STATEMENTS) == set(KIND_OF.values()) - set(KINDS)
    assert {json.loads(path.read_bytes())["v"] for path in entries()} == set(range(1, ENTRY_VERSION + 1))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_example_is_read_verified_and_written_again(kind: str) -> None:
    raw = (make.PLACE / "events" / f"{kind}.json").read_bytes().removesuffix(b"\n")
    entry = decode_entry(raw)
    assert entry.kind == kind
    assert entry.body is not None
    assert EntryFrame.parse(raw).canonical() == raw
    assert entry.body.canonical() == entry.statement
    assert encode_canonical(json.loads(raw)["decided"]) == entry.decided.canonical()
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        claim.check()


@pytest.mark.parametrize("kind", sorted(STATEMENTS))
def test_statement_is_read_verified_and_written_again(kind: str) -> None:
    raw = (make.PLACE / "statements" / f"{kind}.json").read_bytes().removesuffix(b"\n")
    statement = parse_as(Signed[STATEMENTS[kind]], raw)  # type: ignore[misc]
    assert statement.canonical() == raw
    assert statement.signature.type == kind


@pytest.mark.parametrize("name", BOOKS)
def test_book_comes_to_what_was_recorded(name: str) -> None:
    assert recorded(rows(name)) == json.loads(text("recorded.json"))[name], NEVER


@pytest.mark.parametrize("name", BOOKS)
def test_book_replays_against_its_first_keys(name: str) -> None:
    report = replay(NdjsonSource(make.PLACE / f"{name}.ndjson"), key=cast.VKEYS[0], operator=cast.OPERATOR)
    expected: dict[str, Any] = json.loads(text("recorded.json"))[name]
    assert report.problem is None
    assert (report.anchored, report.operator_anchored) == (True, True)
    assert (report.entries, report.checkpoints, report.root) == (
        expected["entries"], expected["checkpoints"], expected["root"],
    )  # fmt: skip
    assert report.digests == expected["views"], NEVER


def test_book_shows_what_may_happen_to_keys_and_tokens() -> None:
    told = [json.loads(row.state) for row in rows("book") if not row.is_checkpoint]
    bodies = [(entry["kind"], entry["body"]) for entry in told]
    roles = {body["role"] for kind, body in bodies if kind in ("key.added.v1", "key.rotated.v1")}
    assert roles == {"router", "ledger", "operator", "node", "account"}
    assert {body["since_ms"] > 0 for kind, body in bodies if kind == "key.revoked.v1"} == {True, False}
    assert sum(kind == "snapshot.taken.v1" for kind, _ in bodies) == 2
    assert {name for entry in told for name in entry["decided"]} == {
        "held", "debited", "released", "expired", "credits",
    }  # fmt: skip
    steps = {credit["sla_milli"] for entry in told for credit in entry["decided"].get("credits", ())}
    assert steps == {1000, 900, 500}


def test_checkpoints_are_by_the_ledgers_keys_one_after_the_other() -> None:
    notes = [row.state.decode() for row in rows("book") if row.is_checkpoint]
    signers = [[_signed_by(note, verifier) for verifier in VERIFIERS].index(True) for note in notes]
    assert signers == sorted(signers)
    assert set(signers) == {0, 1}


def test_unknown_kind_is_verified_and_counted() -> None:
    report = replay(NdjsonSource(make.PLACE / "future.ndjson"), key=cast.VKEYS[0])
    assert report.unknown_kinds == {make.UNKNOWN_KIND: 1}


def test_proofs_hold_for_who_trusts_the_ledgers_keys() -> None:
    inclusion = InclusionProof.decode(text(f"entry-{make.PROVEN_SEQ}.tlog-proof"))
    old = Checkpoint.verify(text(f"checkpoint-{make.OLD_SIZE}.txt"), VERIFIERS[0])
    consistency = ConsistencyProof.decode(text(f"consistency-{make.OLD_SIZE}.txt"))
    newest = Checkpoint.verify(text("checkpoint.txt"), VERIFIERS[1])
    assert inclusion.check(VERIFIERS, newest).entry.kind == "inference.completed.v1"
    assert consistency.check(old, VERIFIERS) == newest
    witness = Cosigner.parse(json.loads(text("keys.json"))["witness"])
    assert witnessed(text("cosigned.txt"), [witness]) == {witness: make.COSIGNED_S}


def _signed_by(note: str, verifier: Verifier) -> bool:
    return verifier.key_hash in {signature.key_hash for signature in signatures_of(note)}
