"""Who acts in the corpus: keys that everybody knows, and every command that their holders sign. Writes nothing.

Never use these keys: their secret halves are 32 equal bytes, and stand in docs/ledger-format.md.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Final

from nacl.secret import SecretBox

from sawyer.economy.periods import paid_period
from sawyer.economy.pricing import price_tokens, sheet_hash
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import vkey_of
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME, VerifiedCommand, check, command
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
    ReservationVoided,
    Sealed,
    SubjectErased,
    TokensGranted,
    TokensReserved,
    WorkReceipted,
)
from sawyer.schemas.signed import Signed

NETWORK: Final = "corpus-net/00000001"
SECRETS: Final = {
    "operator": 1, "ledger": 2, "router": 3, "node-a": 4, "alice": 5, "node-b": 6, "router-2": 7, "node-a-2": 8,
    "alice-2": 9, "ledger-2": 10, "operator-2": 11, "bea": 12,
}  # fmt: skip
"""Name -> the byte that its 32 secret bytes repeat."""
KEYS: Final = {
    name: Key.from_raw(bytes([byte]) * 32, "O" if name.startswith("operator") else "U")
    for name, byte in SECRETS.items()
}
VKEYS: Final = tuple(vkey_of(NETWORK, KEYS[name]) for name in ("ledger", "ledger-2"))
OPERATOR: Final = KEYS["operator"].id
MODEL: Final = "austen"
MANIFESTS: Final = {"f32": "a1" * 32, "q8": "b2" * 32}
PRICES: Final = {"f32": 1000, "q8": 800}
ROWS_PER_TOKEN: Final = 8
"""Expert rows that one token costs: 4 layers, 2 experts each."""
_SEAL_KEY: Final = b"destroyed when alice was erased!"


def founding(at_ms: int) -> VerifiedCommand:
    return by_operator(
        NetworkFounded(network=NETWORK, operator=OPERATOR, ledger_vkey=VKEYS[0], mode="test", founded_ms=at_ms)
    )


def say(body: Body, key: str, by: str = "", *also: str) -> VerifiedCommand:
    """This body, signed with this key (and `also` with these) as the name `by`."""
    return check(command(body, by or key, KEYS[key], *(KEYS[each] for each in also)))


def by_operator(body: Body, key: str = "operator") -> VerifiedCommand:
    return say(body, key, OPERATOR_NAME)


def add_key(role: str, name: str, key: str, by: str = "operator") -> VerifiedCommand:
    return by_operator(KeyAdded(network=NETWORK, role=role, name=name, key=KEYS[key].id), by)  # type: ignore[arg-type]


def rotate(role: str, name: str, key: str) -> VerifiedCommand:
    """From the key that has its holder's name to another one; both sign."""
    body = KeyRotated(network=NETWORK, role=role, name=name, key=KEYS[key].id)  # type: ignore[arg-type]
    return say(body, name, name, key)


def revoke(
    key: str, reason: str, *, since_ms: int = 0, by: str = "operator", name: str = OPERATOR_NAME
) -> VerifiedCommand:
    return say(KeyRevoked(network=NETWORK, key=KEYS[key].id, since_ms=since_ms, reason=reason), by, name)


def model(fmt: str) -> ModelPublished:
    return ModelPublished(
        network=NETWORK, model=MODEL, manifest=MANIFESTS[fmt], family="mixtral", format=fmt, moe_layers=4, experts=8,
        top_k=2, expert_parameters=221_184,
    )  # fmt: skip


def sheet(name: str, *formats: str) -> PricingPublished:
    prices = (ModelPrice(model=MODEL, format=fmt, price_milli=1000, quant_milli=PRICES[fmt]) for fmt in formats)
    return PricingPublished(
        network=NETWORK, sheet=name, input_weight_milli=1000, output_weight_milli=1000, prices=tuple(prices)
    )


def node(name: str, host: str, promised_us: int) -> VerifiedCommand:
    body = NodeRegistered(
        network=NETWORK, node=name, host=host, key=KEYS[name].id, device='"CPU", 2 cores', memory_mb=4096,
        promised_us=promised_us,
    )  # fmt: skip
    return say(body, name)


def account(name: str) -> VerifiedCommand:
    return say(AccountOpened(network=NETWORK, account=name, key=KEYS[name].id), name)


def grant(name: str, start_ms: int, tokens: int, *, sealed: str = "", by: str = "operator") -> VerifiedCommand:
    """A paid period of the tier `explorer` that starts here."""
    end_ms, last_ms = paid_period(start_ms)
    body = TokensGranted(
        network=NETWORK, account="alice", grant=name, tier="explorer", tokens=tokens, valid_from_ms=start_ms,
        period_end_ms=end_ms, expires_ms=last_ms, paid_uusd=tokens * 10, mode="test", sealed=_sealed(sealed),
    )  # fmt: skip
    return by_operator(body, by)


