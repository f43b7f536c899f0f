"""That the book has a model's weights: what whoever pulls them believes, and nothing less.

The operator's signature alone is not enough: a stolen key signs, too, also after it was replaced or revoked. The ledger
took an entry only from who was the operator then, and signs a tree of all that it took.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sawyer.errors import NotCanonical, VerificationError
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.proof import InclusionProof
from sawyer.schemas.events import ModelPublished

PROOF_FILE: Final = "published.tlog-proof"
"""Beside the manifest of a pulled model."""
_HINT: Final = "Nothing of it is used. Somebody stands in for your network, or its book was changed: ask its operator."


def check_publication(proof: str, verifiers: Sequence[Verifier], model: str, manifest: str) -> None:
    """Raises VerificationError unless one of these keys signed a tree with the publication of these weights in it."""
    try:
        proven = InclusionProof.decode(proof).check(verifiers)
    except NotCanonical as error:
        raise VerificationError(f"no proof that the book has {model}: {error.message}", hint=_HINT) from error
    body = proven.entry.body
    if not isinstance(body, ModelPublished) or (body.model, body.manifest) != (model, manifest):
        raise VerificationError(
            f"entry {proven.entry.seq} of the book is proven, and does not publish {model} as {manifest[:16]}",
            hint=_HINT,
        )
