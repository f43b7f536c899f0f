"""Signed tree heads in the public forms: C2SP tlog-checkpoint in a C2SP signed-note. Not the tree itself.

https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note: other log tools read and verify what this writes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sawyer.errors import BadSignature, NotCanonical, RetiredKey, VerificationError
from sawyer.identity.keys import Key, encode_public, public_bytes, verify

MAX_SIGNATURES: Final = 100
"""Lines on one note, as in Go's golang.org/x/mod/sumdb/note. The specification asks for at least 16."""
MAX_SIZE: Final = 10**16 - 1
"""Entries, as a checkpoint can say it."""
_ED25519: Final = b"\x01"
_KEY_HASH_BYTES: Final = 4
_SEPARATOR: Final = "\n\n"
_SIGNED_BY: Final = "\N{EM DASH} "


@dataclass(frozen=True, slots=True)
class Verifier:
    """Who may sign checkpoints of one log. `name` is the log's origin: the network id. `first` to `last` are the sizes
    at which it may: the ledger's keys follow one another (succession.py), and one that was replaced signs no longer."""

    name: str
    public: bytes
    first: int = 0
    last: int = MAX_SIZE

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """From `name+hash+key`: of any size. Raises VerificationError for anything else."""
        return cls(*parse_vkey(vkey, _ED25519))

    @property
    def key_hash(self) -> bytes:
        """4 bytes: SHA-256(name, newline, algorithm, public key)."""
        return key_hash(self.name, _ED25519, self.public)

    @property
    def vkey(self) -> str:
        return vkey_text(self.name, _ED25519, self.public)

    @property
    def key_id(self) -> str:
        """The same key in NKEY form: what the ledger's own entries are attested with."""
        return encode_public("U", self.public)


def vkey_of(network: str, key: Key) -> str:
    """The verifier key under which this private key signs checkpoints of this network."""
    return Verifier(network, key.public).vkey


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line of a note: who says to have signed, and the bytes after the key hash."""

    name: str
    key_hash: bytes
    signature: bytes

    @classmethod
    def parse(cls, line: str) -> NoteSignature:
        """From a line without its newline. Raises NotCanonical."""
        name, found, encoded = line.removeprefix(_SIGNED_BY).partition(" ")
        raw = _decode(encoded)
        if not line.startswith(_SIGNED_BY) or not found or not _is_name(name) or len(raw) <= _KEY_HASH_BYTES:
            raise NotCanonical(f"not a signature line of a signed note: {line[:120]!r}")
        return cls(name, raw[:_KEY_HASH_BYTES], raw[_KEY_HASH_BYTES:])

    @property
    def line(self) -> str:
        """With its newline."""
        return f"{_SIGNED_BY}{self.name} {base64.b64encode(self.key_hash + self.signature).decode('ascii')}\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The first `size` entries of the log `origin` have this Merkle root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def sign(self, key: Key) -> str:
        """The signed note."""
        hashed = Verifier(self.origin, key.public).key_hash
        return f"{self.body}\n{NoteSignature(self.origin, hashed, key.sign(self.body.encode())).line}"

    @classmethod
    def read(cls, note: str) -> Checkpoint:
        """What a note says, whoever signed it. Raises NotCanonical for other forms of the text."""
        body, found, _ = note.partition(_SEPARATOR)
        lines = body.split("\n")
        if not found or len(lines) != 3 or not note.endswith("\n"):
            raise NotCanonical("not a signed checkpoint: expected origin, size and root, then signatures")
        return cls(lines[0], _size(lines[1]), _root(lines[2]))

    @classmethod
    def verify(cls, note: str, *verifiers: Verifier) -> Checkpoint:
        """The checkpoint in a note that one of these verifiers signed: a log has several keys one after the other.
        Raises NotCanonical for other forms of the text, BadSignature if nobody but strangers signed, or if a line that
        names one of these keys is wrong, RetiredKey if they may not sign this size. Signatures of others (of witnesses)
        are allowed and not judged."""
        checkpoint = cls.read(note)
        own = [verifier for verifier in verifiers if verifier.name == checkpoint.origin]
        if not own:
            names = ", ".join(sorted({verifier.name for verifier in verifiers}))
            raise BadSignature(f"a checkpoint of {checkpoint.origin[:120]!r}, expected one of {names!r}")
        lines = [each for each in signatures_of(note) if each.name == checkpoint.origin]
        signed = [(by, each) for each in lines for by in own if by.key_hash == each.key_hash]
        if not signed or not all(verify(by.public, checkpoint.body.encode(), each.signature) for by, each in signed):
            raise _unsigned(checkpoint, lines, known=bool(signed))
        if not any(by.first <= checkpoint.size <= by.last for by, _ in signed):
            raise _retired(checkpoint, [by for by, _ in signed])
        return checkpoint

    @property
    def body(self) -> str:
        """The text that is signed, with its final newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"


