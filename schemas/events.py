"""Every fact of the book, and the statements inside facts. An event's body is what its actor signed, word for word.

An entry adds what the ledger decided (`decided`: which buckets, how many tokens, who is credited); the checkpoint
commits the ledger to that. Bodies name their network, so a signature cannot be carried to another book.
Bodies may change until release 0.1.0; then the frozen corpus decides.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta
from pydantic import Field, StringConstraints

from sawyer.schemas.base import (
    Count,
    Fact,
    Hex32,
    Network,
    Positive,
    PublicKey,
    RecurringSha256,
    Sha256,
    Slug,
    Strict,
    TimeMs,
)
from sawyer.schemas.signed import Kind, Signature, Signed

ENTRY_VERSION: Final = 1
MAX_RECEIPTS: Final = 1024
MAX_FREE_TOKENS: Final = 8
"""Special tokens of one request that enter the model and are not billed."""
REQUEST_STREAM: Final = "request:"
"""How the streams of requests begin. A request has one: its reservation, then its end."""
NO_HASH: Final = "0" * 64
"""`prev` of the first entry, and `previous` of a node's first receipt."""

Role = Literal["router", "ledger", "operator"]
Device = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")]
"""The name of a processor: printable ASCII. Everybody who asks for the members is sent all of them."""
VerifierKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9./-]{0,126}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}$")]
"""A C2SP signed-note verifier key: `name+hash+base64(algorithm, public key)`."""
TierName = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_-]{0,62})?$")]
"""A tier of economy/tiers.py; empty for a grant outside the tiers."""
SealedText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/=]{0,8192}$")]
SealNonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{48}$")]


# --- statements that live inside events; they are not entries of their own ---------------------------------------


class InferenceRequested(Fact, frozen=True):
    """The client's order. `content` commits to prompt and sampling without revealing them (GenerateParams.commitment);
    `token_ceiling` is the most it will pay, in budget tokens, under the price sheet it names by hash."""

    network: Network
    request: Hex32
    account: Slug
    model: Slug
    content: Sha256
    max_tokens: Positive
    token_ceiling: Positive
    price_sheet: RecurringSha256
    issued_ms: TimeMs
    expires_ms: TimeMs


ExpertRows = tuple[Count, Count, Positive]
"""(layer, expert, rows)."""


class WorkReceipted(Fact, frozen=True):
    """A node's statement of the answers it gave and the router used in one request. `root` is the RFC 6962 root over
    one leaf an answered expert block (schemas/tensors.py: block_leaf), in order of (sequence, expert). `counter` and
    `previous` (hash of this node's last receipt) chain a node's receipts, so an omitted one shows."""

    network: Network
    node: Slug
    request: Hex32
    model: Slug
    manifest: RecurringSha256
    rows: Positive
    blocks: Positive
    experts: Annotated[tuple[ExpertRows, ...], Field(max_length=65_536), Meta(max_length=65_536)]
    root: Sha256
    counter: Positive
    previous: Sha256


class Sealed(Fact, frozen=True):
    """Personal data of one subject (an account), readable only with that subject's key, which is in no book: destroy
    the key, and nobody reads it again. XSalsa20-Poly1305 (libsodium secretbox): `nonce` 24 bytes in hex, `box`
    base64."""

    subject: Slug
    nonce: SealNonce
    box: SealedText


REQUEST_KIND: Final = "inference.requested.v1"
RECEIPT_KIND: Final = "work.receipted.v1"


# --- event bodies ---------------------------------------------------------------------------------------------------


class NetworkFounded(Fact, frozen=True):
    """Entry 1. Signed by the operator key it names: the root of every other key. `ledger_vkey` signs checkpoints."""

    network: Network
    operator: PublicKey
    ledger_vkey: VerifierKey
    mode: Literal["test", "live"]
    founded_ms: TimeMs


class KeyAdded(Fact, frozen=True):
    """The operator gives a key a role and a name. Valid from this entry on. Routers are many. There is one operator and
    one ledger key: a new one replaces the old from the next entry on, the ledger's from the next checkpoint on."""

    network: Network
    role: Role
    name: Slug
    key: PublicKey


class KeyRotated(Fact, frozen=True):
    """A node or an account takes another key, from the next entry on. Signed by the old key and by the new one."""

    network: Network
    role: Literal["node", "account"]
    name: Slug
    key: PublicKey


class KeyRevoked(Fact, frozen=True):
    """A key may sign nothing from the next entry on. Said by the operator, or by the key itself. `since_ms`: it may
    have been in other hands since then, and what it signed after that is in question; 0 if it was not."""

    network: Network
    key: PublicKey
    since_ms: TimeMs
    reason: Slug


