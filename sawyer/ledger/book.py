"""The book: the one writer. Decides commands in order, writes a batch as one transaction, keeps the views current.

Owns memory (the folds) and their agreement with the disk: what a reply says is durable, and after any failure memory is
what the disk has. Knows no bus and no clock: times come with the calls.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from sawyer.errors import BookCorrupt, RefusedError, SawyerError, UnknownAccount, VerificationError, ViewDiffers
from sawyer.identity.keys import Key
from sawyer.ids import AccountId, NetworkId, RequestId
from sawyer.ledger.chain import check_covers, read_checkpoint, read_next
from sawyer.ledger.checkpoint import Checkpoint, Verifier, vkey_of
from sawyer.ledger.commands import LEDGER_NAME, VerifiedCommand, check, command
from sawyer.ledger.decide import Decision, decide
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow, decode_entry, encode_entry
from sawyer.ledger.state import State
from sawyer.ledger.store import Store, Synchronous
from sawyer.ledger.views import Views
from sawyer.projections.audit_chain import HeadRow
from sawyer.projections.balances import COMPLETED
from sawyer.projections.fold import Entry
from sawyer.projections.nodes import NodeRow
from sawyer.schemas.events import NO_HASH, NodeRegistered, ReservationExpired
from sawyer.schemas.messages import (
    MAX_BUCKETS_TOLD,
    AccountBucket,
    AccountReply,
    BalanceReply,
    EntryRef,
    ErrorBody,
    LedgerCommand,
    LedgerReply,
    MembersReply,
    NetworkReply,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completed:
    """How a request was billed. `entry` is the seq of its entry."""

    entry: int
    input_tokens: int
    output_tokens: int
    billed_tokens: int


class Book:
    """Thread safe: calls take turns, so a question may wait for a running commit, and sees only what is durable."""

    def __init__(
        self,
        store: Store,
        *,
        network: NetworkId,
        operator: str,
        ledger_key: Key,
        views: Views | None = None,
        held: str | None = None,
    ) -> None:
        """Load a book from its rows; `open` is the usual way. Raises BookCorrupt, ViewDiffers, SawyerError."""
        self._store = store
        self._views = views
        self._network = network
        self._operator = operator
        self._key = ledger_key
        self._verifier = Verifier.parse(vkey_of(network, ledger_key))
        self._held = _kept(held, self._verifier) if held is not None else None
        self._lock = RLock()
        self._memory: State | None = None
        self._checkpoints, self._note = 0, ""
        self._unwritten: dict[str, set[str]] = defaultdict(set)
        self._load()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        network: NetworkId,
        operator: str,
        ledger_key: Key,
        views: Path | None = None,
        held: str | None = None,
        synchronous: Synchronous = "FULL",
    ) -> Book:
        """The book in this SQLite file, created if missing, loaded into memory. The chain and the last checkpoint are
        verified, not every signature: that is replay's work. `operator` is the key that founds this network, and no
        other; `held` a checkpoint that was kept: a book that does not reach it, or has another tree there, is refused.
        Raises BookCorrupt, ViewDiffers, VerificationError (`held` is of another ledger), SawyerError."""
        store = Store.sqlite(path, synchronous)
        live: Views | None = None
        try:
            live = Views(views) if views is not None else None
            return cls(store, network=network, operator=operator, ledger_key=ledger_key, views=live, held=held)
        except BaseException:
            store.close()
            if live is not None:
                live.close()
            raise

    # --- writing ----------------------------------------------------------------------------------------------------

    def verify(self, command: LedgerCommand) -> VerifiedCommand:
        """Check all that needs no book: schema and every signature. Pure; run it in worker threads before `commit`.
        Raises MalformedMessage, BadSignature."""
        return check(command)

    def commit(self, commands: Sequence[VerifiedCommand], now_ms: int) -> list[LedgerReply]:
        """Decide these commands in order and write what stands as ONE transaction; one reply a command, refusals
        included. Blocks until durable. Raises WriterFenced if another process has written, SawyerError if the disk
        cannot: then nothing of the batch is written, and memory is read again from the book at the next call."""
        with self._lock:
            try:
                return self._commit(commands, now_ms)
            except BaseException:
                self._memory = None
                raise

    def expire(self, now_ms: int) -> list[VerifiedCommand]:
        """One signed command for each hold that is due; commit them to release the tokens."""
        with self._lock:
            requests = self._state.balances.open_requests
            due = sorted(request for request, expires_ms in requests.items() if expires_ms <= now_ms)
            rows = [(request, self._state.balances.request(request)) for request in due]
        bodies = [
            ReservationExpired(network=self._network, account=row.account, request=request)
            for request, row in rows
            if row is not None
        ]
        return [check(command(body, LEDGER_NAME, self._key)) for body in bodies]

    def close(self) -> None:
        with self._lock:
            self._store.close()
            if self._views is not None:
                self._views.close()

    # --- asking -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many entries there are."""
        with self._lock:
            return self._state.audit.head.seq

    @property
    def root(self) -> str:
        """The Merkle root over all entries, hex."""
        with self._lock:
            return self._state.tree.root().hex()

    @property
    def vkey(self) -> str:
        """The key that this book's checkpoints verify with."""
        return self._verifier.vkey

    def checkpoint(self) -> str:
        """The newest signed checkpoint; empty before the first entry."""
        with self._lock:
            return self._note

    def balance(self, account: AccountId, now_ms: int) -> BalanceReply:
        """Raises UnknownAccount."""
        with self._lock:
            balances = self._state.balances
            row = balances.account(account)
            if row is None:
                raise UnknownAccount(f"no account {account}", details={"account": account})
            return BalanceReply(
                account=account,
                available=balances.available(account, now_ms),
                held=row.held,
                consumed=row.consumed,
                granted=row.granted,
                seq=self._state.audit.head.seq,
            )

    def account(self, account: AccountId, now_ms: int) -> AccountReply:
        """An account with its newest grants. Raises UnknownAccount."""
        with self._lock:
            balance = self.balance(account, now_ms)
            row = self._state.balances.account(account)
            assert row is not None, "balance raises where there is none"
            return AccountReply(
                account=account,
                key=row.key,
                opened=row.seq,
                balance=balance,
                grants=len(row.grants),
                buckets=tuple(self._bucket(grant) for grant in reversed(row.grants[-MAX_BUCKETS_TOLD:])),
            )

    def _bucket(self, grant: str) -> AccountBucket:
        row = self._state.balances.bucket(grant)
        assert row is not None, "an account names only grants that it was given"
        return AccountBucket(
            grant=grant,
            granted=row.tokens,
            available=row.available,
            held=row.held,
            consumed=row.consumed,
            valid_from_ms=row.valid_from_ms,
            expires_ms=row.expires_ms,
            seq=row.seq,
        )

    def network(self, now_ms: int) -> NetworkReply:
        """What newcomers are told at this time. Raises RefusedError before the network is founded."""
        with self._lock:
            registry = self._state.registry
            if registry.network is None:
                raise RefusedError("this network is not founded yet", hint="`sawyer up` founds one.")
            return NetworkReply(
                network=self._network,
                ledger_vkey=registry.network.ledger_vkey,
                operator=registry.network.operator,
                mode="live" if registry.network.mode == "live" else "test",
                models=tuple(registry.models[model] for model in sorted(registry.models)),
                pricing=registry.pricing,
                size=self.size,
                checkpoint=self._note,
                now_ms=now_ms,
            )

    def members(self) -> MembersReply:
        """Every registered node and every router key, by name."""
        with self._lock:
            nodes = sorted(self._state.nodes.nodes.items())
            keys = self._state.registry.keys.items()
            routers = tuple(sorted((row.name, key) for key, row in keys if row.role == "router"))
            registered = tuple(_registered(self._network, node, row) for node, row in nodes)
            return MembersReply(nodes=registered, routers=routers, seq=self.size)

    def completed(self, request: RequestId) -> Completed | None:
        """How a request was billed, or None if it was not."""
        with self._lock:
            row = self._state.balances.request(request)
            if row is None or row.status != COMPLETED:
                return None
            return Completed(row.seq, row.input_tokens, row.output_tokens, row.billed_tokens)

    # --- the writer's inside ----------------------------------------------------------------------------------------

    def _commit(self, commands: Sequence[VerifiedCommand], now_ms: int) -> list[LedgerReply]:
        now_ms = max(now_ms, self._state.audit.head.ts_ms)  # the book's time never runs backwards
        replies: list[LedgerReply] = []
        rows: list[StoredRow] = []
        written: dict[int, Entry] = {}
        for asked in commands:
            try:
                decision = decide(self._state, asked, now_ms)
            except RefusedError as error:
                replies.append(LedgerReply(error=ErrorBody.of(error)))
                continue
            if decision.repeated:
                replies.append(LedgerReply(entry=self._find(decision.idem, written), repeated=True))
                continue
            row, entry = self._next(asked, decision, now_ms)
            rows.append(row)
            written[entry.seq] = entry
            self._note_changes(self._state.apply(entry))
            replies.append(LedgerReply(entry=_ref(entry)))
        if rows:
            note = Checkpoint(self._network, self._state.tree.size, self._state.tree.root()).sign(self._key)
            fence = StoredRow(CHECKPOINT_STREAM, self._checkpoints + 1, CHECKPOINT_TOPIC, note.encode())
            self._store.append([*rows, fence])
            self._checkpoints, self._note = fence.version, note
            self._write_views()
        return replies

    def _next(self, asked: VerifiedCommand, decision: Decision, now_ms: int) -> tuple[StoredRow, Entry]:
        head = self._state.audit.head
        raw, entry = encode_entry(
            log=self._network,
            seq=head.seq + 1,
            prev=head.leaf,
            ts_ms=now_ms,
            kind=asked.kind,
            stream=decision.stream,
            version=self._state.audit.version(decision.stream) + 1,
            idem=decision.idem,
            body=asked.body,
            statement=asked.statement,
            decided=decision.decided,
            attestations=asked.attestations,
        )
        return StoredRow(entry.stream, entry.version, entry.kind, raw), entry

    def _find(self, idem: str, written: dict[int, Entry]) -> EntryRef:
        """Where a repeated command stands: earlier in this batch, or in the book."""
        found = self._state.entries.find(idem)
        if found is None:
            raise SawyerError(f"{idem} was decided as a repeat, and is not in the book")
        if found.seq in written:
            return _ref(written[found.seq])
        return _ref(decode_entry(self._store.row(found.stream, found.version).state))

    def _write_views(self) -> None:
        """Bring the views up to the book. They may lag, never lead: a failure is told and made good later."""
        if self._views is None:
            return
        folds = {fold.name: fold for fold in self._state.folds}
        rows = [(view, key, folds[view].encoded(key)) for view, keys in self._unwritten.items() for key in keys]
        try:
            self._views.write(rows, self._state.audit.head.seq)
        except SawyerError as error:
            log.warning("the views lag behind the book: %s", error)
            return
        self._unwritten.clear()

    # --- loading ----------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        """Memory, read again from the book where a failure made us drop it."""
        if self._memory is None:
            self._load()
        assert self._memory is not None
        return self._memory

    def _load(self) -> None:
        """Read memory from the book, then bring the views up to it. Memory is set only when all of it holds."""
        state = State(self._network, self._verifier.vkey, self._operator)
        viewed = self._views.head() if self._views is not None else HeadRow()
        checkpoints, last, leaf = 0, None, NO_HASH
        self._unwritten.clear()
        for row in self._store.rows():
            if row.is_checkpoint:
                checkpoints, last = checkpoints + 1, row
                continue
            entry = _read_known(row, state)
            changed = _fold_in(entry, state)
            if self._held is not None and self._held.size == entry.seq:
                check_covers(self._held, state)
            if entry.seq == viewed.seq:
                leaf = entry.leaf
            if entry.seq > viewed.seq:
                self._note_changes(changed)
        self._checkpoints, self._note = checkpoints, ""
        if last is not None:
            read_checkpoint(last, state, self._verifier, checkpoints)
            self._note = last.state.decode()
        elif state.tree.size:
            raise BookCorrupt("entries without a checkpoint", seq=state.tree.size)
        _check_trust(state, self._held)
        _check_views(viewed, state, leaf)
        self._memory = state
        if viewed.seq < state.tree.size:
            self._write_views()

    def _note_changes(self, changed: dict[str, set[str]]) -> None:
        for view, keys in changed.items():
            self._unwritten[view] |= keys


