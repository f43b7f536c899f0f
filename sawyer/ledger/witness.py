"""Witnesses: who else saw a checkpoint, and that the log only grew. The pure part, of a node and of the ledger.

The form is C2SP tlog-cosignature, timestamped Ed25519 (https://c2sp.org/tlog-cosignature): more lines on the same note.
What a witness holds between two answers is its keeper's business (sawyer/node/witness.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sawyer.errors import BadSignature
from sawyer.identity.keys import Key, encode_public, verify
from sawyer.ledger.checkpoint import (
    Checkpoint,
    NoteSignature,
    Verifier,
    key_hash,
    parse_vkey,
    signatures_of,
    vkey_text,
    with_signatures,
)
from sawyer.ledger.proof import check_extends

_COSIGNATURE: Final = b"\x04"
_TIME_BYTES: Final = 8
_SIGNATURE_BYTES: Final = 64
_MAX_TIME_S: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Cosigner:
    """A witness of one log and its public key. The name goes into the lines, but not under the signature: a key is one
    witness's."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, vkey: str) -> Cosigner:
        """From `name+hash+key`. Raises VerificationError for anything else, a ledger's key among it."""
        return cls(*parse_vkey(vkey, _COSIGNATURE))

    @property
    def key_hash(self) -> bytes:
        return key_hash(self.name, _COSIGNATURE, self.public)

    @property
    def vkey(self) -> str:
        return vkey_text(self.name, _COSIGNATURE, self.public)

    @property
    def key_id(self) -> str:
        """The same key in NKEY form."""
        return encode_public("U", self.public)


def witness_name(network: str, node: str) -> str:
    """What a node of a network cosigns as."""
    return f"{network}/witness/{node}"


@dataclass(frozen=True, slots=True)
class Witness:
    """One witness of one log. `held` is the newest checkpoint that it cosigned, None before the first."""

    name: str
    key: Key
    verifiers: tuple[Verifier, ...]
    held: Checkpoint | None = None

    @property
    def cosigner(self) -> Cosigner:
        """Its public half."""
        return Cosigner(self.name, self.key.public)

    def cosign(self, note: str, hashes: Sequence[bytes], at_s: int) -> tuple[NoteSignature, Witness]:
        """The line for a checkpoint that extends the one it holds, and the witness that holds the new one: keep it
        before the line is shown. `at_s`: POSIX time. The first checkpoint is taken as it is, if the ledger signed it.
        Raises NotCanonical, BadSignature (another log, or nobody it knows), SplitView, RolledBack, NotExtended."""
        offered = Checkpoint.verify(note, *self.verifiers)
        if self.held is not None:
            check_extends(self.held, offered, hashes)
        return cosign(offered, self.name, self.key, at_s), replace(self, held=offered)


def cosign(checkpoint: Checkpoint, name: str, key: Key, at_s: int) -> NoteSignature:
    """The line that says: as of this POSIX time, this is the largest tree of this log that `name` has seen."""
    signature = key.sign(_message(checkpoint, at_s))
    stamped = at_s.to_bytes(_TIME_BYTES, "big") + signature
    return NoteSignature(name, Cosigner(name, key.public).key_hash, stamped)


def check_cosignature(signature: NoteSignature, checkpoint: Checkpoint, cosigner: Cosigner) -> int:
    """When this witness cosigned this checkpoint, POSIX time. Raises BadSignature if it did not."""
    stamped = signature.signature
    at_s = int.from_bytes(stamped[:_TIME_BYTES], "big")
    names = (signature.name, signature.key_hash) == (cosigner.name, cosigner.key_hash)
    if not names or len(stamped) != _TIME_BYTES + _SIGNATURE_BYTES or at_s > _MAX_TIME_S:
        raise BadSignature(f"not a cosignature of {cosigner.name} with the key {cosigner.key_id}")
    if not verify(cosigner.public, _message(checkpoint, at_s), stamped[_TIME_BYTES:]):
        raise BadSignature(f"the cosignature of {cosigner.name} is not over the checkpoint of size {checkpoint.size}")
    return at_s


def accept(line: str, checkpoint: Checkpoint, cosigner: Cosigner) -> NoteSignature:
    """A witness's line (with or without its newline), if it holds. Raises NotCanonical, BadSignature."""
    signature = NoteSignature.parse(line.removesuffix("\n"))
    check_cosignature(signature, checkpoint, cosigner)
    return signature


def merge(note: str, signatures: Iterable[NoteSignature]) -> str:
    """The note with these lines too. A witness has one line, whatever key it has now: a newer one takes the place of
    its older one."""
    found = {each.name: each for each in (*signatures_of(note), *signatures)}
    body = note.partition("\n\n")[0]
    return with_signatures(f"{body}\n\n", found.values())


def witnessed(note: str, cosigners: Iterable[Cosigner]) -> dict[Cosigner, int]:
    """Which of these witnesses cosigned this note, and the POSIX time of each. Lines of others are not judged. Raises
    BadSignature if a line that names one of them is wrong."""
    checkpoint = Checkpoint.read(note)
    known = {(cosigner.name, cosigner.key_hash): cosigner for cosigner in cosigners}
    lines = [(known.get((each.name, each.key_hash)), each) for each in signatures_of(note)]
    return {by: check_cosignature(line, checkpoint, by) for by, line in lines if by is not None}


def one_each(seen: Mapping[Cosigner, int]) -> dict[Cosigner, int]:
    """The newest line of each witness: who cosigned with an older key too is one witness all the same."""
    newest = {by.name: by for by in sorted(seen, key=seen.__getitem__)}
    return {by: seen[by] for by in newest.values()}


def _message(checkpoint: Checkpoint, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{checkpoint.body}".encode()
