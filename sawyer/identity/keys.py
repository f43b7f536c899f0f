"""One Ed25519 identity a participant, written as NATS writes its keys (NKEY: prefix, key, CRC-16, base32).

Seeds live in files of mode 0600 and nowhere else; a file others can read is refused. Format: nats-io/nkeys.
"""

from __future__ import annotations

import base64
import binascii
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from sawyer import durable
from sawyer.errors import BadSignature, NotAuthorised, UsageError
from sawyer.ids import KeyId

KeyKind = Literal["U", "O", "A"]
"""U: a participant (node, router, client, ledger). O: the operator of a network. A: an account of NATS, or what signs
certificates for one; it signs nothing else."""

SIGNATURE_BYTES: Final = 64
_PREFIX: Final[dict[KeyKind, int]] = {"U": 20 << 3, "O": 14 << 3, "A": 0}
_SEED_PREFIX: Final = 18 << 3


@dataclass(frozen=True, repr=False)
class Key:
    """A private key. `id` is its public half in NKEY form. Never printed: repr shows the public half only."""

    kind: KeyKind
    _signing: SigningKey

    def __repr__(self) -> str:
        return f"Key({self.id})"

    @classmethod
    def generate(cls, kind: KeyKind = "U") -> Key:
        return cls(kind, SigningKey.generate())

    @classmethod
    def from_raw(cls, raw: bytes, kind: KeyKind = "U") -> Key:
        """From 32 secret bytes; for tests that need the same key twice."""
        return cls(kind, SigningKey(raw))

    @classmethod
    def from_seed(cls, seed: str) -> Key:
        """Raises UsageError for text that is not an NKEY seed."""
        raw = _decode(seed, "seed")
        if len(raw) != 34 or raw[0] & 0xF8 != _SEED_PREFIX:
            raise UsageError("not an NKEY seed", hint="A seed starts with S and has 58 characters.")
        prefix = ((raw[0] & 7) << 5) | (raw[1] >> 3)
        for kind, value in _PREFIX.items():
            if value == prefix:
                return cls(kind, SigningKey(raw[2:]))
        raise UsageError("this NKEY seed is of a kind that Sawyer does not use")

    @classmethod
    def from_file(cls, path: Path, *, create: bool = False) -> Key:
        """The key in a seed file; with `create` it is made there, mode 0600, if there is none. Raises what `load`
        does."""
        return load_or_create(path) if create else load(path)

    @property
    def id(self) -> KeyId:
        return encode_public(self.kind, self.public)

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return bytes(self._signing.verify_key)

    @property
    def seed(self) -> str:
        prefix = _PREFIX[self.kind]
        return _encode(bytes([_SEED_PREFIX | (prefix >> 5), (prefix & 31) << 3]) + bytes(self._signing))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature."""
        return self._signing.sign(message).signature


def encode_public(kind: KeyKind, raw: bytes) -> KeyId:
    return KeyId(_encode(bytes([_PREFIX[kind]]) + raw))


@lru_cache(maxsize=65_536)
def public_bytes(key_id: str, kinds: str = "UO") -> bytes:
    """The 32 bytes of a public key in NKEY form, of one of these kinds. Raises BadSignature if it is none, or a point
    libsodium refuses (small order, not canonical): such a key could make one signature fit many messages."""
    try:
        raw = _decode(key_id, "public key")
    except UsageError as error:
        raise BadSignature(f"{key_id[:60]!r} is not a public key: {error.message}") from error
    if len(raw) != 33 or raw[0] not in [_PREFIX[kind] for kind in _PREFIX if kind in kinds]:
        raise BadSignature(f"{key_id[:60]!r} is not a public key of a kind that Sawyer uses")
    if not crypto_core_ed25519_is_valid_point(raw[1:]):
        raise BadSignature(f"{key_id} is not a valid Ed25519 point")
    return raw[1:]


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """True if the 64-byte signature over message is by this 32-byte key. Releases the GIL."""
    return len(signature) == SIGNATURE_BYTES and verify_signed(public, signature + message)


def verify_signed(public: bytes, signed: bytes) -> bool:
    """`verify` for a signature that its message follows, as libsodium takes them."""
    try:
        crypto_sign_open(signed, public)
    except (BadSignatureError, ValueError):
        return False
    return True


def load(path: Path) -> Key:
    """The key in a seed file. Refuses a file that others may read."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise UsageError(f"no key file {path}", hint="Check the path, or create the key first.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a key file", hint="A key file is one line: the NKEY seed.") from error
    if mode & 0o077:
        raise NotAuthorised(f"key file {path} has mode {mode:04o}, expected 0600", hint=f"chmod 600 {path}")
    return Key.from_seed(text)


def load_or_create(path: Path, kind: KeyKind = "U") -> Key:
    """The key in the file, made (mode 0600, parents 0700) if there is none. Two processes get the same key."""
    if path.exists():
        return load(path)
    key = Key.generate(kind)
    try:
        durable.create(path, (key.seed + "\n").encode("ascii"))
    except FileExistsError:
        return load(path)
    return key


def _encode(payload: bytes) -> str:
    checked = payload + binascii.crc_hqx(payload, 0).to_bytes(2, "little")
    return base64.b32encode(checked).rstrip(b"=").decode("ascii")


def _decode(text: str, what: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"not an NKEY {what}: not base32") from error
    if len(raw) < 3 or binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") != raw[-2:]:
        raise UsageError(f"not an NKEY {what}: checksum does not match")
    return raw[:-2]