def _read_known(row: StoredRow, state: State) -> Entry:
    entry = read_next(row, state)
    if entry.body is None:
        raise SawyerError(
            f"entry {entry.seq} is of kind {entry.kind}, which this version does not know",
            hint="This book was written by a newer Sawyer: upgrade before writing to it. Replay can read it.",
        )
    return entry


def _fold_in(entry: Entry, state: State) -> dict[str, set[str]]:
    """Fold an entry that nobody has judged yet: one that names what is not there is corrupt, not our error."""
    try:
        return state.apply(entry)
    except (KeyError, ValueError) as error:
        raise BookCorrupt(f"entry {entry.seq} does not follow from those before it: {error}", seq=entry.seq) from error


def _kept(note: str, verifier: Verifier) -> Checkpoint:
    try:
        return Checkpoint.verify(note, verifier)
    except VerificationError as error:
        raise VerificationError(
            f"the kept checkpoint is not of this ledger: {error.message}",
            hint="Restore checkpoint.txt. Only if you cannot: delete it, and lose the proof of what the book held.",
        ) from error


def _check_trust(state: State, held: Checkpoint | None) -> None:
    """The book is founded by the pinned operator, and reaches the checkpoint that was kept. Raises BookCorrupt."""
    network, size = state.registry.network, state.tree.size
    if network is not None and network.operator != state.operator:
        raise BookCorrupt(f"the operator is {network.operator}, expected the pinned {state.operator}", seq=1)
    if held is not None and held.size > size:
        raise BookCorrupt(
            f"the book ends at entry {size}, and a checkpoint of {held.size} entries was kept: it was cut",
            seq=size,
            hint="Bring back the newer copy of the book. Only if there is none: delete checkpoint.txt, and know that "
            "whoever holds a later checkpoint will see the loss.",
        )


def _check_views(viewed: HeadRow, state: State, leaf: str) -> None:
    """Views may lag behind the book, never lead it, and never be of another one. `leaf`: the book's at their head."""
    if viewed.seq > state.tree.size:
        raise ViewDiffers(
            f"the views are at entry {viewed.seq}, the book ends at {state.tree.size}: it was cut, or is another one",
            hint="Bring back the newer copy of the book. Only if there is none: delete views.sqlite.",
        )
    if viewed.leaf != leaf:
        raise ViewDiffers(f"the views were made from another book: entry {viewed.seq} is not the same")


def _registered(network: NetworkId, node: str, row: NodeRow) -> NodeRegistered:
    return NodeRegistered(
        network=network, node=node, host=row.host, key=row.key, device=row.device, memory_mb=row.memory_mb
    )


def _ref(entry: Entry) -> EntryRef:
    return EntryRef(seq=entry.seq, leaf=entry.leaf, kind=entry.kind, ts_ms=entry.ts_ms, decided=entry.decided)
