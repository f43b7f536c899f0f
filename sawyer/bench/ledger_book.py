"""Makes books to measure with: a network of eight nodes and many accounts whose requests follow one another. What is
measured is the ledger, so prompts and answers are numbers only; keys, signatures, chains and rules are the real ones.

Everybody's key follows from their name, so two runs make the same book.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from sawyer.economy.pricing import sheet_hash
from sawyer.identity.envelope import attest, sign
from sawyer.identity.keys import Key
from sawyer.ids import NetworkId
from sawyer.ledger.book import Book
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import OPERATOR_NAME, VerifiedCommand
from sawyer.ledger.entry import inner_statements
from sawyer.ledger.store import Synchronous
from sawyer.schemas.events import (
    KIND_OF,
    NO_HASH,
    RECEIPT_KIND,
    REQUEST_KIND,
    AccountOpened,
    Body,
    ExpertRows,
    InferenceCompleted,
    InferenceRequested,
    KeyAdded,
    ModelPrice,
    ModelPublished,
    NetworkFounded,
    NodeLatency,
    NodeRegistered,
    PricingPublished,
    ReservationVoided,
    TokensGranted,
    TokensReserved,
    WorkReceipted,
)
from sawyer.schemas.signed import Signed

NETWORK: Final = NetworkId("sawyer-bench/0badcafe")
START_MS: Final = 1_700_000_000_000
MODEL: Final = "bench"
MANIFEST: Final = hashlib.sha256(b"a model that nobody runs").hexdigest()
LAYERS: Final = 4
EXPERTS: Final = 8
TOP_K: Final = 2
INPUT_TOKENS: Final = 25
OUTPUT_TOKENS: Final = 8
FED_TOKENS: Final = INPUT_TOKENS + OUTPUT_TOKENS - 1
GRANT_TOKENS: Final = 500_000_000
HOLD_MS: Final = 600_000
BATCH_PAIRS: Final = 32
"""Requests in one commit, of a book that is made whole: as many as keep a busy writer's batches full."""


