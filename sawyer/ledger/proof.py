"""Proofs that leave the book: one entry is in the tree of a checkpoint, one checkpoint's tree extends another's.

Owns the two files and what they prove. An inclusion proof is a C2SP tlog-proof (https://c2sp.org/tlog-proof) with the
entry's bytes in its `extra` line; a consistency proof is what a C2SP witness is asked with (`add-checkpoint` in
https://c2sp.org/tlog-witness). Who holds a key and a file needs no book and no network.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final

from sawyer.errors import (
    BadSignature,
    BookCorrupt,
    NotCanonical,
    NotExtended,
    RolledBack,
    SplitView,
    UsageError,
    VerificationError,
)
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.commands import claims, signatures_of
from sawyer.ledger.entry import decode_entry
from sawyer.ledger.merkle import HASH_BYTES, Tree, leaf_hash, verify_consistency, verify_inclusion
from sawyer.ledger.source import Source
from sawyer.projections.fold import Entry
from sawyer.schemas.messages import MAX_PROOF_HASHES

MAX_PROOF_CHARS: Final = 16 * 1024 * 1024
_HEADER: Final = "c2sp.org/tlog-proof@v1"
_EXTRA: Final = "extra "
_INDEX: Final = "index "
_OLD: Final = "old "


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """`entry` is leaf number `index` (from 0: seq - 1) of the tree that the checkpoint `note` signs."""

    index: int
    hashes: tuple[bytes, ...]
    entry: bytes
    note: str

    def encode(self) -> str:
        """The file. `extra` is not signed by itself, as the specification says: what it holds hashes to the leaf."""
        extra = base64.b64encode(self.entry).decode("ascii")
        lines = [_HEADER, _EXTRA + extra, f"{_INDEX}{self.index}", *map(_base64, self.hashes)]
        return "\n".join(lines) + f"\n\n{self.note}"

    @classmethod
    def decode(cls, text: str) -> InclusionProof:
        """Raises NotCanonical for anything but what `encode` writes."""
        head, note = _halves(text, _HEADER)
        if len(head) < 3 or head[0] != _HEADER or not head[1].startswith(_EXTRA):
            raise NotCanonical("not an inclusion proof with its entry", hint=_HINT_FORM)
        proof = cls(_number(head[2], _INDEX), _hashes(head[3:]), _bytes(head[1].removeprefix(_EXTRA)), note)
        if proof.encode() != text:
            raise NotCanonical("not the canonical text of this proof", hint=_HINT_FORM)
        return proof

    def check(self, verifiers: Sequence[Verifier], held: Checkpoint | None = None) -> Proven:
        """What this proves to who trusts these keys, and holds that checkpoint. Judged in this order, and the first
        that fails is told: the checkpoint's signature, that it is the held one, the place in the tree, the entry's
        bytes, every signature inside. Raises VerificationError."""
        checkpoint = Checkpoint.verify(self.note, *verifiers)
        if held is not None:
            _check_held(checkpoint, held)
        leaf = leaf_hash(self.entry)
        if not verify_inclusion(leaf, self.index, checkpoint.size, self.hashes, checkpoint.root):
            raise VerificationError(
                f"these bytes are not entry {self.index + 1} of the {checkpoint.size} that the checkpoint signs",
                hint="The proof was changed, or belongs to another entry or checkpoint: ask for it again.",
            )
        return Proven(_read(self.entry, self.index + 1, checkpoint.origin), checkpoint)


@dataclass(frozen=True, slots=True)
class Proven:
    """An entry that the ledger committed to, with all its signatures verified. Whether its signers were allowed to say
    so, and what the ledger decided, only the whole book can prove."""

    entry: Entry
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """The tree that `note` signs begins with the `old_size` leaves of an earlier one."""

    old_size: int
    hashes: tuple[bytes, ...]
    note: str

    def encode(self) -> str:
        """The file."""
        return "\n".join([f"{_OLD}{self.old_size}", *map(_base64, self.hashes)]) + f"\n\n{self.note}"

    @classmethod
    def decode(cls, text: str) -> ConsistencyProof:
        """Raises NotCanonical for anything but what `encode` writes."""
        head, note = _halves(text, _OLD)
        proof = cls(_number(head[0], _OLD), _hashes(head[1:]), note)
        if proof.encode() != text:
            raise NotCanonical("not the canonical text of this proof", hint=_HINT_FORM)
        return proof

    def check(self, old: Checkpoint, verifiers: Sequence[Verifier]) -> Checkpoint:
        """The newer checkpoint, whose tree extends that of `old`, which the caller has verified. Raises
        VerificationError."""
        new = Checkpoint.verify(self.note, *verifiers)
        if (new.origin, self.old_size) != (old.origin, old.size):
            raise VerificationError(
                f"the proof is from size {self.old_size} of {new.origin}, you hold size {old.size} of {old.origin}"
            )
        check_extends(old, new, self.hashes)
        return new


def check_extends(old: Checkpoint, new: Checkpoint, hashes: Sequence[bytes]) -> None:
    """That the tree of `new` begins with all of `old`, by these hashes; the caller has verified both checkpoints.
    Raises SplitView, which the two signed notes alone prove, RolledBack, NotExtended."""
    check_one_view(old, new)
    if new.size < old.size:
        raise RolledBack(f"a checkpoint of {new.size} entries is offered for a newer one than that of {old.size}")
    if not verify_consistency(old.size, old.root, new.size, new.root, hashes):
        raise NotExtended(f"nothing shows that the tree of {new.size} entries extends the tree of {old.size}")


def check_one_view(one: Checkpoint, other: Checkpoint) -> None:
    """Raises SplitView if these two, which the caller has verified, are of one size and not of one tree."""
    if (one.origin, one.size) == (other.origin, other.size) and one.root != other.root:
        raise SplitView(f"two trees of {one.size} entries are signed: {one.root.hex()} and {other.root.hex()}")


@dataclass
class BookTree:
    """A book's tree with all leaf hashes (32 bytes an entry), and what else was wanted of one reading."""

    tree: Tree = field(default_factory=Tree)
    newest: str = ""
    notes: dict[int, str] = field(default_factory=dict)
    entries: dict[int, bytes] = field(default_factory=dict)
    of_kinds: list[tuple[str, bytes]] = field(default_factory=list)
    covered: dict[int, int] = field(default_factory=dict)
    """Of each entry of these kinds: the size of the first checkpoint that covers it."""
    _leaves: bytearray = field(default_factory=bytearray)

    @classmethod
    def read(
        cls, source: Source, *, seqs: Collection[int] = (), sizes: Collection[int] = (), kinds: Collection[str] = ()
    ) -> BookTree:
        """One pass over a book: its newest checkpoint, those of these sizes, these entries and those of these kinds.
        Nothing is verified but that the rows can be read: `check` a checkpoint, which covers all entries before it.
        Raises VerificationError."""
        book, uncovered = cls(), list[int]()
        with closing(source.rows()) as rows:
            for row in rows:
                if row.is_checkpoint:
                    book.newest = _text(row.state)
                    book.covered.update(dict.fromkeys(uncovered, book.tree.size))
                    uncovered.clear()
                    if book.tree.size in sizes:
                        book.notes[book.tree.size] = book.newest
                    continue
                leaf = leaf_hash(row.state)
                book.tree.append(leaf)
                book._leaves += leaf
                if book.tree.size in seqs:
                    book.entries[book.tree.size] = row.state
                if row.topic in kinds:
                    book.of_kinds.append((row.topic, row.state))
                    uncovered.append(book.tree.size)
        if not book.newest:
            raise UsageError("this book has no checkpoint yet", hint="Its bookkeeper signs one with each commit.")
        return book

    def check(self, note: str, verifiers: Sequence[Verifier]) -> Checkpoint:
        """The checkpoint in this note, if it is of this book's tree. Raises BookCorrupt if it is of another tree,
        VerificationError."""
        checkpoint = Checkpoint.verify(note, *verifiers)
        if checkpoint.size > self.tree.size:
            raise BookCorrupt(
                f"the book ends at entry {self.tree.size}, and a checkpoint of {checkpoint.size} entries was signed",
                seq=self.tree.size,
            )
        root = self.tree.root_at(checkpoint.size, self._of)
        if root != checkpoint.root:
            raise BookCorrupt(
                f"the book's first {checkpoint.size} entries have root {root.hex()}, a checkpoint signs "
                f"{checkpoint.root.hex()}: one of them was changed",
                seq=checkpoint.size,
            )
        return checkpoint

    def all_of(self, kinds: Collection[str]) -> list[bytes]:
        """The entries of these kinds, in the order of the book; they must have been asked for."""
        return [raw for kind, raw in self.of_kinds if kind in kinds]

    def prove_inclusion(self, seq: int, note: str) -> InclusionProof:
        """Of an entry that was asked for when the book was read, in the tree of a checkpoint of this book."""
        size = Checkpoint.read(note).size
        hashes = self.tree.inclusion(seq - 1, size, self._of)
        return InclusionProof(seq - 1, tuple(hashes), self.entries[seq], note)

    def prove_consistency(self, old_size: int, note: str) -> ConsistencyProof:
        """From the tree of this size to that of a checkpoint of this book."""
        hashes = self.tree.consistency(old_size, Checkpoint.read(note).size, self._of)
        return ConsistencyProof(old_size, tuple(hashes), note)

    def at(self, origin: str, size: int) -> Checkpoint:
        """What a checkpoint of this size would say."""
        return Checkpoint(origin, size, self.tree.root_at(size, self._of))

    def _of(self, first: int, count: int) -> list[bytes]:
        return [
            bytes(self._leaves[at : at + HASH_BYTES])
            for at in range(first * HASH_BYTES, (first + count) * HASH_BYTES, HASH_BYTES)
        ]


