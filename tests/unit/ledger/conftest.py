"""A small network that acts: every command its members can give, signed with their own keys. tests/contract and others
use it too (their conftest.py is a link to this one)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME, VerifiedCommand, check, command
from sawyer.ledger.decide import decide
from sawyer.ledger.entry import encode_entry
from sawyer.ledger.snapshot import SNAPSHOT_ENTRIES
from sawyer.ledger.state import State
from sawyer.projections.fold import Entry
from sawyer.schemas.events import (
    NO_HASH,
    RECEIPT_KIND,
    REQUEST_KIND,
    AccountOpened,
    Body,
    InferenceCompleted,
    InferenceRequested,
    KeyAdded,
    KeyRevoked,
    KeyRotated,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
    NodeLatency,
    NodeRegistered,
    NodeRows,
    PricingPublished,
    ReservationExpired,
    ReservationVoided,
    Sealed,
    SubjectErased,
    TokensExpired,
    TokensGranted,
    TokensReserved,
    WorkReceipted,
)
from sawyer.schemas.signed import Signed

NETWORK = "sawyer-net/3f9a1c22"
NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
MANIFEST = "ab" * 32
ROWS_PER_TOKEN = 8
SPARE_KEYS = ("alice-2", "alice-3", "node-a-2", "node-a-3", "ledger-2", "ledger-3", "router-2")
"""Keys that nobody has yet, beside `operator-2`."""


def request_id(number: int) -> str:
    return hashlib.sha256(b"request %d" % number).hexdigest()[:32]


@dataclass
class Scene:
    """Who is there, and what they say. Every method makes a checked command; none writes anything."""

    keys: dict[str, Key]
    network: str = NETWORK
    now_ms: int = NOW_MS
    receipts: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def vkey(self) -> str:
        return vkey_of(self.network, self.keys["ledger"])

    @property
    def operator(self) -> str:
        return self.keys["operator"].id

    @property
    def sheet(self) -> PricingPublished:
        return PricingPublished(
            network=self.network, sheet="2026-01", input_weight_milli=1000, output_weight_milli=1000,
            prices=(ModelPrice(model="austen", format="f32", price_milli=1000, quant_milli=1000),),
        )  # fmt: skip

    @property
    def model(self) -> ModelPublished:
        return ModelPublished(
            network=self.network, model="austen", manifest=MANIFEST, family="mixtral", format="f32", moe_layers=4,
            experts=8, top_k=2, expert_parameters=221_184,
        )  # fmt: skip

    def say(self, body: Body, key: str, by: str = "") -> VerifiedCommand:
        """This body, signed with this key, as the name `by` (the key's own by default)."""
        named = {"operator": OPERATOR_NAME, "ledger": LEDGER_NAME}.get(key, key)
        return check(command(body, by or named, self.keys[key]))

    def founding(self) -> VerifiedCommand:
        body = NetworkFounded(
            network=self.network, operator=self.keys["operator"].id, ledger_vkey=self.vkey, mode="test",
            founded_ms=self.now_ms,
        )  # fmt: skip
        return self.say(body, "operator")

    def members(self) -> list[VerifiedCommand]:
        """Everybody but the tokens: a router, a model, its price, two nodes of two hosts, one account."""
        router = KeyAdded(network=self.network, role="router", name="router", key=self.keys["router"].id)
        return [
            self.founding(),
            self.say(router, "operator"),
            self.say(self.model, "operator"),
            self.say(self.sheet, "operator"),
            self.node("node-a", "bob"),
            self.node("node-b", "carol"),
            self.account(),
        ]

    def opening(self, tokens: int = 500_000) -> list[VerifiedCommand]:
        """The members, and alice's first grant."""
        return [*self.members(), self.grant("january", tokens)]

    def node(self, node: str, host: str, key: str = "", promised_us: int = 0) -> VerifiedCommand:
        body = NodeRegistered(
            network=self.network, node=node, host=host, key=self.keys[key or node].id, device="CPU", memory_mb=4096,
            promised_us=promised_us,
        )  # fmt: skip
        return self.say(body, key or node, by=node)

    def account(self, account: str = "alice", key: str = "") -> VerifiedCommand:
        body = AccountOpened(network=self.network, account=account, key=self.keys[key or account].id)
        return self.say(body, key or account, by=account)

    def grant(
        self, grant: str, tokens: int, *, start_ms: int = 0, end_ms: int = 30 * DAY_MS, paid_uusd: int | None = None,
        account: str = "alice", by: str = "operator", tier: str = "", period_ms: int | None = None,
        sealed: tuple[Sealed, ...] = (),
    ) -> VerifiedCommand:  # fmt: skip
        """Spendable from `start_ms` to `end_ms` after now; paid at the tier price unless said otherwise."""
        body = TokensGranted(
            network=self.network, account=account, grant=grant, tier=tier, tokens=tokens,
            valid_from_ms=self.now_ms + start_ms,
            period_end_ms=self.now_ms + (end_ms if period_ms is None else start_ms + period_ms),
            expires_ms=self.now_ms + end_ms, paid_uusd=tokens * 10 if paid_uusd is None else paid_uusd, mode="test",
            sealed=sealed,
        )  # fmt: skip
        return self.say(body, by)

    def order(
        self, number: int = 1, *, key: str = "alice", by: str = "alice", **changes: object
    ) -> Signed[InferenceRequested]:
        """Alice's order of at most 3 tokens."""
        fields = {
            "network": self.network, "request": request_id(number), "account": "alice", "model": "austen",
            "content": "cd" * 32, "max_tokens": 3, "token_ceiling": 1_000_000_000,
            "price_sheet": sheet_hash(self.sheet),
            "issued_ms": self.now_ms, "expires_ms": self.now_ms + 60_000, **changes,
        }  # fmt: skip
        return sign(InferenceRequested(**fields), REQUEST_KIND, by, self.keys[key])  # type: ignore[arg-type]

    def reserve(
        self, order: Signed[InferenceRequested], *, input_tokens: int = 5, tokens: int | None = None,
        hold_ms: int = 600_000, by: str = "router", signer: str = "router", manifest: str = MANIFEST,
    ) -> VerifiedCommand:  # fmt: skip
        price = price_tokens(self.sheet, "austen", "f32", input_tokens, order.body.max_tokens)
        body = TokensReserved(
            network=self.network, request=order, manifest=manifest, input_tokens=input_tokens,
            tokens=price if tokens is None else tokens,
            expires_ms=self.now_ms + hold_ms,
        )  # fmt: skip
        return self.say(body, signer, by=by)

    def receipt(
        self, order: Signed[InferenceRequested], rows: int, *, node: str = "node-a", key: str = "", **changes: object
    ) -> Signed[WorkReceipted]:
        """The node's next receipt; nobody else's memory moves when it is not used."""
        counter, previous = self.receipts.get(node, (0, NO_HASH))
        fields = {
            "network": self.network, "node": node, "request": order.body.request, "model": "austen",
            "manifest": MANIFEST, "rows": rows, "blocks": 1, "experts": ((0, 1, rows),), "root": "ef" * 32,
            "counter": counter + 1, "previous": previous, **changes,
        }  # fmt: skip
        return sign(WorkReceipted(**fields), RECEIPT_KIND, node, self.keys[key or node])  # type: ignore[arg-type]

    def chain_of_receipts(self, count: int) -> list[tuple[Signed[InferenceRequested], Signed[WorkReceipted]]]:
        """Orders 1 to count, each with node-a's receipt for all its rows, as the node signs them one by one."""
        made = []
        for number in range(1, count + 1):
            order = self.order(number)
            made.append((order, self.delivered(self.receipt(order, 56))))
        return made

    def delivered(self, receipt: Signed[WorkReceipted]) -> Signed[WorkReceipted]:
        """Remember this receipt as its node's last."""
        digest = hashlib.sha256(receipt.canonical()).hexdigest()
        self.receipts[receipt.body.node] = (receipt.body.counter, digest)
        return receipt

    def complete(
        self, order: Signed[InferenceRequested], *, input_tokens: int = 5, output_tokens: int = 3,
        receipts: tuple[Signed[WorkReceipted], ...] | None = None, unreceipted: tuple[NodeRows, ...] = (),
        fed_tokens: int = 0, signer: str = "router", p95_us: int = 1500,
    ) -> VerifiedCommand:  # fmt: skip
        """By default node-a did all the work."""
        fed = fed_tokens or input_tokens + output_tokens - 1
        if receipts is None:
            receipts = (self.delivered(self.receipt(order, fed * ROWS_PER_TOKEN)),)
        body = InferenceCompleted(
            network=self.network, request=order, input_tokens=input_tokens, output_tokens=output_tokens, fed_tokens=fed,
            finish="length", receipts=receipts, unreceipted=unreceipted,
            latencies=tuple(NodeLatency(node=receipt.body.node, p95_us=p95_us) for receipt in receipts),
        )  # fmt: skip
        return self.say(body, signer, by="router")

    def void(self, order: Signed[InferenceRequested], *, reason: str = "expert_unavailable") -> VerifiedCommand:
        body = ReservationVoided(
            network=self.network, account=order.body.account, request=order.body.request, reason=reason
        )
        return self.say(body, "router")

    def expiry(self, order: Signed[InferenceRequested], key: str = "ledger") -> VerifiedCommand:
        body = ReservationExpired(network=self.network, account=order.body.account, request=order.body.request)
        return self.say(body, key, by="ledger")

    def lapse(self, grant: str, tokens: int, *, account: str = "alice", key: str = "ledger") -> VerifiedCommand:
        body = TokensExpired(network=self.network, account=account, grant=grant, tokens=tokens)
        return self.say(body, key, by="ledger")

    def add_key(self, role: str, key: str, *, by: str = "operator", name: str = "") -> VerifiedCommand:
        """The operator gives a key a role; `by` is the key that says so, as the operator."""
        named = name or (key if role == "router" else role)
        body = KeyAdded(network=self.network, role=role, name=named, key=self.keys[key].id)  # type: ignore[arg-type]
        return self.say(body, by, by="operator")

    def rotate(self, role: str, name: str, new: str, *, old: str = "", also: str = "") -> VerifiedCommand:
        """A node or account takes a new key: signed by the old (its own by default) and the new (or `also`)."""
        body = KeyRotated(network=self.network, role=role, name=name, key=self.keys[new].id)  # type: ignore[arg-type]
        return check(command(body, name, self.keys[old or name], self.keys[also or new]))

    def revoke(self, key: str, *, by: str = "operator", name: str = "", since_ms: int = 0) -> VerifiedCommand:
        body = KeyRevoked(network=self.network, key=self.keys[key].id, since_ms=since_ms, reason="stolen")
        return self.say(body, by, by=name)

    def erase(self, subject: str = "alice", *, by: str = "operator") -> VerifiedCommand:
        return self.say(SubjectErased(network=self.network, subject=subject), by, by="operator")

    def open(
        self, folder: Path, *, views: bool = True, synchronous: str = "NORMAL", held: str | None = None,
        url: str = "", successors: tuple[str, ...] = (), snapshot_entries: int = SNAPSHOT_ENTRIES,
    ) -> Book:  # fmt: skip
        """The book in this folder, or at this address with its views in the folder."""
        return Book.open(
            url or folder / "book.sqlite", network=self.network, operator=self.operator, ledger_key=self.keys["ledger"],
            successors=[self.keys[name] for name in successors],
            views=folder / "views.sqlite" if views else None, held=held, synchronous=synchronous,
            snapshot_entries=snapshot_entries,
        )  # fmt: skip

    def work(self, book: Book, requests: int, *, start: int = 1) -> None:
        """Found the network if the book is empty, then run so many requests: every third is voided."""
        if not book.size:
            expect_all(book.commit(self.opening(), self.now_ms))
        for number in range(start, start + requests):
            order = self.order(number)
            end = self.void(order) if number % 3 == 0 else self.complete(order)
            expect_all(book.commit([self.reserve(order)], self.now_ms))
            expect_all(book.commit([end], self.now_ms))


def expect_all(replies: list) -> None:
    assert [reply.error for reply in replies] == [None] * len(replies)


class Judge:
    """The writer's mind without a database: decides, and folds what it allows."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.state = State(scene.network, scene.vkey, scene.operator)

    def write(self, *commands: VerifiedCommand, now_ms: int | None = None) -> list[Entry]:
        return [self._write(asked, now_ms) for asked in commands]

    def _write(self, asked: VerifiedCommand, now_ms: int | None) -> Entry:
        at_ms = self.scene.now_ms if now_ms is None else now_ms
        decision = decide(self.state, asked, at_ms)
        assert not decision.repeated
        head = self.state.audit.head
        _, entry = encode_entry(
            log=self.scene.network, seq=head.seq + 1, prev=head.leaf, ts_ms=at_ms, kind=asked.kind,
            stream=decision.stream, version=self.state.audit.version(decision.stream) + 1, idem=decision.idem,
            body=asked.body, statement=asked.statement, decided=decision.decided, attestations=asked.attestations,
        )  # fmt: skip
        self.state.apply(entry)
        return entry


@pytest.fixture
def scene(keys: dict[str, Key]) -> Scene:
    spare = {name: Key.from_raw(bytes([number]) * 32) for number, name in enumerate(SPARE_KEYS, start=30)}
    return Scene({**keys, **spare, "operator-2": Key.from_raw(bytes([98]) * 32, "O")})


@pytest.fixture
def judge(scene: Scene) -> Judge:
    """Sits in an opened network: alice has 500,000 tokens."""
    made = Judge(scene)
    made.write(*scene.opening())
    return made


@pytest.fixture
def judge_of() -> type[Judge]:
    """Makes a judge of any scene."""
    return Judge


@pytest.fixture
def empty_judge(scene: Scene) -> Judge:
    return Judge(scene)


@pytest.fixture
def book(scene: Scene, tmp_path: Path) -> Iterator[Book]:
    """An opened network in a SQLite book with live views."""
    made = scene.open(tmp_path)
    expect_all(made.commit(scene.opening(), scene.now_ms))
    yield made
    made.close()
