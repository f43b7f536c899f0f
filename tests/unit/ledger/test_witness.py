"""Witnesses: what they cosign, what they refuse, and every way to forge their word."""

from __future__ import annotations

import base64

import pytest

from sawyer.errors import BadSignature, NotCanonical, NotExtended, RolledBack, SplitView, VerificationError
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint, Verifier, signatures_of, vkey_of
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.ledger.witness import (
    Cosigner,
    Witness,
    accept,
    check_cosignature,
    cosign,
    merge,
    witness_name,
    witnessed,
)

NETWORK = "sawyer-net/3f9a1c22"
NAME = witness_name(NETWORK, "node-a")
AT_S = 1_700_000_000

# The example of c2sp.org/tlog-cosignature: only its form can be checked, for the specification gives no key with it.
PUBLIC_EXAMPLE = (
    "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5"
    "nNo0xUe+mbIUBkBIfZ+qnA=="
)
# Both signatures were opened with Go's golang.org/x/mod/sumdb/note (0.7.0, as Debian has it) and the verifier of
# cosignatures in tests/parity/sumdb/main.go; `make parity` does the same with fresh ones.
COSIGNED = (
    "sawyer-net/3f9a1c22\n7\nNWAZGAMChESyMgGKwEf9tWHAnCOnpodsheCLXk1I6fM=\n\n"
    "\u2014 sawyer-net/3f9a1c22 c7eKnwN6cnMRSe8E1DIYw9UEvd57FUAPViKe9GdIRP4tJ6s0MMHVfuHE4AxsrykLXXjn83CGHBiKmgS+U6I6"
    "Fhd6qAI=\n"
    "\u2014 sawyer-net/3f9a1c22/witness/node-a SWEgtQAAAABlU/EAhVF0qTWJrmYZxp2qE0XgxgoB4r5oKq5XbPpJR/okQ+T1nrS0vE6GdjGL"
    "JAWGEbi31XRJZI9LMfxHA7Q5SNdEAA==\n"
)
LEAVES = [leaf_hash(bytes([number])) for number in range(20)]
OTHERS = [*LEAVES[:3], *(leaf_hash(bytes([100 + number])) for number in range(17))]


def grown(leaves: list[bytes], size: int) -> Tree:
    tree = Tree()
    for leaf in leaves[:size]:
        tree.append(leaf)
    return tree


def head(size: int, leaves: list[bytes] = LEAVES) -> Checkpoint:
    return Checkpoint(NETWORK, size, grown(leaves, size).root())


def proof(old: int, new: int, leaves: list[bytes] = LEAVES) -> list[bytes]:
    return grown(leaves, new).consistency(old, new, lambda first, count: leaves[first : first + count])


@pytest.fixture
def ledger(keys: dict[str, Key]) -> Key:
    return keys["ledger"]


@pytest.fixture
def witness(keys: dict[str, Key], ledger: Key) -> Witness:
    """Of node-a; it has seen nothing yet."""
    return Witness(NAME, keys["node-a"], (Verifier.parse(vkey_of(NETWORK, ledger)),))


@pytest.fixture
def seen(witness: Witness, ledger: Key) -> Witness:
    """It has cosigned seven entries."""
    return witness.cosign(head(7).sign(ledger), (), AT_S)[1]


# --- the form ---------------------------------------------------------------------------------------------------------


def test_line_has_the_public_form(witness: Witness, ledger: Key) -> None:
    line, _ = witness.cosign(head(7).sign(ledger), (), AT_S)
    marker, name, encoded = line.line.rstrip("\n").split(" ")
    raw = base64.b64decode(encoded)
    assert (marker, name) == ("\u2014", f"{NETWORK}/witness/node-a")
    assert (raw[:4], raw[4:12], len(raw)) == (witness.cosigner.key_hash, AT_S.to_bytes(8, "big"), 76)


def test_line_of_the_public_example_is_read() -> None:
    signature = accept_form(PUBLIC_EXAMPLE)
    assert signature.name == "witness.example.com/w1"
    assert int.from_bytes(signature.signature[:8], "big") == 1_679_315_147
    assert signature.line == PUBLIC_EXAMPLE + "\n"


def test_note_and_line_are_byte_for_byte_those_that_go_accepted(witness: Witness, ledger: Key) -> None:
    note = head(7).sign(ledger)
    line, _ = witness.cosign(note, (), AT_S)
    assert merge(note, [line]) == COSIGNED


def accept_form(line: str):
    return signatures_of(f"a\n1\nb\n\n{line}\n")[0]


def test_cosigner_key_round_trips_and_is_no_ledger_key(witness: Witness) -> None:
    vkey = witness.cosigner.vkey
    assert Cosigner.parse(vkey) == witness.cosigner
    with pytest.raises(VerificationError):
        Verifier.parse(vkey)
    with pytest.raises(VerificationError):
        Cosigner.parse(Verifier(NAME, witness.key.public).vkey)


def test_cosigner_key_of_small_order_is_refused() -> None:
    with pytest.raises(VerificationError, match="not a valid Ed25519 point"):
        Cosigner.parse(Cosigner(NAME, bytes([1]) + bytes(31)).vkey)


# --- what a witness does ----------------------------------------------------------------------------------------------


def test_witness_cosigns_what_extends_what_it_held(seen: Witness, ledger: Key) -> None:
    held = seen
    for size in (7, 8, 12, 20):
        assert held.held is not None
        hashes = proof(held.held.size, size) if size > held.held.size else []
        line, held = held.cosign(head(size).sign(ledger), hashes, AT_S + size)
        assert held.held == head(size)
        assert check_cosignature(line, head(size), seen.cosigner) == AT_S + size


