"""Books that lie, by somebody who holds every key: an entry changed, then signed, chained and checkpointed anew.
Nothing is wrong with their bytes; only rules tell them from true ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from corpus import cast

from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint, Verifier, signatures_of
from sawyer.ledger.decide import place_of
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.schemas.base import encode_canonical
from sawyer.schemas.events import KINDS
from sawyer.schemas.signed import pre_image

Json = dict[str, Any]
Change = Callable[[list[Json]], None]
"""Changes the entries of a book; the first is number 0."""
_BY_ID = {key.id: key for key in cast.KEYS.values()}


def forged(rows: list[StoredRow], change: Change) -> list[StoredRow]:
    """The book with this change, in the same commits; a commit that has lost its entries has no checkpoint."""
    entries = [json.loads(row.state) for row in rows if not row.is_checkpoint]
    sizes = [Checkpoint.read(row.state.decode()).size for row in rows if row.is_checkpoint]
    signers = [_signer(row.state.decode()) for row in rows if row.is_checkpoint]
    commits = [entries[first:end] for first, end in zip([0, *sizes], sizes, strict=False)]
    kept = {id(entry): number for number, commit in enumerate(commits) for entry in commit}
    change(entries)
    told: list[list[Json]] = [[] for _ in commits]
    place = 0
    for entry in entries:
        place = kept.get(id(entry), place)
        told[place].append(entry)
    return list(_written(told, signers))


def place_anew(entry: Json) -> None:
    """Stream and idempotency key as its body has them now."""
    body = KINDS[entry["kind"]].parse(encode_canonical(entry["body"]))
    entry["stream"], entry["idem"] = place_of(body)


def sign_anew(entry: Json) -> None:
    """Every signature in an entry, by the keys that it names."""
    body = entry["body"]
    order = body.get("request")
    if isinstance(order, dict):
        _sign(order["signature"], "inference.requested.v1", order["body"])
    for receipt in body.get("receipts", ()):
        _sign(receipt["signature"], "work.receipted.v1", receipt["body"])
    for attestation in entry["attestations"]:
        _sign(attestation, entry["kind"], body)


def _sign(signature: Json, kind: str, body: Json) -> None:
    key = _BY_ID[signature["key_id"]]
    signature["type"] = kind
    signature["sig"] = base64.b64encode(key.sign(pre_image(kind, encode_canonical(body)))).decode()


def _written(commits: list[list[Json]], signers: list[Key]) -> Any:
    tree, prev, checkpoints = Tree(), "0" * 64, 0
    for commit, signer in zip(commits, signers, strict=True):
        for entry in commit:
            entry["prev"] = prev
            raw = encode_canonical(entry)
            leaf = leaf_hash(raw)
            tree.append(leaf)
            prev = leaf.hex()
            yield StoredRow(entry["stream"], entry["version"], entry["kind"], raw)
        if commit:
            checkpoints += 1
            note = Checkpoint(cast.NETWORK, tree.size, tree.root()).sign(signer)
            yield StoredRow("log:checkpoints", checkpoints, "checkpoint", note.encode())


def _signer(note: str) -> Key:
    (line,) = signatures_of(note)
    keys = {Verifier(cast.NETWORK, key.public).key_hash: key for key in cast.KEYS.values()}
    return keys[line.key_hash]