def _check_held(checkpoint: Checkpoint, held: Checkpoint) -> None:
    check_one_view(held, checkpoint)
    if checkpoint == held:
        return
    raise VerificationError(
        f"the proof is for the checkpoint of size {checkpoint.size} of {checkpoint.origin}, you hold size {held.size} "
        f"of {held.origin}",
        hint="Ask for a proof in the tree you hold: sawyer ledger prove SEQ --checkpoint FILE.",
    )


def _read(raw: bytes, seq: int, origin: str) -> Entry:
    """The entry in proven bytes, with every signature in it verified."""
    try:
        entry = decode_entry(raw)
    except VerificationError as error:
        raise VerificationError(f"entry {seq} was signed for, and is not well-formed: {error.message}") from error
    if (entry.seq, entry.log) != (seq, origin):
        raise VerificationError(
            f"entry {seq} of {origin} says that it is entry {entry.seq} of {entry.log}",
            hint=_HINT_LIES,
        )
    try:
        check_signatures(entry)
    except VerificationError as error:
        raise VerificationError(
            f"entry {seq} is in the tree, and a signature in it is wrong: {error.message}", hint=_HINT_LIES
        ) from error
    return entry


def check_signatures(entry: Entry) -> None:
    """Every signature in an entry, and as many as its kind has. Raises BadSignature."""
    if entry.body is not None and len(entry.attestations) != signatures_of(type(entry.body)):
        raise BadSignature(f"{entry.kind} with {len(entry.attestations)} attestations")
    for claim in claims(entry.kind, entry.body, entry.statement, entry.attestations):
        claim.check()