class ModelPublished(Fact, frozen=True):
    """The operator publishes one manifest (weights and format) under a model id. `expert_parameters` is the weight of
    one row in a host's credit; a token costs `moe_layers` * `top_k` rows."""

    network: Network
    model: Slug
    manifest: RecurringSha256
    family: Slug
    format: Slug
    moe_layers: Positive
    experts: Positive
    top_k: Positive
    expert_parameters: Positive


class ModelPrice(Fact, frozen=True):
    """What one model costs in one format. `price_milli` and `quant_milli` are per mille of the base price of one budget
    token a text token."""

    model: Slug
    format: Slug
    price_milli: Positive
    quant_milli: Positive


class PricingPublished(Fact, frozen=True):
    """A price sheet, named by the SHA-256 of its canonical bytes: one price for a model and format. Weights are per
    mille a text token."""

    network: Network
    sheet: Slug
    input_weight_milli: Count
    output_weight_milli: Count
    prices: Annotated[tuple[ModelPrice, ...], Field(min_length=1, max_length=4096), Meta(min_length=1, max_length=4096)]


class NodeRegistered(Fact, frozen=True):
    """A host's node joins with its own key, and signs so. `device` and `memory_mb` are what it says of itself; what is
    paid is measured work, never these. `promised_us` is the p95 of a layer call that the host promises, the step of its
    credits (economy/credits.py); 0 if it promises nothing."""

    network: Network
    node: Slug
    host: Slug
    key: PublicKey
    device: Device
    memory_mb: Count
    promised_us: Count


class AccountOpened(Fact, frozen=True):
    """A consumer opens an account: it is its key, and signs so."""

    network: Network
    account: Slug
    key: PublicKey


class TokensGranted(Fact, frozen=True):
    """A budget: one bucket of tokens, spendable in [valid_from_ms, expires_ms). A grant of a `tier` is for one paid
    period, [valid_from_ms, period_end_ms), and lives one period longer; its id is the invoice's. Without a tier the
    period ends when the grant expires. `paid_uusd` is what was paid for it; in mode `test` no money moved. `sealed`:
    what the operator notes about it that is personal."""

    network: Network
    account: Slug
    grant: Slug
    tier: TierName
    tokens: Positive
    valid_from_ms: TimeMs
    period_end_ms: TimeMs
    expires_ms: TimeMs
    paid_uusd: Count
    mode: Literal["test", "live"]
    sealed: Annotated[tuple[Sealed, ...], Field(max_length=4), Meta(max_length=4)]


class TokensExpired(Fact, frozen=True):
    """The ledger ends a grant at or after its `expires_ms`: what is left in its bucket and not held. What a hold gives
    back to it later ends in the entry that gives it back (`decided.expired`)."""

    network: Network
    account: Slug
    grant: Slug
    tokens: Positive


class TokensReserved(Fact, frozen=True):
    """The router holds tokens before any work. `manifest` names the weights that it will run, the model's newest:
    receipts and rows are judged by these, whatever is published meanwhile. `tokens` is the price of the counted input
    plus the most output."""

    network: Network
    request: Signed[InferenceRequested]
    manifest: RecurringSha256
    input_tokens: Positive
    tokens: Positive
    expires_ms: TimeMs


class NodeRows(Fact, frozen=True):
    """Expert rows that a node computed."""

    node: Slug
    rows: Positive


class NodeLatency(Fact, frozen=True):
    """The p95 of the layer calls that the router made to a node for one request, in microseconds."""

    node: Slug
    p95_us: Positive


class InferenceCompleted(Fact, frozen=True):
    """The router posts a reservation: what the client ordered, what it got, and each node's signed receipt. Rows that
    were used and have no valid receipt are listed, and earn nothing.

    `fed_tokens` entered the model: all but the last sampled one, so input_tokens + output_tokens - 1, and up to
    MAX_FREE_TOKENS special ones that nobody is billed for (a leading <s>, a final </s>). The rows of `receipts` and
    `unreceipted` add up to exactly fed_tokens * moe_layers * top_k. `latencies` are what the router measured of each
    node that has a receipt, in order of the receipts."""

    network: Network
    request: Signed[InferenceRequested]
    input_tokens: Positive
    output_tokens: Positive
    fed_tokens: Positive
    finish: Literal["stop", "length", "cancelled"]
    receipts: Annotated[
        tuple[Signed[WorkReceipted], ...], Field(max_length=MAX_RECEIPTS), Meta(max_length=MAX_RECEIPTS)
    ]
    unreceipted: Annotated[tuple[NodeRows, ...], Field(max_length=MAX_RECEIPTS), Meta(max_length=MAX_RECEIPTS)]
    latencies: Annotated[tuple[NodeLatency, ...], Field(max_length=MAX_RECEIPTS), Meta(max_length=MAX_RECEIPTS)]