def test_split_view_is_refused(seen: Witness, ledger: Key) -> None:
    with pytest.raises(SplitView, match="two trees of 7 entries"):
        seen.cosign(head(7, OTHERS).sign(ledger), (), AT_S)


def test_rollback_is_refused(seen: Witness, ledger: Key) -> None:
    with pytest.raises(RolledBack, match="of 6 entries"):
        seen.cosign(head(6).sign(ledger), (), AT_S)


def test_fork_is_refused_whatever_its_proof(seen: Witness, ledger: Key) -> None:
    for hashes in (proof(7, 12, OTHERS), proof(7, 12), [], proof(3, 12)):
        with pytest.raises(NotExtended):
            seen.cosign(head(12, OTHERS).sign(ledger), hashes, AT_S)


def test_extension_without_its_proof_is_refused(seen: Witness, ledger: Key) -> None:
    right = proof(7, 12)
    for hashes in ([], right[:-1], [*right, bytes(32)], right[::-1], proof(6, 12)):
        with pytest.raises(NotExtended):
            seen.cosign(head(12).sign(ledger), hashes, AT_S)


def test_checkpoint_of_another_log_is_refused(witness: Witness, ledger: Key) -> None:
    other = Checkpoint("sawyer-net/ffffffff", 7, bytes(32)).sign(ledger)
    with pytest.raises(BadSignature, match="expected one of"):
        witness.cosign(other, (), AT_S)


def test_checkpoint_that_only_a_stranger_signed_is_refused(witness: Witness, keys: dict[str, Key]) -> None:
    with pytest.raises(BadSignature, match="no valid signature"):
        witness.cosign(head(7).sign(keys["mallory"]), (), AT_S)


# --- what others make of its line -------------------------------------------------------------------------------------


def test_cosigned_note_verifies_for_ledger_and_witness(witness: Witness, ledger: Key) -> None:
    note = head(7).sign(ledger)
    line, _ = witness.cosign(note, (), AT_S)
    cosigned = merge(note, [line])
    assert Checkpoint.verify(cosigned, *witness.verifiers) == head(7)
    assert witnessed(cosigned, [witness.cosigner]) == {witness.cosigner: AT_S}
    assert witnessed(note, [witness.cosigner]) == {}


def test_every_changed_byte_of_a_cosignature_is_refused(witness: Witness, ledger: Key) -> None:
    line = witness.cosign(head(7).sign(ledger), (), AT_S)[0].line.encode()
    undetected = []
    for at in range(len(line) - 1):  # the newline is the line's end, and goes first
        for bit in range(8):
            changed = line[:at] + bytes([line[at] ^ (1 << bit)]) + line[at + 1 :]
            try:
                accept(changed.decode(errors="surrogateescape"), head(7), witness.cosigner)
            except VerificationError:
                continue
            undetected.append((at, bit))
    assert undetected == []


def test_cosignature_of_another_checkpoint_is_refused(witness: Witness, ledger: Key) -> None:
    line = witness.cosign(head(7).sign(ledger), (), AT_S)[0].line
    for other in (head(8), head(7, OTHERS), Checkpoint("sawyer-net/ffffffff", 7, head(7).root)):
        with pytest.raises(BadSignature, match="is not over the checkpoint"):
            accept(line, other, witness.cosigner)


def test_cosignature_with_a_foreign_key_is_refused(witness: Witness, keys: dict[str, Key]) -> None:
    forged = cosign(head(7), NAME, keys["mallory"], AT_S)
    with pytest.raises(BadSignature, match="not a cosignature of"):
        accept(forged.line, head(7), witness.cosigner)
    posing = type(forged)(NAME, witness.cosigner.key_hash, forged.signature)
    with pytest.raises(BadSignature, match="is not over the checkpoint"):
        accept(posing.line, head(7), witness.cosigner)


def test_ledger_s_own_line_is_no_cosignature(witness: Witness, ledger: Key) -> None:
    own = signatures_of(head(7).sign(ledger))[0]
    with pytest.raises(BadSignature):
        check_cosignature(own, head(7), Cosigner(NETWORK, ledger.public))


@pytest.mark.parametrize("line", ["", "\u2014 ", "\u2014 x", f"\u2014 {NAME} !", f"- {NAME} AAAAAAAA"])
def test_text_that_is_no_line_is_refused(line: str, witness: Witness) -> None:
    with pytest.raises(NotCanonical):
        accept(line, head(7), witness.cosigner)


def test_newer_line_of_a_witness_takes_the_place_of_its_older_one(
    witness: Witness, keys: dict[str, Key], ledger: Key
) -> None:
    note = head(7).sign(ledger)
    other = Cosigner(witness_name(NETWORK, "node-b"), keys["node-b"].public)
    lines = [
        cosign(head(7), NAME, witness.key, AT_S), cosign(head(7), other.name, keys["node-b"], AT_S + 1),
        cosign(head(7), NAME, witness.key, AT_S + 2),
    ]  # fmt: skip
    cosigned = merge(merge(note, lines[:2]), lines[2:])
    assert witnessed(cosigned, [witness.cosigner, other]) == {witness.cosigner: AT_S + 2, other: AT_S + 1}
    assert len(signatures_of(cosigned)) == 3


def test_wrong_line_of_a_known_witness_is_told(witness: Witness, keys: dict[str, Key], ledger: Key) -> None:
    stale = cosign(head(6), NAME, witness.key, AT_S)
    with pytest.raises(BadSignature):
        witnessed(merge(head(7).sign(ledger), [stale]), [witness.cosigner])
