"""That the book has a model's weights: who is believed, and who is not though the operator's key signed."""

from __future__ import annotations

import msgspec
import pytest

from sawyer.errors import UnknownModel, VerificationError
from sawyer.home import Pin
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.publication import check_publication
from sawyer.ledger.succession import trusted

MANIFEST = "ab" * 32
STOLEN = "cd" * 32


def verifiers_of(book: Book, now_ms: int) -> tuple[Verifier, ...]:
    """The keys that somebody trusts who pinned the network at its founding."""
    told = book.network(now_ms)
    return trusted(Pin(told.network, told.ledger_vkey, told.operator), told.successors)[1]


def publication(scene, manifest: str, format: str = "f32"):
    return msgspec.structs.replace(scene.model, manifest=manifest, format=format)


def test_publication_in_the_book_is_proven(book, scene):
    proof = book.publication("austen", MANIFEST).proof

    check_publication(proof, verifiers_of(book, scene.now_ms), "austen", MANIFEST)


def test_publication_stays_proven_when_operator_and_weights_have_changed(book, scene):
    changes = [scene.add_key("operator", "operator-2"), scene.revoke("operator", by="operator-2", name="operator")]
    newer = scene.say(publication(scene, "ef" * 32, "q4"), "operator-2", "operator")
    assert [reply.error for reply in book.commit([*changes, newer], scene.now_ms)] == [None] * 3

    check_publication(book.publication("austen", MANIFEST).proof, verifiers_of(book, scene.now_ms), "austen", MANIFEST)


def test_publication_signed_with_a_stolen_key_is_not_proven_in_a_tree_of_the_thief(book, scene, tmp_path, keys):
    trusting = verifiers_of(book, scene.now_ms)
    thief = type(scene)({**scene.keys, "ledger": keys["alice"]}, network=scene.network)
    forged = thief.open(tmp_path / "forged")
    forged.commit([*thief.opening(), thief.say(publication(scene, STOLEN), "operator")], scene.now_ms)
    proof = forged.publication("austen", STOLEN).proof
    forged.close()

    with pytest.raises(VerificationError):
        check_publication(proof, trusting, "austen", STOLEN)


@pytest.mark.parametrize(("model", "manifest"), [("austen", STOLEN), ("dbrx", MANIFEST)])
def test_proof_of_other_weights_is_refused(book, scene, model, manifest):
    proof = book.publication("austen", MANIFEST).proof

    with pytest.raises(VerificationError, match="does not publish"):
        check_publication(proof, verifiers_of(book, scene.now_ms), model, manifest)


@pytest.mark.parametrize("text", ["", "c2sp.org/tlog-proof@v1\n", "{}"])
def test_text_that_is_no_proof_is_refused(book, scene, text):
    with pytest.raises(VerificationError, match="no proof that the book has austen"):
        check_publication(text, verifiers_of(book, scene.now_ms), "austen", MANIFEST)


@pytest.mark.parametrize(("model", "manifest"), [("austen", STOLEN), ("dbrx", MANIFEST)])
def test_weights_that_were_never_published_have_no_proof(book, model, manifest):
    with pytest.raises(UnknownModel, match="never published"):
        book.publication(model, manifest)
