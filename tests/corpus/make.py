"""Makes the files of the frozen corpus (v1/) and the made parts of docs/ledger-format.md. From tests/:

    ../.venv/bin/python -m corpus.make

A published version is never edited: after release 0.1.0 this may add files, and change none (README.md).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final

from corpus import cast, document, story
from corpus.recording import folded, recorded

from sawyer.identity.envelope import attest
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow, decode_entry
from sawyer.ledger.export import ndjson_line
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.ledger.proof import ConsistencyProof, InclusionProof
from sawyer.ledger.witness import Cosigner, cosign, merge, witness_name
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import InferenceCompleted, TokensReserved

PLACE: Final = Path(__file__).parent / "v1"
SUMS: Final = "SHA256SUMS"
PROVEN_SEQ: Final = 10
"""The entry of the long story whose inclusion is proven: a completed request."""
OLD_SIZE: Final = 7
COSIGNED_S: Final = 1_772_409_600
UNKNOWN_KIND: Final = "node.praised.v1"


def files() -> dict[str, bytes]:
    """Path in v1/ -> content, of every file but the list of their hashes."""
    example, book = story.example(), story.whole()
    future = [*example, *_future(example)]
    made = {f"{name}.ndjson": b"".join(map(ndjson_line, rows)) for name, rows in
            (("example", example), ("book", book), ("future", future))}  # fmt: skip
    made |= _examples(book) | _proofs(book)
    told = {name: recorded(rows) for name, rows in (("example", example), ("book", book), ("future", future))}
    made["recorded.json"] = _text(told)
    made["keys.json"] = _text(_keys())
    return made


def sums(made: dict[str, bytes]) -> bytes:
    """What `sha256sum --check` reads."""
    return b"".join(
        b"%s  %s\n" % (hashlib.sha256(made[name]).hexdigest().encode(), name.encode()) for name in sorted(made)
    )


def _future(example: list[StoredRow]) -> list[StoredRow]:
    """An entry of a kind that no version of this house writes, and its checkpoint, after the worked example."""
    state = folded(example)
    body = {
        "network": cast.NETWORK,
        "node": "node-a",
        "stars": 5,
        "liked": ["speed", {"why": "né en été ☀", "sure": True}],
    }
    statement = encode_canonical(body)
    signature = attest(statement, UNKNOWN_KIND, "operator", cast.KEYS["operator"])
    frame = {
        "v": 1, "log": cast.NETWORK, "seq": state.tree.size + 1, "prev": state.audit.head.leaf,
        "ts_ms": state.audit.head.ts_ms + 1, "kind": UNKNOWN_KIND, "stream": "praise:node-a", "version": 1,
        "idem": "praise:node-a", "body": body, "decided": {}, "attestations": [signature.plain()],
    }  # fmt: skip
    raw = encode_canonical(frame)
    state.apply(decode_entry(raw))
    note = Checkpoint(cast.NETWORK, state.tree.size, state.tree.root()).sign(cast.KEYS["ledger"]).encode()
    number = 1 + sum(row.is_checkpoint for row in example)
    return [
        StoredRow("praise:node-a", 1, UNKNOWN_KIND, raw),
        StoredRow(CHECKPOINT_STREAM, number, CHECKPOINT_TOPIC, note),
    ]


def _examples(book: list[StoredRow]) -> dict[str, bytes]:
    """The first entry of each kind, and the first of each statement that stands inside entries."""
    made: dict[str, bytes] = {}
    for row in book:
        if row.is_checkpoint:
            continue
        made.setdefault(f"events/{row.topic}.json", row.state + b"\n")
        body = decode_entry(row.state).body
        if isinstance(body, TokensReserved):
            made.setdefault("statements/inference.requested.v1.json", body.request.canonical() + b"\n")
        elif isinstance(body, InferenceCompleted):
            made.setdefault("statements/work.receipted.v1.json", body.receipts[0].canonical() + b"\n")
    return made


def _proofs(book: list[StoredRow]) -> dict[str, bytes]:
    """The newest checkpoint, as it is and with a witness's line; that an entry is in its tree; that it grew."""
    entries = [row.state for row in book if not row.is_checkpoint]
    leaves, tree = [leaf_hash(raw) for raw in entries], Tree()
    for leaf in leaves:
        tree.append(leaf)
    note = book[-1].state.decode()
    checkpoint = Checkpoint.read(note)

    def of(first: int, count: int) -> list[bytes]:
        return leaves[first : first + count]

    index = PROVEN_SEQ - 1
    inclusion = InclusionProof(index, tuple(tree.inclusion(index, tree.size, of)), entries[index], note)
    consistency = ConsistencyProof(OLD_SIZE, tuple(tree.consistency(OLD_SIZE, tree.size, of)), note)
    line = cosign(checkpoint, witness_name(cast.NETWORK, "node-b"), cast.KEYS["node-b"], COSIGNED_S)
    old = next(row.state for row in book if row.is_checkpoint and Checkpoint.read(row.state.decode()).size == OLD_SIZE)
    return {
        "checkpoint.txt": note.encode(),
        f"checkpoint-{OLD_SIZE}.txt": old,
        "cosigned.txt": merge(note, [line]).encode(),
        f"entry-{PROVEN_SEQ}.tlog-proof": inclusion.encode().encode(),
        f"consistency-{OLD_SIZE}.txt": consistency.encode().encode(),
    }


def _keys() -> dict[str, Any]:
    """What a reader trusts: public keys alone."""
    return {
        "network": cast.NETWORK,
        "operator": cast.OPERATOR,
        "ledger": list(cast.VKEYS),
        "witness": Cosigner(witness_name(cast.NETWORK, "node-b"), cast.KEYS["node-b"].public).vkey,
        "participants": {name: key.id for name, key in cast.KEYS.items()},
    }


def _text(value: Any) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def main() -> int:
    """Write everything, and say what changed."""
    made = files()
    made[SUMS] = sums(made)
    changed = 0
    for name, content in sorted(made.items()):
        path = PLACE / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            _tell(f"wrote {path.relative_to(PLACE.parent)}")
            changed += 1
    if document.write():
        _tell(f"wrote {document.PAGE.name}")
        changed += 1
    _tell(f"{len(made)} files, {changed} changed")
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
