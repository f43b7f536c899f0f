"""The book: the one writer. Decides commands in order, writes a batch as one transaction, keeps the views current.

Owns memory (the folds) and their agreement with the disk: what a reply says is durable, and after any failure memory is
what the disk has. Knows no bus and no clock: times come with the calls. How memory is read from the disk: loading.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from sawyer.errors import RefusedError, SawyerError, UnknownAccount, UnknownModel, WriterFenced
from sawyer.identity.keys import Key
from sawyer.ids import AccountId, NetworkId, RequestId
from sawyer.ledger import snapshot
from sawyer.ledger.chain import verifier_of
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.commands import LEDGER_NAME, VerifiedCommand, check, command
from sawyer.ledger.decide import SNAPSHOT_STREAM, Decision, OfRequest, decide, publication_id
from sawyer.ledger.entry import CHECKPOINT_STREAM, CHECKPOINT_TOPIC, StoredRow, decode_entry, encode_entry
from sawyer.ledger.loading import Loaded, Loader
from sawyer.ledger.membership import ledger_key
from sawyer.ledger.merkle import leaf_hash
from sawyer.ledger.past import StoredPast
from sawyer.ledger.proof import InclusionProof
from sawyer.ledger.seek import entries_from
from sawyer.ledger.state import State
from sawyer.ledger.store import Store, Synchronous, open_store
from sawyer.ledger.succession import Succession
from sawyer.ledger.telling import bucket, ref, registered
from sawyer.ledger.views import Views
from sawyer.projections.balances import COMPLETED
from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    InferenceCompleted,
    KeyAdded,
    ReservationExpired,
    SnapshotTaken,
    TokensExpired,
    TokensReserved,
)
from sawyer.schemas.messages import (
    MAX_BUCKETS_TOLD,
    AccountReply,
    BalanceReply,
    EntryRef,
    LedgerCommand,
    LedgerReply,
    MembersReply,
    NetworkReply,
    PublicationReply,
)

log = logging.getLogger(__name__)

VIEWS_ENTRIES: int = 4096
"""The views lag behind the book by so many entries at most, and catch up when the writer has nothing to do."""

MOST_EXPIRED: int = 2048
"""Commands that one call of `expire` signs: the lock is held meanwhile, for some 100 ms."""


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
        successors: Sequence[Key] = (),
        views: Views | None = None,
        snapshots: Path | None = None,
        held: str | None = None,
        snapshot_entries: int = snapshot.SNAPSHOT_ENTRIES,
    ) -> None:
        """Load a book from its rows; `open` is the usual way. `ledger_key` is the one that the founding names,
        `successors` those that replaced it or are to. Raises BookCorrupt, ViewDiffers, SawyerError."""
        self._store = store
        self._views = views
        self._network = network
        self._keys: dict[str, Key] = {key.id: key for key in (ledger_key, *successors)}
        self._snapshot_entries = snapshot_entries
        self._lock = RLock()
        self._past, self._succession = StoredPast(store), Succession(store)
        self._loader = Loader(store, network, operator, ledger_key, self._past, views, snapshots, held)
        self._loaded: Loaded | None = None
        self._load()

    @classmethod
    def open(
        cls,
        where: Path | str,
        *,
        network: NetworkId,
        operator: str,
        ledger_key: Key,
        successors: Sequence[Key] = (),
        views: Path | None = None,
        held: str | None = None,
        synchronous: Synchronous = "FULL",
        snapshot_entries: int = snapshot.SNAPSHOT_ENTRIES,
    ) -> Book:
        """The book in this SQLite file, or at this address of PostgreSQL, created if missing, loaded into memory. The
        chain and the last checkpoint are verified, not every signature: that is replay's work. `operator` is the key
        that founds this network, and no other; `held` a checkpoint that was kept: a book that does not reach it, or has
        another tree there, is refused. A snapshot lies beside the views. Raises BookCorrupt, ViewDiffers,
        VerificationError (`held` is of another ledger), SawyerError."""
        store = open_store(where, synchronous)
        live: Views | None = None
        try:
            live = Views(views) if views is not None else None
            return cls(
                store,
                network=network,
                operator=operator,
                ledger_key=ledger_key,
                successors=successors,
                views=live,
                snapshots=None if views is None else views.with_name(SNAPSHOT_FILE),
                held=held,
                snapshot_entries=snapshot_entries,
            )
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
                replies = self._commit(commands, now_ms)
            except BaseException:
                self._loaded = None
                raise
            wrote = any(reply.error is None and not reply.repeated for reply in replies)
            if wrote and self._state.tree.size - self._at.snapshot_size >= self._snapshot_entries:
                self._try_snapshot(now_ms)
            return replies

    def expire(self, now_ms: int) -> list[VerifiedCommand]:
        """One signed command for each hold that is due, and for each grant that has expired with tokens left that
        nobody
        holds; commit them to release the tokens, or to end them."""
        with self._lock:
            state = self._state
            holds = sorted(
                (request, row.account)
                for request, row in state.balances.open_requests.items()
                if row.expires_ms <= now_ms
            )[:MOST_EXPIRED]
            grants = state.balances.due(now_ms)[: MOST_EXPIRED - len(holds)]
            bodies: list[ReservationExpired | TokensExpired] = [
                ReservationExpired(network=self._network, account=account, request=request)
                for request, account in holds
            ]
            bodies += [
                TokensExpired(network=self._network, account=row.account, grant=row.grant, tokens=row.available)
                for row in grants
            ]
            return [self._say(body) for body in bodies]

    def catch_up(self) -> None:
        """Bring the views up to the book. They may lag, never lead: a failure is told and made good later."""
        with self._lock:
            if self._loaded is not None:
                self._write_views()

    def close(self) -> None:
        with self._lock:
            self.catch_up()
            self._store.close()
            if self._views is not None:
                self._views.close()

    # --- asking -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many entries there are."""
        with self._lock:
            return self._state.tree.size

    @property
    def root(self) -> str:
        """The Merkle root over all entries, hex."""
        with self._lock:
            return self._state.tree.root().hex()

    @property
    def vkey(self) -> str:
        """The key that the next checkpoint will verify with."""
        with self._lock:
            return verifier_of(self._state).vkey

    def checkpoint(self) -> str:
        """The newest signed checkpoint; empty before the first entry."""
        with self._lock:
            return self._at.note

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
                expired=row.expired,
                seq=self._state.tree.size,
            )

    def account(self, account: AccountId, now_ms: int) -> AccountReply:
        """An account, and the grants that something is left of, the soonest to expire first. Raises UnknownAccount."""
        with self._lock:
            balance = self.balance(account, now_ms)
            row = self._state.balances.account(account)
            assert row is not None, "balance raises where there is none"
            return AccountReply(
                account=account,
                key=row.key,
                opened=row.seq,
                balance=balance,
                grants=row.grants,
                buckets=tuple(map(bucket, self._state.balances.buckets(account)[:MAX_BUCKETS_TOLD])),
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
                successors=self._succession.told(registry),
                models=tuple(registry.models[model] for model in sorted(registry.models)),
                pricing=registry.pricing,
                size=self.size,
                checkpoint=self._at.note,
                now_ms=now_ms,
            )

    def members(self) -> MembersReply:
        """Every registered node and every router whose key was not revoked, by name."""
        with self._lock:
            registry, nodes = self._state.registry, sorted(self._state.nodes.nodes.items())
            kept = ((row.name, key) for key, row in registry.keys.items() if key not in registry.revoked)
            routers = tuple(sorted((name, key) for name, key in kept if registry.keys[key].role == "router"))
            members = tuple(
                registered(self._network, node, row) for node, row in nodes if row.key not in registry.revoked
            )
            return MembersReply(nodes=members, routers=routers, seq=self.size)

    def completed(self, request: RequestId) -> Completed | None:
        """How a request was billed, or None if it was not."""
        with self._lock:
            row = self._state.request(request)
            if row is None or row.status != COMPLETED:
                return None
            return Completed(row.seq, row.input_tokens, row.output_tokens, row.billed_tokens)

    def entry_bytes(self, seq: int, count: int = 1) -> list[bytes]:
        """The exact bytes of `count` entries from `seq` (from 1) on. Raises SawyerError."""
        return entries_from(self._store, seq, count)

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """The hashes that show that the tree of `new_size` has all of the tree of `old_size`. Raises ValueError for
        sizes that the book has not reached, SawyerError."""
        with self._lock:
            return self._state.tree.consistency(old_size, new_size, self._leaves)

    def publication(self, model: str, manifest: str) -> PublicationReply:
        """The proof that these weights were published, whether others have replaced them or not. Raises UnknownModel if
        they never were, SawyerError."""
        with self._lock:
            found = self._state.entries.find(publication_id(model, manifest))
            if found is None or (model, manifest) not in self._state.registry.manifests:
                raise UnknownModel(f"this network never published {model} as {manifest[:16]}")
            raw, size = self._store.row(found.stream, found.version).state, self._state.tree.size
            seq = decode_entry(raw).seq
            hashes = self._state.tree.inclusion(seq - 1, size, self._leaves)
            return PublicationReply(proof=InclusionProof(seq - 1, tuple(hashes), raw, self._at.note).encode())

    def _leaves(self, first: int, count: int) -> list[bytes]:
        return [leaf_hash(raw) for raw in self.entry_bytes(first + 1, count)]

    # --- the writer's inside ----------------------------------------------------------------------------------------

    def _commit(self, commands: Sequence[VerifiedCommand], now_ms: int) -> list[LedgerReply]:
        state, at = self._state, self._at
        now_ms = max(now_ms, state.audit.head.ts_ms)  # the book's time never runs backwards
        signer = ledger_key(state)  # a key that this batch brings signs from the next one on
        known = state.balances.open_requests
        self._past.look_up({name for name in map(_new_request, commands) if name and name not in known})
        replies: list[LedgerReply] = []
        rows: list[StoredRow] = []
        written: dict[tuple[str, int], Entry] = {}
        for asked in commands:
            try:
                self._check_held_key(asked)
                decision = decide(state, asked, now_ms)
            except RefusedError as error:
                replies.append(LedgerReply.refused(error))
                continue
            if decision.repeated:
                replies.append(LedgerReply(entry=self._find(asked, decision, written), repeated=True))
                continue
            raw, entry = self._next(state, asked, decision, now_ms)
            rows.append(StoredRow(entry.stream, entry.version, entry.kind, raw))
            written[entry.stream, entry.version] = entry
            state.apply(entry)
            replies.append(LedgerReply(entry=ref(entry), repeated=False))
        if rows:
            note = Checkpoint(self._network, state.tree.size, state.tree.root()).sign(self._signing_key(signer))
            self._store.append(
                [*rows, StoredRow(CHECKPOINT_STREAM, at.checkpoints + 1, CHECKPOINT_TOPIC, note.encode())]
            )
            at.checkpoints, at.note = at.checkpoints + 1, note
            self._past.remember(state.balances.ended)
            state.balances.ended.clear()
            if state.tree.size - at.views_size >= VIEWS_ENTRIES:
                self._write_views()
        elif at.checkpoints != self._stored_checkpoints():
            raise WriterFenced("another writer has written to this book")  # these answers would be of yesterday
        return replies

    def _stored_checkpoints(self) -> int:
        newest = self._store.last(CHECKPOINT_STREAM)
        return newest.version if newest is not None else 0

    def _check_held_key(self, asked: VerifiedCommand) -> None:
        """A book whose ledger key is nowhere could never be written again."""
        body = asked.body
        if isinstance(body, KeyAdded) and body.role == "ledger" and body.key not in self._keys:
            raise RefusedError(
                f"this writer does not have the ledger key {body.key}",
                hint="`sawyer keys rotate ledger`, while the network is down, makes one and puts it in its place.",
            )

    def _next(self, state: State, asked: VerifiedCommand, decision: Decision, now_ms: int) -> tuple[bytes, Entry]:
        head = state.audit.head
        return encode_entry(
            log=self._network,
            seq=head.seq + 1,
            prev=head.leaf,
            ts_ms=now_ms,
            kind=asked.kind,
            stream=decision.stream,
            version=state.audit.version(decision.stream) + 1,
            idem=decision.idem,
            body=asked.body,
            statement=asked.statement,
            decided=decision.decided,
            attestations=asked.attestations,
            inner=asked.inner,
        )

    def _find(self, asked: VerifiedCommand, decision: Decision, written: dict[tuple[str, int], Entry]) -> EntryRef:
        """Where a repeated command stands: earlier in this batch, or in the book."""
        if isinstance(asked.body, OfRequest):
            place = (decision.stream, 1 if isinstance(asked.body, TokensReserved) else 2)
        else:
            found = self._state.entries.find(decision.idem)
            if found is None:
                raise SawyerError(f"{decision.idem} was decided as a repeat, and is not in the book")
            place = (found.stream, found.version)
        return ref(written[place] if place in written else decode_entry(self._store.row(*place).state))

    def _try_snapshot(self, now_ms: int) -> None:
        """The commit before it is durable, and is answered so, whatever becomes of the snapshot."""
        try:
            self._take_snapshot(now_ms)
        except BaseException as error:
            self._loaded = None
            if not isinstance(error, SawyerError):
                raise
            log.warning("no snapshot was taken: %s", error)

    def _take_snapshot(self, now_ms: int) -> None:
        """Commit to the state as it is now, in an entry of its own, and keep a copy of it for the next start."""
        state, at = self._state, self._at
        body = snapshot.commitment(state)
        raw = snapshot.dump(state, state.audit.version(SNAPSHOT_STREAM) + 1, at.checkpoints)
        at.snapshot_size = body.size
        (reply,) = self._commit([self._say(body)], now_ms)
        if reply.error is not None:
            raise SawyerError(f"the book refuses its own snapshot: {reply.error.message}")
        self._loader.keep_snapshot(raw)
        self._write_views()

    def _say(self, body: ReservationExpired | TokensExpired | SnapshotTaken) -> VerifiedCommand:
        """A command of the ledger's own: signed here and now, so there is nothing to verify."""
        signed = command(body, LEDGER_NAME, self._signing_key(ledger_key(self._state)))
        return VerifiedCommand(signed.kind, body, body.canonical(), signed.attestations, inner=())

    def _signing_key(self, key_id: str) -> Key:
        key = self._keys.get(key_id)
        if key is None:
            raise SawyerError(
                f"the ledger's key is {key_id} now, and it is not here",
                hint="Bring the seed file that the rotation made into keys/ledgers/ of this home.",
            )
        return key

    def _write_views(self) -> None:
        """See catch_up."""
        at, state = self._at, self._state
        if at.views_size == state.tree.size:
            return
        if self._views is None:
            at.views_size = state.tree.size
            for fold in state.folds:
                fold.changed.clear()
            return
        rows = [(fold.name, key, fold.encoded(key)) for fold in state.folds for key in fold.changed]
        try:
            self._views.write(rows, state.tree.size)
        except SawyerError as error:
            log.warning("the views lag behind the book: %s", error)
            return
        at.views_size = state.tree.size
        for fold in state.folds:
            fold.changed.clear()

    @property
    def _at(self) -> Loaded:
        """Memory, read again from the book where a failure made us drop it."""
        if self._loaded is None:
            self._load()
        assert self._loaded is not None
        return self._loaded

    @property
    def _state(self) -> State:
        return self._at.state

    def _load(self) -> None:
        """Read memory from the book, then bring the views up to it. Memory is set only when all of it holds."""
        self._past.forget()
        self._loaded = self._loader.load()
        self._write_views()


SNAPSHOT_FILE = "snapshot.bin"
"""Beside the views."""


def _new_request(asked: VerifiedCommand) -> str:
    """The request that a command is about; "" if it is about none."""
    body = asked.body
    if not isinstance(body, OfRequest):
        return ""
    return body.request.body.request if isinstance(body, TokensReserved | InferenceCompleted) else body.request