# --- the text of both files -------------------------------------------------------------------------------------------

_HINT_LIES: Final = "The ledger committed to it nevertheless: show this proof to other auditors."
_HINT_FORM: Final = (
    "Ask for the proof again: sawyer ledger prove SEQ -o FILE, or sawyer ledger consistency OLD NEW -o FILE."
)


def _halves(text: str, begins: str) -> tuple[list[str], str]:
    """The lines of a proof before its checkpoint, at least one, and the checkpoint."""
    if len(text) > MAX_PROOF_CHARS:
        raise NotCanonical(f"a proof has at most {MAX_PROOF_CHARS} characters, got {len(text)}")
    head, found, note = text.partition("\n\n")
    if not found or not head.startswith(begins):
        raise NotCanonical(f"not a proof: expected one that begins with {begins!r}", hint=_HINT_FORM)
    return head.split("\n"), note


def _number(line: str, name: str) -> int:
    text = line.removeprefix(name)
    if not line.startswith(name) or not text.isascii() or not text.isdigit() or len(text) > 16:
        raise NotCanonical(f"not a line of {name.strip()!r} and a number: {line[:60]!r}", hint=_HINT_FORM)
    return int(text)


def _hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    hashes = tuple(map(_bytes, lines))
    if len(hashes) > MAX_PROOF_HASHES or any(len(each) != HASH_BYTES for each in hashes):
        raise NotCanonical(f"a proof has at most {MAX_PROOF_HASHES} hashes of {HASH_BYTES} bytes", hint=_HINT_FORM)
    return hashes


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise NotCanonical(f"not base64: {text[:60]!r}", hint=_HINT_FORM) from error


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise BookCorrupt("a checkpoint in this book is not text") from error
