"""Signed tree heads in the public forms: C2SP tlog-checkpoint in a C2SP signed-note. Not the tree itself.

https://c2sp.org/tlog-checkpoint, https://c2sp.org/signed-note: other log tools read and verify what this writes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from sawyer.errors import BadSignature, NotCanonical, VerificationError
from sawyer.identity.keys import Key, encode_public, public_bytes, verify

_ED25519: Final = b"\x01"
_SEPARATOR: Final = "\n\n"
_SIGNED_BY: Final = "\N{EM DASH} "


@dataclass(frozen=True, slots=True)
class Verifier:
    """Who may sign checkpoints of one log. `name` is the log's origin: the network id."""

    name: str
    public: bytes

    @classmethod
    def parse(cls, vkey: str) -> Verifier:
        """From `name+hash+key`. Raises VerificationError for anything else."""
        try:
            name, key_hash, encoded = vkey.split("+", 2)
            raw = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error) as error:
            raise VerificationError(
                f"not a verifier key: {vkey[:120]!r}", hint="It looks like name+0123abcd+Base64Text."
            ) from error
        if raw[:1] != _ED25519 or len(raw) != 33:
            raise VerificationError(f"the verifier key of {name!r} is not an Ed25519 key")
        verifier = cls(name, raw[1:])
        if verifier.vkey != vkey:
            raise VerificationError(
                f"the verifier key of {name!r} has hash {key_hash}, expected {verifier.key_hash.hex()}"
            )
        public_bytes(encode_public("U", verifier.public))  # refuses points that libsodium refuses
        return verifier

    @property
    def key_hash(self) -> bytes:
        """4 bytes: SHA-256(name, newline, algorithm, public key)."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    @property
    def vkey(self) -> str:
        encoded = base64.b64encode(_ED25519 + self.public).decode("ascii")
        return f"{self.name}+{self.key_hash.hex()}+{encoded}"

    @property
    def key_id(self) -> str:
        """The same key in NKEY form: what the ledger's own entries are attested with."""
        return encode_public("U", self.public)


def vkey_of(network: str, key: Key) -> str:
    """The verifier key under which this private key signs checkpoints of this network."""
    return Verifier(network, key.public).vkey


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The first `size` entries of the log `origin` have this Merkle root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def sign(self, key: Key) -> str:
        """The signed note."""
        body = self._body()
        signature = Verifier(self.origin, key.public).key_hash + key.sign(body.encode())
        return f"{body}\n{_SIGNED_BY}{self.origin} {base64.b64encode(signature).decode('ascii')}\n"

    @classmethod
    def read(cls, note: str) -> Checkpoint:
        """What a note says, whoever signed it. Raises NotCanonical for other forms of the text."""
        body, found, _ = note.partition(_SEPARATOR)
        lines = body.split("\n")
        if not found or len(lines) != 3 or not note.endswith("\n"):
            raise NotCanonical("not a signed checkpoint: expected origin, size and root, then signatures")
        return cls(lines[0], _size(lines[1]), _root(lines[2]))

    @classmethod
    def verify(cls, note: str, verifier: Verifier) -> Checkpoint:
        """The checkpoint in a note that this verifier signed. Raises NotCanonical for other forms of the text,
        BadSignature if nobody but strangers signed. Extra signatures (of witnesses) are allowed and not judged."""
        checkpoint = cls.read(note)
        if checkpoint.origin != verifier.name:
            raise BadSignature(f"a checkpoint of {checkpoint.origin[:120]!r}, expected one of {verifier.name!r}")
        if not checkpoint._signed_by(note.partition(_SEPARATOR)[2], verifier):
            raise BadSignature(f"no valid signature of {verifier.name} on the checkpoint of size {checkpoint.size}")
        return checkpoint

    def _body(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode('ascii')}\n"

    def _signed_by(self, signatures: str, verifier: Verifier) -> bool:
        for line in signatures[:-1].split("\n"):
            marker, name, encoded = [*line.split(" ", 2), "", ""][:3]
            if marker != _SIGNED_BY.strip():
                raise NotCanonical("not a signature line of a signed note")
            raw = _decode(encoded)
            if name == verifier.name and raw[:4] == verifier.key_hash:
                return verify(verifier.public, self._body().encode(), raw[4:])
        return False


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
