"""Sealing what is personal: who holds the subject's key can read it; once the key is destroyed, nobody can.

XSalsa20-Poly1305 (libsodium secretbox). The nonce is a keyed hash of the text and of what it is about: sealing the same
again gives the same bytes, so that saying it twice is a repeat, and no nonce ever serves two texts. How long a text is
shows.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from sawyer import durable
from sawyer.errors import NotAuthorised, RefusedError, UsageError, VerificationError
from sawyer.schemas.events import Sealed

MAX_NOTE_BYTES: Final = 4096
"""A text in UTF-8. With the 16 bytes that prove it, in base64, it fits into a `Sealed`."""
ERASED: Final = ".erased"
"""Ends the name of the file that says that this subject's key is destroyed for good."""
_NONCE_OF: Final = b"sawyer note v1"


@dataclass(frozen=True, repr=False)
class SubjectKey:
    """32 secret bytes. Never printed."""

    raw: bytes

    def __repr__(self) -> str:
        return "SubjectKey(...)"

    @classmethod
    def load(cls, path: Path) -> SubjectKey | None:
        """The key in a file, None if there is none. Raises NotAuthorised for a file that others may read, UsageError
        for one that holds no key."""
        try:
            mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="ascii").strip()
            raw = bytes.fromhex(text)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _no_key(path) from error
        if mode & 0o077:
            raise NotAuthorised(f"key file {path} has mode {mode:04o}, expected 0600", hint=f"chmod 600 {path}")
        if len(raw) != SecretBox.KEY_SIZE:
            raise _no_key(path)
        return cls(raw)

    @classmethod
    def load_or_create(cls, path: Path) -> SubjectKey:
        """The key in the file, made (mode 0600) if there is none. Raises RefusedError if it was destroyed for good."""
        if is_erased(path):
            raise _erased(path)
        held = cls.load(path)
        if held is not None:
            return held
        made = cls(secrets.token_bytes(SecretBox.KEY_SIZE))
        try:
            durable.create(path, f"{made.raw.hex()}\n".encode("ascii"))
        except FileExistsError:
            return cls.load_or_create(path)
        if is_erased(path):  # meanwhile
            durable.destroy(path)
            raise _erased(path)
        return made


def seal(text: str, subject: str, key: SubjectKey, about: str = "") -> Sealed:
    """A text about a subject, readable with its key alone. `about`: what it is a note on (a grant); the same text about
    two things looks different. Raises UsageError for a text over MAX_NOTE_BYTES."""
    plain = text.encode()
    if len(plain) > MAX_NOTE_BYTES:
        raise UsageError(f"a note is at most {MAX_NOTE_BYTES} bytes, got {len(plain)}", hint="Make it shorter.")
    said = len(about.encode()).to_bytes(8, "big") + about.encode() + plain
    nonce = hashlib.blake2b(said, digest_size=SecretBox.NONCE_SIZE, key=key.raw, person=_NONCE_OF).digest()
    box = SecretBox(key.raw).encrypt(plain, nonce).ciphertext
    return Sealed(subject=subject, nonce=nonce.hex(), box=base64.b64encode(box).decode("ascii"))


def open_sealed(sealed: Sealed, key: SubjectKey) -> str:
    """The text. Raises VerificationError if this key does not open it, or if it was altered."""
    try:
        box = base64.b64decode(sealed.box, validate=True)
        return SecretBox(key.raw).decrypt(box, bytes.fromhex(sealed.nonce)).decode()
    except (CryptoError, ValueError, TypeError) as error:
        raise VerificationError(
            f"the key of {sealed.subject} does not open what is sealed for it, or it was altered",
            hint="Use the home in which it was sealed; `sawyer ledger replay` shows whether the book holds.",
        ) from error


def is_erased(path: Path) -> bool:
    """True once the key of this file is, or is about to be, destroyed for good."""
    return _mark(path).exists()


def destroy(path: Path) -> None:
    """Destroy the key in this file for good: none is ever made there again. May be repeated; a crash in between leaves
    the mark, which says that it must be. Raises OSError."""
    if not is_erased(path):
        durable.replace(_mark(path), b"")
    durable.destroy(path)


def _mark(path: Path) -> Path:
    return path.with_suffix(ERASED)


def _erased(path: Path) -> RefusedError:
    return RefusedError(f"{path.stem} is erased: nothing more may be sealed for it", hint="Leave the note out.")


def _no_key(path: Path) -> UsageError:
    return UsageError(f"{path} is not a subject's key", hint="Restore it: what was sealed with it needs it.")
