"""Proofs that leave the book: what they prove, to whom, and every way to forge one."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest

from sawyer.errors import (
    BadSignature,
    BookCorrupt,
    NotCanonical,
    NotExtended,
    RetiredKey,
    RolledBack,
    SplitView,
    UsageError,
    VerificationError,
)
from sawyer.home import Pin
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint, Verifier, vkey_of
from sawyer.ledger.commands import VerifiedCommand, check, command
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow, encode_entry
from sawyer.ledger.keyring import KEY_KINDS, NODE_KINDS, cosigners, founder, successors
from sawyer.ledger.merkle import Tree, leaf_hash
from sawyer.ledger.proof import BookTree, ConsistencyProof, InclusionProof, check_extends
from sawyer.ledger.succession import trusted as succeeded
from sawyer.schemas.events import (
    NO_HASH,
    AccountOpened,
    Body,
    Decided,
    KeyAdded,
    KeyRotated,
    NetworkFounded,
    NodeRegistered,
)

NETWORK = "sawyer-net/3f9a1c22"
SIZE = 9


@dataclass
class Rows:
    """A book as a list of rows, entry by entry, with a checkpoint wherever one is asked for."""

    key: Key
    network: str = NETWORK
    rows_: list[StoredRow] = field(default_factory=list)
    tree: Tree = field(default_factory=Tree)
    leaf: str = NO_HASH

    def size_rows(self) -> int:
        return len(self.rows_)

    def rows(self) -> Iterator[StoredRow]:
        yield from self.rows_

    def write(self, asked: VerifiedCommand, **changes: object) -> bytes:
        seq = self.tree.size + 1
        fields = {
            "log": self.network, "seq": seq, "prev": self.leaf, "ts_ms": 1_700_000_000_000 + seq, "kind": asked.kind,
            "stream": f"test:{seq}", "version": 1, "idem": f"test:{seq}", "body": asked.body,
            "statement": asked.statement, "decided": Decided(), "attestations": asked.attestations, **changes,
        }  # fmt: skip
        raw, entry = encode_entry(**fields)  # type: ignore[arg-type]
        self.put(StoredRow(entry.stream, 1, entry.kind, raw))
        return raw

    def put(self, row: StoredRow) -> None:
        self.rows_.append(row)
        self.leaf = leaf_hash(row.state).hex()
        self.tree.append(bytes.fromhex(self.leaf))

    def checkpoint(self, key: Key | None = None) -> str:
        note = Checkpoint(self.network, self.tree.size, self.tree.root()).sign(key or self.key)
        self.rows_.append(StoredRow(CHECKPOINT_STREAM, 1, CHECKPOINT_TOPIC, note.encode()))
        return note


def say(body: Body, by: str, key: Key) -> VerifiedCommand:
    return check(command(body, by, key))


def opened(keys: dict[str, Key], number: int) -> VerifiedCommand:
    return say(AccountOpened(network=NETWORK, account=f"a{number}", key=keys["alice"].id), f"a{number}", keys["alice"])


@pytest.fixture
def book(keys: dict[str, Key]) -> Rows:
    """Nine entries, a checkpoint after each third."""
    made = Rows(keys["ledger"])
    for number in range(1, SIZE + 1):
        made.write(opened(keys, number))
        if number % 3 == 0:
            made.checkpoint()
    return made


@pytest.fixture
def trusted(keys: dict[str, Key]) -> tuple[Verifier, ...]:
    return (Verifier.parse(vkey_of(NETWORK, keys["ledger"])),)


@pytest.fixture
def proof(book: Rows, trusted: tuple[Verifier, ...]) -> InclusionProof:
    """Of entry 5, in the newest tree."""
    read = BookTree.read(book, seqs=(5,))
    return read.prove_inclusion(5, read.newest)


# --- an entry is in a tree --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", range(1, SIZE + 1))
def test_proof_of_every_entry_shows_that_entry(seq: int, book: Rows, trusted: tuple[Verifier, ...]) -> None:
    read = BookTree.read(book, seqs=(seq,))
    text = read.prove_inclusion(seq, read.newest).encode()
    proven = InclusionProof.decode(text).check(trusted)
    assert (proven.entry.seq, proven.entry.signer.by, proven.checkpoint.size) == (seq, f"a{seq}", SIZE)


def test_proof_has_the_public_form(proof: InclusionProof) -> None:
    head, _, note = proof.encode().partition("\n\n")
    lines = head.split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert base64.b64decode(lines[1].removeprefix("extra ")) == proof.entry
    assert lines[2] == "index 4"
    assert [base64.b64decode(line) for line in lines[3:]] == list(proof.hashes)
    assert note == proof.note


def test_every_changed_byte_of_a_proof_is_refused(proof: InclusionProof, trusted: tuple[Verifier, ...]) -> None:
    raw = proof.encode().encode()
    undetected = []
    for at in range(len(raw)):
        for bit in range(8):
            changed = raw[:at] + bytes([raw[at] ^ (1 << bit)]) + raw[at + 1 :]
            try:
                InclusionProof.decode(changed.decode(errors="surrogateescape")).check(trusted)
            except VerificationError:
                continue
            undetected.append((at, bit))
    assert undetected == []


def test_every_line_that_is_missing_or_twice_is_refused(proof: InclusionProof, trusted: tuple[Verifier, ...]) -> None:
    lines = proof.encode().split("\n")
    signature = len(lines) - 2  # twice the same valid signature says nothing new, and is allowed
    texts = ["\n".join(lines[:at] + lines[at + 1 :]) for at in range(len(lines))]
    texts += ["\n".join(lines[: at + 1] + lines[at:]) for at in range(len(lines)) if at != signature]
    for text in texts:
        with pytest.raises(VerificationError):
            InclusionProof.decode(text).check(trusted)


def test_proof_of_another_log_is_refused(keys: dict[str, Key], proof: InclusionProof) -> None:
    other = Verifier.parse(vkey_of("sawyer-net/ffffffff", keys["ledger"]))
    with pytest.raises(BadSignature, match="expected one of 'sawyer-net/ffffffff'"):
        proof.check((other,))


def test_proof_with_a_foreign_key_is_refused(keys: dict[str, Key], book: Rows, trusted: tuple[Verifier, ...]) -> None:
    note = book.checkpoint(keys["mallory"])
    forged = BookTree.read(book, seqs=(5,)).prove_inclusion(5, note)
    with pytest.raises(BadSignature, match="no valid signature"):
        forged.check(trusted)


def test_proof_is_never_checked_with_a_key_of_small_order(proof: InclusionProof) -> None:
    small = bytes([1]) + bytes(31)
    with pytest.raises(VerificationError, match="not a valid Ed25519 point"):
        Verifier.parse(Verifier(NETWORK, small).vkey)
    with pytest.raises(BadSignature):
        proof.check((Verifier(NETWORK, small),))


def test_proof_against_a_key_before_and_after_a_rotation_holds(
    keys: dict[str, Key], book: Rows, trusted: tuple[Verifier, ...]
) -> None:
    later = Verifier.parse(vkey_of(NETWORK, keys["router"]))
    before = BookTree.read(book, seqs=(5,))
    book.write(opened(keys, 10))
    note = book.checkpoint(keys["router"])
    for each in (before.prove_inclusion(5, before.newest), BookTree.read(book, seqs=(5,)).prove_inclusion(5, note)):
        assert each.check((*trusted, later)).entry.seq == 5


def test_proof_in_the_checkpoint_that_is_held_holds(proof: InclusionProof, trusted: tuple[Verifier, ...]) -> None:
    assert proof.check(trusted, Checkpoint.read(proof.note)).entry.seq == 5


def test_split_view_is_told_where_two_checkpoints_of_one_size_are_signed(
    keys: dict[str, Key], proof: InclusionProof, trusted: tuple[Verifier, ...]
) -> None:
    held = Checkpoint.verify(Checkpoint(NETWORK, SIZE, bytes(32)).sign(keys["ledger"]), *trusted)
    with pytest.raises(SplitView, match=f"two trees of {SIZE} entries"):
        proof.check(trusted, held)


def test_proof_in_another_tree_than_the_held_one_is_refused(
    book: Rows, proof: InclusionProof, trusted: tuple[Verifier, ...]
) -> None:
    held = Checkpoint.read(BookTree.read(book, sizes=(6,)).notes[6])
    with pytest.raises(VerificationError, match=r"size 9 .* you hold size 6"):
        proof.check(trusted, held)


def test_entry_that_the_ledger_committed_to_with_a_wrong_signature_is_refused(
    keys: dict[str, Key], book: Rows, trusted: tuple[Verifier, ...]
) -> None:
    honest, other = opened(keys, 10), opened(keys, 11)
    book.write(honest, attestations=other.attestations)
    book.checkpoint()
    read = BookTree.read(book, seqs=(10,))
    with pytest.raises(VerificationError, match="entry 10 is in the tree, and a signature in it is wrong"):
        read.prove_inclusion(10, read.newest).check(trusted)


@pytest.mark.parametrize("changes", [{"seq": 11}, {"log": "sawyer-net/ffffffff"}])
def test_entry_that_says_it_stands_elsewhere_is_refused(
    changes: dict[str, object], keys: dict[str, Key], book: Rows, trusted: tuple[Verifier, ...]
) -> None:
    book.write(opened(keys, 10), **changes)
    book.checkpoint()
    read = BookTree.read(book, seqs=(10,))
    with pytest.raises(VerificationError, match=f"entry 10 of {NETWORK} says that it is"):
        read.prove_inclusion(10, read.newest).check(trusted)


def test_entry_that_is_not_canonical_is_refused(book: Rows, trusted: tuple[Verifier, ...]) -> None:
    book.put(StoredRow("test:10", 1, "account.opened.v1", b'{"v": 1}'))
    book.checkpoint()
    read = BookTree.read(book, seqs=(10,))
    with pytest.raises(VerificationError, match="was signed for, and is not well-formed"):
        read.prove_inclusion(10, read.newest).check(trusted)


@pytest.mark.parametrize(
    "text",
    ["", "c2sp.org/tlog-proof@v1\n\n", "c2sp.org/tlog-proof@v2\nextra \nindex 0\n\nx", "old 1\n\nx",
     "c2sp.org/tlog-proof@v1\nindex 0\n\nx", "c2sp.org/tlog-proof@v1\nextra !\nindex 0\n\nx",
     "c2sp.org/tlog-proof@v1\nextra \nindex 00\n\nx", "c2sp.org/tlog-proof@v1\nextra \nindex 0\nAA==\n\nx",
     "c2sp.org/tlog-proof@v1\nextra \nindex \u0661\n\nx"],
)  # fmt: skip
def test_text_that_is_no_proof_is_refused(text: str) -> None:
    with pytest.raises(NotCanonical):
        InclusionProof.decode(text)


# --- a tree extends another -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", range(1, SIZE + 1))
def test_consistency_from_every_size_holds(old: int, book: Rows, trusted: tuple[Verifier, ...]) -> None:
    read = BookTree.read(book)
    text = read.prove_consistency(old, read.newest).encode()
    assert ConsistencyProof.decode(text).check(read.at(NETWORK, old), trusted).size == SIZE


def test_consistency_proof_is_what_a_witness_is_asked_with(book: Rows) -> None:
    read = BookTree.read(book)
    head, _, note = read.prove_consistency(6, read.newest).encode().partition("\n\n")
    assert head.split("\n")[0] == "old 6"
    assert note == read.newest


def test_every_changed_byte_of_a_consistency_proof_is_refused(book: Rows, trusted: tuple[Verifier, ...]) -> None:
    read = BookTree.read(book)
    raw = read.prove_consistency(6, read.newest).encode().encode()
    undetected = []
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            ConsistencyProof.decode(changed.decode(errors="surrogateescape")).check(read.at(NETWORK, 6), trusted)
        except VerificationError:
            continue
        undetected.append(at)
    assert undetected == []


def test_rewritten_book_does_not_extend_what_was_held(
    keys: dict[str, Key], book: Rows, trusted: tuple[Verifier, ...]
) -> None:
    rewritten = Rows(keys["ledger"])
    for number in range(SIZE + 1):
        rewritten.write(opened(keys, 20 + number))
    rewritten.checkpoint()
    held, read = BookTree.read(book).at(NETWORK, 6), BookTree.read(rewritten)
    with pytest.raises(NotExtended):
        read.prove_consistency(6, read.newest).check(held, trusted)
    with pytest.raises(BookCorrupt, match="first 9 entries have root"):
        read.check(BookTree.read(book).newest, trusted)


def test_consistency_of_other_sizes_than_the_held_one_is_refused(book: Rows, trusted: tuple[Verifier, ...]) -> None:
    read = BookTree.read(book)
    with pytest.raises(VerificationError, match=r"from size 5 .* you hold size 6"):
        read.prove_consistency(5, read.newest).check(read.at(NETWORK, 6), trusted)


def test_rollback_is_told(book: Rows) -> None:
    read = BookTree.read(book)
    with pytest.raises(RolledBack):
        check_extends(read.at(NETWORK, 9), read.at(NETWORK, 6), ())


# --- the book that proofs are made of ---------------------------------------------------------------------------------


def test_book_cut_short_is_found_against_a_held_checkpoint(book: Rows, trusted: tuple[Verifier, ...]) -> None:
    newest = BookTree.read(book).newest
    book.rows_ = book.rows_[:8]  # six entries and their two checkpoints
    with pytest.raises(BookCorrupt, match="ends at entry 6, and a checkpoint of 9"):
        BookTree.read(book).check(newest, trusted)


def test_changed_entry_is_found_against_the_book_s_own_checkpoint(book: Rows, trusted: tuple[Verifier, ...]) -> None:
    row = book.rows_[0]
    book.rows_[0] = StoredRow(row.stream, row.version, row.topic, row.state.replace(b'"a1"', b'"a2"'))
    read = BookTree.read(book)
    with pytest.raises(BookCorrupt, match="first 9 entries"):
        read.check(read.newest, trusted)


def test_book_without_a_checkpoint_proves_nothing(keys: dict[str, Key]) -> None:
    with pytest.raises(UsageError, match="no checkpoint yet"):
        BookTree.read(Rows(keys["ledger"]))


@pytest.fixture
def founded(keys: dict[str, Key]) -> Rows:
    """A book with a founding, and nothing else."""
    book = Rows(keys["ledger"])
    founding = NetworkFounded(
        network=NETWORK, operator=keys["operator"].id, ledger_vkey=vkey_of(NETWORK, keys["ledger"]), mode="test",
        founded_ms=1_700_000_000_000,
    )  # fmt: skip
    book.write(say(founding, "operator", keys["operator"]))
    return book


def give(book: Rows, role: str, key: Key, by: Key, network: str = NETWORK) -> None:
    body = KeyAdded(network=network, role=role, name=role, key=key.id)  # type: ignore[arg-type]
    book.write(say(body, "operator", by))


def terms_of(book: Rows) -> tuple[Verifier, ...]:
    """Who may sign checkpoints of this book, as it says itself."""
    read = BookTree.read(book, kinds=KEY_KINDS)
    found = founder(read.all_of(KEY_KINDS))
    assert found is not None
    return succeeded(Pin(NETWORK, found[0].vkey, found[1]), successors(read))[1]


def test_each_key_of_a_book_signs_up_to_the_checkpoint_that_covers_the_next(
    keys: dict[str, Key], founded: Rows
) -> None:
    second = Key.from_raw(bytes([98]) * 32, "O")
    give(founded, "ledger", keys["node-a"], keys["operator"])
    give(founded, "router", keys["router"], keys["operator"])
    founded.checkpoint()
    give(founded, "operator", second, keys["operator"])
    give(founded, "ledger", keys["node-b"], second)
    founded.checkpoint(keys["node-a"])
    give(founded, "ledger", keys["mallory"], second)  # no checkpoint covers it: the ledger has not said it yet
    assert terms_of(founded) == (
        Verifier(NETWORK, keys["ledger"].public, 0, 3),
        Verifier(NETWORK, keys["node-a"].public, 4, 5),
        Verifier(NETWORK, keys["node-b"].public, 6),
    )


@pytest.mark.parametrize("lie", ["stranger", "former operator", "other network"])
def test_book_that_names_a_key_that_nobody_could_add_is_refused(keys: dict[str, Key], founded: Rows, lie: str) -> None:
    by = keys["operator"] if lie != "stranger" else keys["mallory"]
    if lie == "former operator":
        give(founded, "operator", Key.from_raw(bytes([98]) * 32, "O"), keys["operator"])
    give(founded, "ledger", keys["mallory"], by, "sawyer-net/ffffffff" if lie == "other network" else NETWORK)
    founded.checkpoint()
    with pytest.raises(VerificationError, match="is signed by"):
        terms_of(founded)


def test_fork_that_goes_on_with_the_old_key_after_its_successor_proves_nothing(
    keys: dict[str, Key], founded: Rows
) -> None:
    """Whoever has the old key can extend the book as it was; who knows the successor takes none of it."""
    give(founded, "ledger", keys["node-a"], keys["operator"])
    held = Checkpoint.read(founded.checkpoint())
    terms = terms_of(founded)
    founded.write(opened(keys, 3))
    genuine, forged = founded.checkpoint(keys["node-a"]), founded.checkpoint(keys["ledger"])
    read = BookTree.read(founded, seqs=(3,))
    for note, holds in ((genuine, True), (forged, False)):
        for prove in (
            lambda note=note: read.prove_inclusion(3, note).check(terms),
            lambda note=note: read.prove_consistency(held.size, note).check(held, terms),
            lambda note=note: read.check(note, terms),
        ):
            with nullcontext() if holds else pytest.raises(RetiredKey, match="a checkpoint of 3 entries"):
                prove()


def test_witnesses_of_a_book_are_its_nodes_with_each_key_they_had(keys: dict[str, Key]) -> None:
    book, node, later = Rows(keys["ledger"]), keys["node-a"], keys["node-b"]
    registered = NodeRegistered(
        network=NETWORK, node="node-a", host="bob", key=node.id, device="CPU", memory_mb=1, promised_us=0
    )
    rotated = KeyRotated(network=NETWORK, role="node", name="node-a", key=later.id)
    book.write(say(registered, "node-a", node))
    book.write(check(command(rotated, "node-a", node, later)))
    book.write(check(command(rotated.changed(role="account"), "node-a", node, later)))
    book.checkpoint()
    said = BookTree.read(book, kinds=NODE_KINDS).all_of(NODE_KINDS)
    assert [(each.name, each.public) for each in cosigners(NETWORK, said)] == [
        (f"{NETWORK}/witness/node-a", node.public), (f"{NETWORK}/witness/node-a", later.public)
    ]  # fmt: skip