@dataclass
class LedgerNetwork:
    """Who is there, and what they say. Commands are signed, and taken as verified: whoever measures verifying does
    it."""

    nodes: int = 8
    accounts: int = 1000
    _receipts: dict[str, tuple[int, str]] = field(default_factory=dict)

    @cached_property
    def operator(self) -> Key:
        return _key("operator", "O")

    @cached_property
    def ledger(self) -> Key:
        return _key("ledger")

    @cached_property
    def router(self) -> Key:
        return _key("router")

    @cached_property
    def account_keys(self) -> dict[str, Key]:
        return {name: _key(name) for name in (f"account-{number}" for number in range(self.accounts))}

    @cached_property
    def node_keys(self) -> dict[str, Key]:
        return {name: _key(name) for name in (f"node-{number}" for number in range(self.nodes))}

    @property
    def vkey(self) -> str:
        return vkey_of(NETWORK, self.ledger)

    @cached_property
    def sheet(self) -> PricingPublished:
        price = ModelPrice(model=MODEL, format="q4", price_milli=1000, quant_milli=1000)
        return PricingPublished(
            network=NETWORK, sheet="bench", input_weight_milli=1000, output_weight_milli=1000, prices=(price,)
        )

    @cached_property
    def model(self) -> ModelPublished:
        return ModelPublished(
            network=NETWORK, model=MODEL, manifest=MANIFEST, family="mixtral", format="q4", moe_layers=LAYERS,
            experts=EXPERTS, top_k=TOP_K, expert_parameters=1_000_000,
        )  # fmt: skip

    def opening(self) -> Iterator[VerifiedCommand]:
        """The founding, the members, and a paid grant for each account."""
        founding = NetworkFounded(
            network=NETWORK, operator=self.operator.id, ledger_vkey=self.vkey, mode="test", founded_ms=START_MS
        )
        router = KeyAdded(network=NETWORK, role="router", name="router", key=self.router.id)
        for body in (founding, router, self.model, self.sheet):
            yield _say(body, OPERATOR_NAME, self.operator)
        for number, (node, key) in enumerate(self.node_keys.items()):
            registered = NodeRegistered(
                network=NETWORK, node=node, host=f"host-{number // 2}", key=key.id, device="CPU", memory_mb=4096,
                promised_us=3000,
            )  # fmt: skip
            yield _say(registered, node, key)
        for account, key in self.account_keys.items():
            yield _say(AccountOpened(network=NETWORK, account=account, key=key.id), account, key)
            grant = TokensGranted(
                network=NETWORK, account=account, grant=f"grant-{account}", tier="", tokens=GRANT_TOKENS,
                valid_from_ms=START_MS, period_end_ms=START_MS * 2, expires_ms=START_MS * 2,
                paid_uusd=GRANT_TOKENS * 10, mode="test", sealed=(),
            )  # fmt: skip
            yield _say(grant, OPERATOR_NAME, self.operator)

    def request(self, number: int, now_ms: int) -> tuple[VerifiedCommand, VerifiedCommand]:
        """(reservation, completion) of request `number` with a receipt of every node: 4 + `nodes` signatures. Call it
        with ascending numbers: nodes chain their receipts. Without nodes it is voided: 3 signatures."""
        account = f"account-{number % self.accounts}"
        order = self._order(number, account, now_ms)
        reserved = TokensReserved(
            network=NETWORK, request=order, manifest=MANIFEST, input_tokens=INPUT_TOKENS,
            tokens=INPUT_TOKENS + OUTPUT_TOKENS, expires_ms=now_ms + HOLD_MS,
        )  # fmt: skip
        if not self.nodes:
            voided = ReservationVoided(
                network=NETWORK, account=account, request=order.body.request, reason="expert_unavailable"
            )
            return _say(reserved, "router", self.router), _say(voided, "router", self.router)
        receipts = tuple(self._receipt(order, node) for node in self.node_keys)
        completed = InferenceCompleted(
            network=NETWORK, request=order, input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS,
            fed_tokens=FED_TOKENS, finish="length", receipts=receipts, unreceipted=(),
            latencies=tuple(NodeLatency(node=node, p95_us=1000 + 700 * (number % 5)) for node in self.node_keys),
        )  # fmt: skip
        return _say(reserved, "router", self.router), _say(completed, "router", self.router)

    def open(self, path: Path, views: Path | None = None, synchronous: Synchronous = "NORMAL") -> Book:
        """The book in this file."""
        return Book.open(
            path,
            network=NETWORK,
            operator=self.operator.id,
            ledger_key=self.ledger,
            views=views,
            synchronous=synchronous,
        )

    def _order(self, number: int, account: str, now_ms: int) -> Signed[InferenceRequested]:
        digest = hashlib.sha256(b"request %d" % number).hexdigest()
        order = InferenceRequested(
            network=NETWORK, request=digest[:32], account=account, model=MODEL, content=digest,
            max_tokens=OUTPUT_TOKENS, token_ceiling=1_000, price_sheet=sheet_hash(self.sheet), issued_ms=now_ms,
            expires_ms=now_ms + 60_000,
        )  # fmt: skip
        return sign(order, REQUEST_KIND, account, self.account_keys[account])

    def _receipt(self, order: Signed[InferenceRequested], node: str) -> Signed[WorkReceipted]:
        counter, previous = self._receipts.get(node, (0, NO_HASH))
        experts = self._experts[node]
        receipt = WorkReceipted(
            network=NETWORK, node=node, request=order.body.request, model=MODEL, manifest=MANIFEST,
            rows=sum(rows for _, _, rows in experts), blocks=len(experts), experts=experts,
            root=hashlib.sha256(f"{node} {order.body.request}".encode()).hexdigest(), counter=counter + 1,
            previous=previous,
        )  # fmt: skip
        signed = sign(receipt, RECEIPT_KIND, node, self.node_keys[node])
        self._receipts[node] = (counter + 1, hashlib.sha256(signed.canonical()).hexdigest())
        return signed

    @cached_property
    def _experts(self) -> dict[str, tuple[ExpertRows, ...]]:
        """Node -> the experts that it computes in every request: all of them in turn, each with an equal share of
        rows."""
        blocks = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
        rows = FED_TOKENS * TOP_K // EXPERTS
        return {
            node: tuple((layer, expert, rows) for layer, expert in blocks[number :: self.nodes])
            for number, node in enumerate(self.node_keys)
        }


def write_book(path: Path, requests: int, *, network: LedgerNetwork | None = None, views: Path | None = None) -> int:
    """A new book with so many completed requests, two entries each after the opening. The number of its entries.
    Raises SawyerError."""
    who = network or LedgerNetwork()
    book = who.open(path, views)
    try:
        commit_all(book, list(who.opening()), START_MS)
        for first in range(0, requests, BATCH_PAIRS):
            now_ms = START_MS + 1 + first
            pairs = [who.request(number, now_ms) for number in range(first, min(first + BATCH_PAIRS, requests))]
            commit_all(book, [reserved for reserved, _ in pairs] + [completed for _, completed in pairs], now_ms)
        return book.size
    finally:
        book.close()


def commit_all(book: Book, commands: list[VerifiedCommand], now_ms: int) -> None:
    """Commit these as one batch. Raises the first refusal."""
    for reply in book.commit(commands, now_ms):
        if reply.error is not None:
            raise reply.error.to_error()


def _say(body: Body, by: str, key: Key) -> VerifiedCommand:
    kind, statement = KIND_OF[type(body)], body.canonical()
    signed = (attest(statement, kind, by, key),)
    return VerifiedCommand(kind, body, statement, signed, inner_statements(body, statement))


def _key(name: str, kind: str = "U") -> Key:
    return Key.from_raw(hashlib.sha256(f"sawyer bench {name}".encode()).digest(), "O" if kind == "O" else "U")
