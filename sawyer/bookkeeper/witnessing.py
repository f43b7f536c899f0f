"""The ledger's side of witnessing: offers a checkpoint to the nodes, takes and keeps their cosignatures. Owns what is
offered when, and the file; what a cosignature is says ledger/witness.py."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final, Protocol

from sawyer import durable
from sawyer.bus.calls import read
from sawyer.clock import Clock
from sawyer.errors import BookCorrupt, Busy, NotAuthorised, RefusedError, RolledBack, VerificationError
from sawyer.ledger.checkpoint import Checkpoint, NoteSignature, signatures_of
from sawyer.ledger.keyring import node_cosigner
from sawyer.ledger.proof import check_extends
from sawyer.ledger.witness import accept, merge
from sawyer.schemas.messages import CosignQuery, CosignReply, MembersReply, TreeQuery, TreeReply

OFFER_FOR_MS: Final = 60_000
"""How long all witnesses are offered one checkpoint: were it the newest each time, no two would sign the same."""
PROOFS_KEPT: Final = 64
"""Witnesses that were offered the same before ask for the same proof, and each reads up to two blocks of the book."""
OFFERS_KEPT: Final = 4
"""Lines may come for a checkpoint that was offered a little earlier."""
MAX_COSIGNATURES: Final = 64
"""Lines on one checkpoint; with the ledger's own, fewer than the 100 that readers of notes accept."""
MAX_AHEAD_S: Final = 300
"""How far in the future a line may claim to be."""

log = logging.getLogger(__name__)


class Log(Protocol):
    """What is witnessed: the book."""

    def checkpoint(self) -> str:
        """The newest signed checkpoint; empty before the first entry."""

    def consistency(self, old_size: int, new_size: int) -> Sequence[bytes]:
        """The proof that the tree of `new_size` has all of the tree of `old_size`."""

    def members(self) -> MembersReply:
        """Every registered node, with its key."""


class Witnessing:
    """Answers witnesses. Thread safe: queries are answered in worker threads."""

    def __init__(self, book: Log, clock: Clock, file: Path | None = None) -> None:
        """`file` keeps the newest cosigned checkpoint; without one it lasts as long as this object. What lies there and
        is not of this book is set aside. Raises BookCorrupt for a book that cannot be read there."""
        self._book = book
        self._clock = clock
        self._file = file
        self._lock = Lock()
        self._offered: OrderedDict[int, str] = OrderedDict()
        self._offered_ms = 0
        self._proofs: OrderedDict[tuple[int, int], tuple[str, ...]] = OrderedDict()
        self._cosigned = _kept(file, book)

    @property
    def cosigned(self) -> str:
        """The newest checkpoint that was cosigned, with all its lines; empty before the first."""
        with self._lock:
            return self._cosigned

    def tree(self, raw: bytes) -> TreeReply:
        """Answers a TreeQuery: the checkpoint that is offered now, and why it extends what the witness has. Who has
        more than the book gets no proof, and so learns that it was cut. Raises MalformedMessage, RefusedError."""
        held = read(TreeQuery, raw).size
        with self._lock:
            note = self._offer()
        size = Checkpoint.read(note).size
        return TreeReply(note=note, hashes=self._proof(held, size) if 0 < held < size else ())

    def cosign(self, raw: bytes) -> CosignReply:
        """Takes a CosignQuery: the line is kept when it is returned from. Raises MalformedMessage, RefusedError,
        NotAuthorised for who is no node, Busy where enough have cosigned, BadSignature, OSError."""
        query = read(CosignQuery, raw)
        key = next((node.key for node in self._book.members().nodes if node.node == query.node), None)
        if key is None:
            raise NotAuthorised(f"no node {query.node} is registered", hint="Only nodes of the network are witnesses.")
        with self._lock:
            note = self._offered.get(query.size)
            if note is None:
                raise RefusedError(f"no checkpoint of size {query.size} is offered", hint="Ask for the tree again.")
            checkpoint = Checkpoint.read(note)
            line = accept(query.line, checkpoint, node_cosigner(checkpoint.origin, query.node, key))
            self._check_time(line)
            self._keep(note, checkpoint, line)
            return CosignReply(size=Checkpoint.read(self._cosigned).size, witnesses=_witnesses(self._cosigned))

    def _proof(self, old_size: int, new_size: int) -> tuple[str, ...]:
        with self._lock:
            known = self._proofs.get((old_size, new_size))
        if known is not None:
            return known
        made = tuple(each.hex() for each in self._book.consistency(old_size, new_size))
        with self._lock:
            self._proofs[old_size, new_size] = made
            if len(self._proofs) > PROOFS_KEPT:
                self._proofs.popitem(last=False)
        return made

    def _offer(self) -> str:
        now_ms = self._clock.now_ms()
        if not self._offered or not 0 <= now_ms - self._offered_ms < OFFER_FOR_MS:
            note = self._book.checkpoint()
            if not note:
                raise RefusedError("nothing is written in this book yet", hint="`sawyer up` founds a network.")
            self._offered[Checkpoint.read(note).size] = note
            self._offered_ms = now_ms
            while len(self._offered) > OFFERS_KEPT:
                self._offered.popitem(last=False)
        return next(reversed(self._offered.values()))

    def _check_time(self, line: NoteSignature) -> None:
        ahead_s = int.from_bytes(line.signature[:8], "big") - self._clock.now_ms() // 1000
        if ahead_s > MAX_AHEAD_S:
            raise RefusedError(f"a cosignature from {ahead_s} s in the future", hint="Set the node's clock.")

    def _keep(self, note: str, checkpoint: Checkpoint, line: NoteSignature) -> None:
        kept = Checkpoint.read(self._cosigned) if self._cosigned else None
        if kept is not None and checkpoint.size < kept.size:
            return
        made = merge(self._cosigned if checkpoint == kept else note, [line])
        if _witnesses(made) > MAX_COSIGNATURES:
            raise Busy(f"{MAX_COSIGNATURES} witnesses have cosigned the checkpoint of size {checkpoint.size} already")
        if self._file is not None:
            durable.replace(self._file, made.encode())
        self._cosigned = made


def _witnesses(note: str) -> int:
    return len(signatures_of(note)) - 1


def _kept(file: Path | None, book: Log) -> str:
    """What an earlier run kept, if it is of this book. Otherwise it may be evidence, and its place is needed."""
    if file is None or not file.exists():
        return ""
    try:
        note = file.read_text(encoding="utf-8")
        signatures_of(note)
        _check_of(book, Checkpoint.read(note))
    except (OSError, UnicodeDecodeError, VerificationError) as error:
        if isinstance(error, BookCorrupt):
            raise
        log.warning("%s is no cosigned checkpoint of this book: %s. It is kept as %s", file, error, _set_aside(file))
        return ""
    return note


def _check_of(book: Log, kept: Checkpoint) -> None:
    """Raises VerificationError unless the book has all of the tree of this checkpoint."""
    note = book.checkpoint()
    if not note:
        raise RolledBack("this book is empty")
    newest = Checkpoint.read(note)
    if kept.origin != newest.origin:
        raise VerificationError(f"it is of {kept.origin}")
    check_extends(kept, newest, book.consistency(kept.size, newest.size) if 0 < kept.size < newest.size else ())


def _set_aside(file: Path) -> Path:
    """Its new name; the old one where it cannot have another, and is written over then."""
    try:
        return durable.set_aside(file)
    except OSError as error:
        log.warning("cannot rename %s: %s", file, error.strerror)
        return file
