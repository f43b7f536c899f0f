"""Notes that are sealed in the book, read where the subject's key is at hand."""

from __future__ import annotations

from sawyer.home import Home
from sawyer.schemas.events import Sealed


def read_note(home: Home, sealed: Sealed) -> str | None:
    """What a note says; None if its subject's key is not in this home, or is destroyed. Raises VerificationError if the
    key here does not open it."""
    from sawyer.identity.sealing import SubjectKey, open_sealed

    key = SubjectKey.load(home.subject_key(sealed.subject))
    return None if key is None else open_sealed(sealed, key)