class ReservationVoided(Fact, frozen=True):
    """The router gives a hold back whole: the request failed and nothing is billed. `reason` is an error code."""

    network: Network
    account: Slug
    request: Hex32
    reason: Slug


class ReservationExpired(Fact, frozen=True):
    """The ledger gives an abandoned hold back, at or after its `expires_ms`."""

    network: Network
    account: Slug
    request: Hex32


class SnapshotTaken(Fact, frozen=True):
    """The ledger commits to what the first `size` entries come to: `digest` is the state's (ledger-format.md), in rows
    of version `rows`. So a writer may start from a copy of that state, and anybody who makes such rows can check it by
    folding."""

    network: Network
    size: Positive
    rows: Positive
    digest: Sha256


class SubjectErased(Fact, frozen=True):
    """The operator has destroyed the key of a subject: what is sealed for it stays in the book, unreadable, and nothing
    more may be sealed for it."""

    network: Network
    subject: Slug


# --- what the ledger decided ------------------------------------------------------------------------------------------


class BucketTokens(Fact, frozen=True):
    """So many tokens of one grant's bucket."""

    grant: Slug
    tokens: Positive


class HostCredit(Fact, frozen=True):
    """`work` = rows * (expert parameters // 1000): a weight, not money. `sla_milli` is what it counts for, by the
    latency that was measured and the one that was promised when the credit was decided."""

    host: Slug
    node: Slug
    rows: Positive
    work: Count
    sla_milli: Count
    measured_us: Positive
    promised_us: Count


class Decided(Fact, frozen=True):
    """What the ledger added to the actor's words. `held`: taken from available; `debited`: of what was held, consumed;
    `released`: of what was held, given back; `expired`: of what was held, given back to a grant that had expired, and
    gone with it. Only what applies to the kind is present."""

    held: tuple[BucketTokens, ...] | None = None
    debited: tuple[BucketTokens, ...] | None = None
    released: tuple[BucketTokens, ...] | None = None
    expired: tuple[BucketTokens, ...] | None = None
    credits: tuple[HostCredit, ...] | None = None


Body: TypeAlias = (
    NetworkFounded
    | KeyAdded
    | KeyRotated
    | KeyRevoked
    | ModelPublished
    | PricingPublished
    | NodeRegistered
    | AccountOpened
    | TokensGranted
    | TokensExpired
    | TokensReserved
    | InferenceCompleted
    | ReservationVoided
    | ReservationExpired
    | SnapshotTaken
    | SubjectErased
)

KINDS: Final[dict[str, type[Body]]] = {
    "network.founded.v1": NetworkFounded,
    "key.added.v1": KeyAdded,
    "key.rotated.v1": KeyRotated,
    "key.revoked.v1": KeyRevoked,
    "model.published.v1": ModelPublished,
    "pricing.published.v1": PricingPublished,
    "node.registered.v1": NodeRegistered,
    "account.opened.v1": AccountOpened,
    "tokens.granted.v1": TokensGranted,
    "tokens.expired.v1": TokensExpired,
    "tokens.reserved.v1": TokensReserved,
    "inference.completed.v1": InferenceCompleted,
    "reservation.voided.v1": ReservationVoided,
    "reservation.expired.v1": ReservationExpired,
    "snapshot.taken.v1": SnapshotTaken,
    "subject.erased.v1": SubjectErased,
}
KIND_OF: Final[dict[type[Fact], str]] = {
    **{body: kind for kind, body in KINDS.items()},
    InferenceRequested: REQUEST_KIND,
    WorkReceipted: RECEIPT_KIND,
}


def command_word(kind: str) -> str:
    """`tokens.reserved.v1` -> `tokens-reserved`: the last token of the subject that asks for such an event."""
    noun, participle, _ = kind.split(".")
    return f"{noun}-{participle}"


class EntryFrame(Strict):
    """An entry of any kind, known or not: everything about it but what its body means. `body` and `decided` are JSON
    objects whose canonical bytes stand verbatim inside the entry's own canonical bytes."""

    v: Literal[1]
    log: Network
    seq: Positive
    prev: Sha256
    ts_ms: TimeMs
    kind: Kind
    stream: Annotated[str, StringConstraints(pattern=r"^[a-z]+:[a-z0-9][a-z0-9_-]{0,62}$")]
    version: Positive
    idem: Annotated[str, StringConstraints(pattern=r"^[a-z]+:[A-Za-z0-9_:-]{1,160}$")]
    body: dict[str, object]
    decided: dict[str, object]
    attestations: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=4)]


class Successor(Strict):
    """A later key of the operator or of the ledger, as newcomers are told: the signed statement that gave it its role,
    and the size of the first checkpoint that covers it. That one is the last that the ledger's key before it signs."""

    added: Signed[KeyAdded]
    covered: Positive
