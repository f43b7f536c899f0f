"""Checkpoints: the public test vector of signed notes, what we write, and every way to change it."""

from __future__ import annotations

import base64
from contextlib import nullcontext

import pytest

from sawyer.errors import BadSignature, RetiredKey, VerificationError
from sawyer.identity.keys import verify
from sawyer.ledger.checkpoint import MAX_SIGNATURES, MAX_SIZE, Checkpoint, Verifier, signatures_of, vkey_of

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


def test_checkpoint_that_one_of_several_trusted_keys_signed_verifies(note: str, verifier: Verifier, keys) -> None:
    others = [Verifier.parse(vkey_of(verifier.name, keys[name])) for name in ("router", "mallory")]
    assert Checkpoint.verify(note, others[0], verifier, others[1]).size == 7
    with pytest.raises(BadSignature, match="no valid signature"):
        Checkpoint.verify(note, *others)


def test_checkpoint_with_a_wrong_line_of_a_trusted_key_is_refused(note: str, verifier: Verifier, keys) -> None:
    """As c2sp.org/signed-note advises: who names a known key and did not sign with it is not ignored."""
    later = keys["router"]
    forged = Checkpoint(verifier.name, 8, bytes(32)).sign(later).rpartition("\n\n")[2]
    with pytest.raises(BadSignature):
        Checkpoint.verify(note + forged, verifier, Verifier(verifier.name, later.public))
    assert Checkpoint.verify(note + forged, verifier).size == 7


def test_no_line_after_the_right_one_escapes_the_form(note: str, verifier: Verifier) -> None:
    name = "\N{EM DASH} w"
    for line in (
        "x",
        f"{name}",
        f"{name} ",
        f"{name} AAAA",
        f"{name} AAAAAAA",
        "- w AAAAAAAA",
        "\N{EM DASH} a+b AAAAAAA=",
    ):
        with pytest.raises(VerificationError):
            Checkpoint.verify(f"{note}{line}\n", verifier)


def test_signatures_on_a_note_are_bounded(note: str, verifier: Verifier) -> None:
    line = signatures_of(note)[0].line
    assert Checkpoint.verify(note + line * (MAX_SIGNATURES - 1), verifier).size == 7
    with pytest.raises(VerificationError, match="at most 100 signatures"):
        Checkpoint.verify(note + line * MAX_SIGNATURES, verifier)


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


@pytest.mark.parametrize("size", [3, 9, 10, 30])
def test_each_key_of_a_ledger_signs_the_sizes_of_its_time_and_no_other(keys, scene, size: int) -> None:
    terms = (
        Verifier(scene.network, keys["ledger"].public, last=9),
        Verifier(scene.network, keys["router"].public, first=10),
    )
    said = Checkpoint(scene.network, size, bytes(32))
    for key, may in ((keys["ledger"], size <= 9), (keys["router"], size > 9)):
        if may:
            assert Checkpoint.verify(said.sign(key), *terms) == said
            continue
        with pytest.raises(RetiredKey, match=f"a checkpoint of {size} entries, signed by a key out of its time"):
            Checkpoint.verify(said.sign(key), *terms)


def test_key_that_came_back_to_its_office_signs_in_both_its_times(keys, scene) -> None:
    terms = [
        Verifier(scene.network, keys[name].public, first, last)
        for name, first, last in (("ledger", 0, 9), ("router", 10, 19), ("ledger", 20, MAX_SIZE))
    ]
    for size, may in ((9, True), (15, False), (25, True)):
        said = Checkpoint(scene.network, size, bytes(32))
        with nullcontext() if may else pytest.raises(RetiredKey):
            assert Checkpoint.verify(said.sign(keys["ledger"]), *terms) == said


def test_checkpoint_by_a_key_of_this_log_that_nobody_told_says_where_to_get_it(scene, keys, verifier: Verifier) -> None:
    with pytest.raises(BadSignature, match="only a key of this ledger that is not known here") as caught:
        Checkpoint.verify(Checkpoint(scene.network, 9, bytes(32)).sign(keys["router"]), verifier)
    assert "If the ledger's key was rotated: give --key of the new one" in caught.value.hint


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
