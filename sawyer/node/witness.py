"""A node as a witness of the log: asks for a checkpoint now and then, cosigns it only if it extends the one it holds.

Owns the loop and the node's three files (what it holds, evidence, the ledger's later keys); what may be cosigned says
ledger/witness.py. It never disturbs the node's work: whatever goes wrong is told in the log. What does not extend the
held checkpoint is not cosigned, now or later: the answer may be another's than the bookkeeper's, so the witness goes on
asking. Two trees of one size, both signed with the key that the ledger has now, are its own word against itself: then
it ends, and does not begin again while the evidence lies there. A key that was replaced may be in other hands: what it
signs beyond its time is kept as evidence, and ends no witness.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from sawyer import durable
from sawyer.bus.calls import ask
from sawyer.bus.protocol import Bus
from sawyer.clock import Clock
from sawyer.errors import BadSignature, NotExtended, RetiredKey, RolledBack, SawyerError, SplitView, VerificationError
from sawyer.home import Pin
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.ledger.checkpoint import Checkpoint, Verifier
from sawyer.ledger.succession import check_remembered, known_successors, trusted
from sawyer.ledger.witness import Witness, witness_name
from sawyer.schemas.base import Strict
from sawyer.schemas.messages import CosignQuery, CosignReply, NetworkReply, TreeQuery, TreeReply

WITNESS_EVERY_S: Final = 20.0
"""How often a node asks; the bookkeeper offers one checkpoint for longer than that."""
HELD_FILE: Final = "held.txt"
EVIDENCE_FILE: Final = "evidence.json"
SUCCESSORS_FILE: Final = "successors.ndjson"

log = logging.getLogger(__name__)


class CheckpointWitness:
    """Run it with `await run()`; end it by cancelling. `ask_once` is one turn of it."""

    def __init__(self, bus: Bus, node: NodeId, key: Key, pin: Pin, folder: Path, clock: Clock) -> None:
        """`folder` is the node's own (`Home.witness`); it is made when there is something to keep."""
        self._bus = bus
        self._node = node
        self._pin = pin
        self._held_file, self._evidence_file = folder / HELD_FILE, folder / EVIDENCE_FILE
        self._successors_file = folder / SUCCESSORS_FILE
        self._clock = clock
        self._held_note = ""
        self._witness = Witness(witness_name(pin.network, node), key, (Verifier.parse(pin.ledger_vkey),))
        self._handed_in = 0
        """The size for which the bookkeeper has our line."""
        self._told = ""

    async def run(self) -> None:
        """Returns only if it must not cosign any more, and says in the log why."""
        if not self._begin():
            return
        while True:
            try:
                await self.ask_once()
            except SplitView as error:
                log.error("%s cosigns no more: %s. The evidence: %s", self._node, error, self._evidence_file)
                return
            except (SawyerError, OSError) as error:
                self._tell(error)
            except Exception:
                log.exception("%s cosigns no more", self._node)
                raise
            await asyncio.sleep(WITNESS_EVERY_S)

    async def ask_once(self) -> CosignReply | None:
        """Ask for a checkpoint, cosign it if it extends the held one, hand the line in; None if that was done before.
        What it holds is kept before anybody sees the line. Raises SplitView, RetiredKey, RolledBack, NotExtended, each
        with its evidence kept, VerificationError, OSError, and what asking raises."""
        held = self._witness.held
        offered = await ask(self._bus, "tree", TreeReply, TreeQuery(size=held.size if held is not None else 0))
        await self._know_signers(offered.note)
        hashes = [bytes.fromhex(each) for each in offered.hashes]
        try:
            line, grown = self._witness.cosign(offered.note, hashes, self._clock.now_ms() // 1000)
        except SplitView as error:
            judged = await self._judged(error, offered)
            await asyncio.to_thread(self._keep_evidence, judged, offered)
            raise judged from error
        except (RetiredKey, RolledBack, NotExtended) as error:
            await asyncio.to_thread(self._keep_evidence, error, offered)
            raise
        assert grown.held is not None, "it has just cosigned"
        size = grown.held.size
        if size == self._handed_in:
            return None
        await asyncio.to_thread(durable.replace, self._held_file, offered.note.encode())
        self._witness, self._held_note = grown, offered.note
        reply = await ask(self._bus, "cosign", CosignReply, CosignQuery(node=self._node, size=size, line=line.line))
        self._handed_in, self._told = size, ""
        return reply

    def _begin(self) -> bool:
        """Read what is held. False, with the reason in the log, where it cannot be a witness."""
        if self._evidence_file.exists() and _is_proven(self._evidence_file):
            log.error(
                "%s cosigns nothing: by %s the ledger signed two trees of one size", self._node, self._evidence_file
            )
            return False
        try:
            self._held_note = self._held_file.read_text(encoding="utf-8") if self._held_file.exists() else ""
            held = Checkpoint.read(self._held_note) if self._held_note else None
            verifiers = trusted(self._pin, known_successors(self._successors_file))[1]
        except (OSError, UnicodeDecodeError, VerificationError) as error:
            log.error(
                "%s cosigns nothing: cannot read %s: %s. Restore it; only if you cannot: delete it, and it starts anew",
                self._node, self._held_file.parent, error,
            )  # fmt: skip
            return False
        if held is not None and held.origin != self._pin.network:
            log.error("%s cosigns nothing: %s is of %s", self._node, self._held_file, held.origin)
            return False
        self._witness = replace(self._witness, held=held, verifiers=verifiers)
        return True

    async def _know_signers(self, offered: str) -> None:
        """The ledger may have a new key. Raises BadSignature where nobody says whose key signed what it holds: then an
        older one cannot be told from a newer."""
        try:
            self._check_signed(offered, self._held_note)
        except BadSignature:
            await self._learn_keys()
            self._check_signed(self._held_note)

    def _check_signed(self, *notes: str) -> None:
        for note in filter(None, notes):
            with suppress(RetiredKey):  # known, and judged when it is to be cosigned
                Checkpoint.verify(note, *self._witness.verifiers)

    async def _learn_keys(self) -> None:
        """Every key that the pinned operator, or its successors, named. Raises VerificationError if one of them was
        named by somebody else, or one that it knows is left out, and what asking raises."""
        told = (await ask(self._bus, "network", NetworkReply)).successors
        trusted(self._pin, told)
        believed = await asyncio.to_thread(check_remembered, self._successors_file, told)
        self._witness = replace(self._witness, verifiers=trusted(self._pin, believed)[1])

    async def _judged(self, error: SplitView, offered: TreeReply) -> SplitView | RetiredKey:
        """Two trees of one size are the ledger's own word only if it signed both with the key that it has now."""
        try:
            await self._learn_keys()
        except SawyerError as unknown:
            log.warning("%s judges by the keys that it knows: %s", self._node, unknown)
        newest = self._witness.verifiers[-1]
        try:
            for note in (self._held_note, offered.note):
                Checkpoint.verify(note, newest)
        except BadSignature:
            return RetiredKey(f"{error.message}, not both with the key that the ledger has now")
        return error

    def _keep_evidence(self, error: SawyerError, offered: TreeReply) -> None:
        """Both checkpoints. What proves nothing against the ledger never takes the place of what was kept first."""
        if self._evidence_file.exists() and not isinstance(error, SplitView):
            return
        kept = Evidence(
            code=error.code, why=error.message, at_ms=self._clock.now_ms(), held=self._held_note, offered=offered
        )
        durable.replace(self._evidence_file, kept.canonical() + b"\n")

    def _tell(self, error: SawyerError | OSError) -> None:
        """The same thing is told once, not every WITNESS_EVERY_S."""
        if self._told == str(error):
            return
        self._told = str(error)
        serious = isinstance(error, VerificationError | OSError)
        log.log(logging.ERROR if serious else logging.INFO, "%s has cosigned nothing: %s", self._node, error)


class Evidence(Strict):
    """Why a witness refused: the checkpoint that it held, and what it was offered instead."""

    code: str
    why: str
    at_ms: int
    held: str
    offered: TreeReply


def _is_proven(file: Path) -> bool:
    """Two trees of one size, signed with one key, prove it; so does evidence that nobody can read any more."""
    try:
        return Evidence.parse(file.read_bytes().rstrip(b"\n")).code == SplitView.code
    except (OSError, VerificationError):
        return True