def _unsigned(checkpoint: Checkpoint, lines: list[NoteSignature], *, known: bool) -> BadSignature:
    problem = f"no valid signature of {checkpoint.origin} on the checkpoint of size {checkpoint.size}"
    if known or not lines:
        return BadSignature(problem)
    hashes = ", ".join(each.key_hash.hex() for each in lines)
    return BadSignature(
        f"{problem}: it names only a key of this ledger that is not known here (key hash {hashes})",
        hint="If the ledger's key was rotated: give --key of the new one, or run it in a home that was told of it. "
        "`sawyer keys ls` in its operator's home shows the new one, `sawyer doctor` tells your own home. If it was not "
        "rotated, somebody made this up.",
    )


def _retired(checkpoint: Checkpoint, signers: list[Verifier]) -> RetiredKey:
    terms = ", ".join(f"{by.key_id} signs from {by.first}" + f" to {by.last}" * (by.last < MAX_SIZE) for by in signers)
    return RetiredKey(f"a checkpoint of {checkpoint.size} entries, signed by a key out of its time: {terms}")


def signatures_of(note: str) -> tuple[NoteSignature, ...]:
    """Every signature line of a note, at least one. Raises NotCanonical."""
    text = note.partition(_SEPARATOR)[2]
    if not text.endswith("\n"):
        raise NotCanonical("not a signed note: no line of a signature")
    lines = text[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise NotCanonical(f"a note has at most {MAX_SIGNATURES} signatures, got {len(lines)}")
    return tuple(map(NoteSignature.parse, lines))


def with_signatures(note: str, added: Iterable[NoteSignature]) -> str:
    """The same note with more lines at the end."""
    return note + "".join(each.line for each in added)


# --- verifier keys: `name+hash+key`, of checkpoints here and of cosignatures in witness.py ----------------------------


def key_hash(name: str, algorithm: bytes, public: bytes) -> bytes:
    """The 4 bytes by which a signature line names a key."""
    return hashlib.sha256(name.encode() + b"\n" + algorithm + public).digest()[:_KEY_HASH_BYTES]


def vkey_text(name: str, algorithm: bytes, public: bytes) -> str:
    """`name+hash+key`."""
    encoded = base64.b64encode(algorithm + public).decode("ascii")
    return f"{name}+{key_hash(name, algorithm, public).hex()}+{encoded}"


def parse_vkey(vkey: str, algorithm: bytes) -> tuple[str, bytes]:
    """Name and public key. Raises VerificationError for what is no verifier key of this algorithm, and for points that
    libsodium refuses (small order, not canonical)."""
    try:
        name, hashed, encoded = vkey.split("+", 2)
        raw = base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise VerificationError(
            f"not a verifier key: {vkey[:120]!r}", hint="It looks like name+0123abcd+Base64Text."
        ) from error
    if raw[:1] != algorithm or len(raw) != 33 or not _is_name(name):
        raise VerificationError(f"the verifier key of {name[:120]!r} is not an Ed25519 key for this")
    if vkey_text(name, algorithm, raw[1:]) != vkey:
        expected = key_hash(name, algorithm, raw[1:]).hex()
        raise VerificationError(f"the verifier key of {name!r} has hash {hashed}, expected {expected}")
    public_bytes(encode_public("U", raw[1:]))
    return name, raw[1:]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and name.isprintable() and not any(map(str.isspace, name))


def _size(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 16 or (text[0] == "0" and text != "0"):
        raise NotCanonical(f"not a tree size: {text[:20]!r}")
    return int(text)


def _root(text: str) -> bytes:
    raw = _decode(text)
    if len(raw) != 32:
        raise NotCanonical(f"a root has 32 bytes, got {len(raw)}")
    return raw


def _decode(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise NotCanonical("not base64") from error
    if base64.b64encode(raw).decode("ascii") != text:
        raise NotCanonical("not the canonical base64 of its bytes")
    return raw
