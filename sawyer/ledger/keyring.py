"""Which keys a book names for checkpoints and cosignatures, by statements that carry their own signatures. Whether they
could stand where they stand in the book is replay's question."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sawyer.errors import VerificationError
from sawyer.identity.keys import public_bytes
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.proof import BookTree, check_signatures
from sawyer.ledger.witness import Cosigner, witness_name
from sawyer.projections.fold import Entry
from sawyer.schemas.events import KeyAdded, KeyRotated, NetworkFounded, NodeRegistered, Successor
from sawyer.schemas.signed import Signed

OFFICES: Final = (OPERATOR_NAME, LEDGER_NAME)
KEY_KINDS: Final = ("network.founded.v1", "key.added.v1")
"""Where the operator says who signs checkpoints."""
NODE_KINDS: Final = ("node.registered.v1", "key.rotated.v1")
"""Where nodes say what they sign with."""


def founder(entries: Iterable[bytes]) -> tuple[Verifier, str] | None:
    """The ledger's first key and the operator, as the founding entry names them, whoever wrote it."""
    for entry in map(decode_entry, entries):
        if isinstance(entry.body, NetworkFounded):
            return Verifier.parse(entry.body.ledger_vkey), entry.body.operator
    return None


def successors(book: BookTree) -> tuple[Successor, ...]:
    """The later keys of operator and ledger that a book names, which must have been asked for its KEY_KINDS. Whether
    they are trusted is succession.py's word; what no checkpoint covers yet is left out."""
    found = []
    for entry in map(decode_entry, book.all_of(KEY_KINDS)):
        if isinstance(entry.body, KeyAdded) and entry.body.role in OFFICES and entry.seq in book.covered:
            added = Signed(body=entry.body, signature=entry.signer)
            found.append(Successor(added=added, covered=book.covered[entry.seq]))
    return tuple(found)


def cosigners(network: str, entries: Iterable[bytes]) -> list[Cosigner]:
    """Every node that is registered in these entries as a witness, with each key that it has had."""
    found = []
    for entry in map(decode_entry, entries):
        body = entry.body
        if isinstance(body, NodeRegistered) and _holds(entry):
            found.append(node_cosigner(network, body.node, body.key))
        elif isinstance(body, KeyRotated) and body.role == "node" and _holds(entry):
            found.append(node_cosigner(network, body.name, body.key))
    return found


def node_cosigner(network: str, node: str, key_id: str) -> Cosigner:
    """A node as a witness. Raises BadSignature for a key that is none."""
    return Cosigner(witness_name(network, node), public_bytes(key_id))


def _holds(entry: Entry) -> bool:
    try:
        check_signatures(entry)
    except VerificationError:
        return False
    return True
