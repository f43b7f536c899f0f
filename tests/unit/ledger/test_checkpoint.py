"""Checkpoints: the public test vector of signed notes, what we write, and every way to change it."""

from __future__ import annotations

import base64

import pytest

from sawyer.errors import BadSignature, VerificationError
from sawyer.identity.keys import verify
from sawyer.ledger.checkpoint import Checkpoint, Verifier, vkey_of

# From the documentation of golang.org/x/mod/sumdb/note, which c2sp.org/signed-note specifies.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="


@pytest.fixture
def note(scene) -> str:
    return Checkpoint(scene.network, 7, bytes(range(32))).sign(scene.keys["ledger"])


@pytest.fixture
def verifier(scene) -> Verifier:
    return Verifier.parse(scene.vkey)


def test_verifier_key_of_the_go_implementation_is_read_and_verifies_its_note() -> None:
    verifier = Verifier.parse(GO_VKEY)
    raw = base64.b64decode(GO_SIGNATURE)
    assert verifier.vkey == GO_VKEY
    assert raw[:4] == verifier.key_hash
    assert verify(verifier.public, GO_TEXT.encode(), raw[4:])


def test_signed_checkpoint_has_the_public_form(note: str, scene) -> None:
    root = base64.b64encode(bytes(range(32))).decode()
    body, signature = note.split("\n\n")
    assert body == f"{scene.network}\n7\n{root}"
    assert signature.startswith(f"\u2014 {scene.network} ")
    assert signature.endswith("\n")


def test_verify_returns_what_was_signed(note: str, verifier: Verifier, scene) -> None:
    assert Checkpoint.verify(note, verifier) == Checkpoint(scene.network, 7, bytes(range(32)))


def test_checkpoint_with_a_witness_signature_beside_ours_verifies(note: str, verifier: Verifier) -> None:
    witness = f"\u2014 witness.example/w1 {base64.b64encode(bytes(68)).decode()}\n"
    head, signatures = note.split("\n\n")
    assert Checkpoint.verify(f"{head}\n\n{witness}{signatures}", verifier).size == 7


def test_every_changed_byte_of_a_checkpoint_is_refused(note: str, verifier: Verifier) -> None:
    raw = note.encode()
    undetected = []
    for at in range(len(raw)):
        for bit in range(8):
            changed = raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :]
            try:
                Checkpoint.verify(changed.decode(errors="replace"), verifier)
            except VerificationError:
                continue
            undetected.append((at, bit))
    assert undetected == []


def test_checkpoint_of_another_log_is_refused(scene, verifier: Verifier) -> None:
    other = Checkpoint("sawyer-net/ffffffff", 7, bytes(32)).sign(scene.keys["ledger"])
    with pytest.raises(BadSignature, match="expected one of"):
        Checkpoint.verify(other, verifier)


def test_checkpoint_signed_by_another_key_is_refused(scene, verifier: Verifier) -> None:
    forged = Checkpoint(scene.network, 7, bytes(32)).sign(scene.keys["mallory"])
    with pytest.raises(BadSignature, match="no valid signature"):
        Checkpoint.verify(forged, verifier)


@pytest.mark.parametrize("text", ["", "\n\n", "a\n1\nb\n", "x\n01\nAA==\n\n", "x\n-1\nAA==\n\n", "x\n\u0661\nAA==\n\n"])
def test_text_that_is_no_checkpoint_is_refused(text: str, verifier: Verifier, scene) -> None:
    with pytest.raises(VerificationError):
        Checkpoint.verify(text.replace("x", scene.network), verifier)


def test_verifier_key_round_trips(scene, verifier: Verifier) -> None:
    assert verifier.vkey == scene.vkey == vkey_of(scene.network, scene.keys["ledger"])
    assert verifier.key_id == scene.keys["ledger"].id


def test_verifier_key_with_wrong_hash_is_refused(scene) -> None:
    name, _, key = scene.vkey.split("+", 2)
    with pytest.raises(VerificationError, match="hash 00000000"):
        Verifier.parse(f"{name}+00000000+{key}")


@pytest.mark.parametrize("vkey", ["", "name", "name+00000000", "name+00000000+!!!!", "name+00000000+AA=="])
def test_text_that_is_no_verifier_key_is_refused(vkey: str) -> None:
    with pytest.raises(VerificationError):
        Verifier.parse(vkey)


def test_verifier_key_of_small_order_is_refused(scene) -> None:
    with pytest.raises(VerificationError):
        Verifier.parse(Verifier(scene.network, bytes([1]) + bytes(31)).vkey)