def gift(name: str, start_ms: int, end_ms: int, tokens: int, *, by: str) -> VerifiedCommand:
    """A grant outside the tiers, that nobody paid for."""
    body = TokensGranted(
        network=NETWORK, account="alice", grant=name, tier="", tokens=tokens, valid_from_ms=start_ms,
        period_end_ms=end_ms, expires_ms=end_ms, paid_uusd=0, mode="test", sealed=(),
    )  # fmt: skip
    return by_operator(body, by)


def order(
    number: int, at_ms: int, prices: PricingPublished, *, max_tokens: int, key: str = "alice"
) -> Signed[InferenceRequested]:
    """Alice's order number so and so."""
    body = InferenceRequested(
        network=NETWORK, request=f"{number:032x}", account="alice", model=MODEL, content=_hash(f"prompt {number}"),
        max_tokens=max_tokens, token_ceiling=1_000_000, price_sheet=sheet_hash(prices), issued_ms=at_ms,
        expires_ms=at_ms + 60_000,
    )  # fmt: skip
    return sign(body, REQUEST_KIND, "alice", KEYS[key])


def reserve(
    asked: Signed[InferenceRequested], prices: PricingPublished, fmt: str, input_tokens: int, *, router: str = "router"
) -> VerifiedCommand:
    """For ten minutes from when it was ordered."""
    body = TokensReserved(
        network=NETWORK, request=asked, manifest=MANIFESTS[fmt], input_tokens=input_tokens,
        tokens=price_tokens(prices, MODEL, fmt, input_tokens, asked.body.max_tokens),
        expires_ms=asked.body.issued_ms + 600_000,
    )  # fmt: skip
    return say(body, router)


class Receipts:
    """The nodes' chains of receipts, in the order in which they are signed."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, str]] = {}

    def of(
        self, asked: Signed[InferenceRequested], fmt: str, name: str, rows: int, key: str = ""
    ) -> Signed[WorkReceipted]:
        """For rows of two experts of layer 0."""
        counter, previous = self._last.get(name, (0, NO_HASH))
        body = WorkReceipted(
            network=NETWORK, node=name, request=asked.body.request, model=MODEL, manifest=MANIFESTS[fmt], rows=rows,
            blocks=2, experts=((0, 1, rows - 3), (0, 3, 3)), root=_hash(f"{name} {asked.body.request}"),
            counter=counter + 1, previous=previous,
        )  # fmt: skip
        receipt = sign(body, RECEIPT_KIND, name, KEYS[key or name])
        self._last[name] = (counter + 1, hashlib.sha256(receipt.canonical()).hexdigest())
        return receipt


def complete(
    asked: Signed[InferenceRequested], input_tokens: int, output_tokens: int, fed_tokens: int,
    receipts: tuple[Signed[WorkReceipted], ...], latencies: tuple[int, ...], *, unreceipted: tuple[NodeRows, ...] = (),
    router: str = "router", finish: str = "length",
) -> VerifiedCommand:  # fmt: skip
    body = InferenceCompleted(
        network=NETWORK, request=asked, input_tokens=input_tokens, output_tokens=output_tokens, fed_tokens=fed_tokens,
        finish=finish, receipts=receipts, unreceipted=unreceipted,  # type: ignore[arg-type]
        latencies=tuple(
            NodeLatency(node=receipt.body.node, p95_us=p95_us)
            for receipt, p95_us in zip(receipts, latencies, strict=True)
        ),
    )  # fmt: skip
    return say(body, router)


def void(asked: Signed[InferenceRequested], reason: str, *, router: str = "router") -> VerifiedCommand:
    body = ReservationVoided(network=NETWORK, account="alice", request=asked.body.request, reason=reason)
    return say(body, router)


def erase(by: str) -> VerifiedCommand:
    return by_operator(SubjectErased(network=NETWORK, subject="alice"), by)


def as_ledger(body: Body, key: str = "ledger") -> VerifiedCommand:
    return say(body, key, LEDGER_NAME)


def _sealed(text: str) -> tuple[Sealed, ...]:
    if not text:
        return ()
    nonce = hashlib.sha256(text.encode()).digest()[: SecretBox.NONCE_SIZE]
    box = SecretBox(_SEAL_KEY).encrypt(text.encode(), nonce).ciphertext
    return (Sealed(subject="alice", nonce=nonce.hex(), box=base64.b64encode(box).decode()),)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
