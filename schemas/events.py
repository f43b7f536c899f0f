"""Every fact of the book, and the statements inside facts. An event's body is what its actor signed, word for word.

An entry adds what the ledger decided (`decided`: which buckets, how many tokens, who is credited); the checkpoint
commits the ledger to that. Bodies name their network, so a signature cannot be carried to another book.
Bodies may change until release 0.1.0; then the frozen corpus decides.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, StringConstraints

from sawyer.schemas.base import (
    Count,
    Hex32,
    Network,
    Positive,
    PublicKey,
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
NO_HASH: Final = "0" * 64
"""`prev` of the first entry, and `previous` of a node's first receipt."""

Role = Literal["router", "ledger"]
Device = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")]
"""The name of a processor: printable ASCII. Everybody who asks for the members is sent all of them."""
VerifierKey = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9./-]{0,126}\+[0-9a-f]{8}\+[A-Za-z0-9+/]{44}$")]
"""A C2SP signed-note verifier key: `name+hash+base64(algorithm, public key)`."""


# --- statements that live inside events; they are not entries of their own ---------------------------------------


class InferenceRequested(Strict):
    """The client's order. `content` commits to prompt and sampling without revealing them (GenerateParams.commitment);
    `token_ceiling` is the most it will pay, in budget tokens, under the price sheet it names by hash."""

    network: Network
    request: Hex32
    account: Slug
    model: Slug
    content: Sha256
    max_tokens: Positive
    token_ceiling: Positive
    price_sheet: Sha256
    issued_ms: TimeMs
    expires_ms: TimeMs


ExpertRows = tuple[Count, Count, Positive]
"""(layer, expert, rows)."""


class WorkReceipted(Strict):
    """A node's statement of the answers it gave and the router used in one request. `root` is the RFC 6962 root over
    one leaf an answered expert block (schemas/tensors.py: block_leaf), in order of (sequence, expert). `counter` and
    `previous` (hash of this node's last receipt) chain a node's receipts, so an omitted one shows."""

    network: Network
    node: Slug
    request: Hex32
    model: Slug
    manifest: Sha256
    rows: Positive
    blocks: Positive
    experts: Annotated[tuple[ExpertRows, ...], Field(max_length=65_536)]
    root: Sha256
    counter: Positive
    previous: Sha256


REQUEST_KIND: Final = "inference.requested.v1"
RECEIPT_KIND: Final = "work.receipted.v1"


# --- event bodies ---------------------------------------------------------------------------------------------------


class NetworkFounded(Strict):
    """Entry 1. Signed by the operator key it names: the root of every other key. `ledger_vkey` signs checkpoints."""

    network: Network
    operator: PublicKey
    ledger_vkey: VerifierKey
    mode: Literal["test", "live"]
    founded_ms: TimeMs


class KeyAdded(Strict):
    """The operator gives a key a role and a name. Valid from this entry on."""

    network: Network
    role: Role
    name: Slug
    key: PublicKey


class ModelPublished(Strict):
    """The operator publishes one manifest (weights and format) under a model id. `expert_parameters` is the weight of
    one row in a host's credit; a token costs `moe_layers` * `top_k` rows."""

    network: Network
    model: Slug
    manifest: Sha256
    family: Slug
    format: Slug
    moe_layers: Positive
    experts: Positive
    top_k: Positive
    expert_parameters: Positive


class ModelPrice(Strict):
    """`price_milli` and `quant_milli` are per mille of the base price of one budget token a text token."""

    model: Slug
    price_milli: Positive
    quant_milli: Positive


class PricingPublished(Strict):
    """A price sheet, named by the SHA-256 of its canonical bytes. Weights are per mille a text token."""

    network: Network
    sheet: Slug
    input_weight_milli: Count
    output_weight_milli: Count
    prices: Annotated[tuple[ModelPrice, ...], Field(min_length=1, max_length=4096)]


class NodeRegistered(Strict):
    """A host's node joins with its own key, and signs so. `device` and `memory_mb` are what it says of itself; what is
    paid is measured work, never these."""

    network: Network
    node: Slug
    host: Slug
    key: PublicKey
    device: Device
    memory_mb: Count


class AccountOpened(Strict):
    """A consumer opens an account: it is its key, and signs so."""

    network: Network
    account: Slug
    key: PublicKey


class TokensGranted(Strict):
    """A budget: one bucket of tokens, spendable in [valid_from_ms, expires_ms). `paid_uusd` is what was paid for it;
    in mode `test` no money moved."""

    network: Network
    account: Slug
    grant: Slug
    tokens: Positive
    valid_from_ms: TimeMs
    expires_ms: TimeMs
    paid_uusd: Count
    mode: Literal["test", "live"]


class TokensReserved(Strict):
    """The router holds tokens before any work. `manifest` names the weights that it will run, the model's newest:
    receipts and rows are judged by these, whatever is published meanwhile. `tokens` is the price of the counted input
    plus the most output."""

    network: Network
    request: Signed[InferenceRequested]
    manifest: Sha256
    input_tokens: Positive
    tokens: Positive
    expires_ms: TimeMs


class NodeRows(Strict):
    node: Slug
    rows: Positive


class InferenceCompleted(Strict):
    """The router posts a reservation: what the client ordered, what it got, and each node's signed receipt. Rows that
    were used and have no valid receipt are listed, and earn nothing.

    `fed_tokens` entered the model: all but the last sampled one, so input_tokens + output_tokens - 1, and up to
    MAX_FREE_TOKENS special ones that nobody is billed for (a leading <s>, a final </s>). The rows of `receipts` and
    `unreceipted` add up to exactly fed_tokens * moe_layers * top_k."""

    network: Network
    request: Signed[InferenceRequested]
    input_tokens: Positive
    output_tokens: Positive
    fed_tokens: Positive
    finish: Literal["stop", "length", "cancelled"]
    receipts: Annotated[tuple[Signed[WorkReceipted], ...], Field(max_length=MAX_RECEIPTS)]
    unreceipted: Annotated[tuple[NodeRows, ...], Field(max_length=MAX_RECEIPTS)]


class ReservationVoided(Strict):
    """The router gives a hold back whole: the request failed and nothing is billed. `reason` is an error code."""

    network: Network
    account: Slug
    request: Hex32
    reason: Slug


class ReservationExpired(Strict):
    """The ledger gives an abandoned hold back, at or after its `expires_ms`."""

    network: Network
    account: Slug
    request: Hex32


# --- what the ledger decided ------------------------------------------------------------------------------------------


class BucketTokens(Strict):
    """So many tokens of one grant's bucket."""

    grant: Slug
    tokens: Positive


class HostCredit(Strict):
    """`work` = rows * (expert parameters // 1000): a weight, not money."""

    host: Slug
    node: Slug
    rows: Positive
    work: Count


class Decided(Strict):
    """What the ledger added to the actor's words. `held`: taken from available; `debited`: of what was held, consumed;
    `released`: of what was held, given back. Only what applies to the kind is present."""

    held: tuple[BucketTokens, ...] | None = None
    debited: tuple[BucketTokens, ...] | None = None
    released: tuple[BucketTokens, ...] | None = None
    credits: tuple[HostCredit, ...] | None = None


Body: TypeAlias = (
    NetworkFounded
    | KeyAdded
    | ModelPublished
    | PricingPublished
    | NodeRegistered
    | AccountOpened
    | TokensGranted
    | TokensReserved
    | InferenceCompleted
    | ReservationVoided
    | ReservationExpired
)

KINDS: Final[dict[str, type[Body]]] = {
    "network.founded.v1": NetworkFounded,
    "key.added.v1": KeyAdded,
    "model.published.v1": ModelPublished,
    "pricing.published.v1": PricingPublished,
    "node.registered.v1": NodeRegistered,
    "account.opened.v1": AccountOpened,
    "tokens.granted.v1": TokensGranted,
    "tokens.reserved.v1": TokensReserved,
    "inference.completed.v1": InferenceCompleted,
    "reservation.voided.v1": ReservationVoided,
    "reservation.expired.v1": ReservationExpired,
}
KIND_OF: Final[dict[type[Strict], str]] = {
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
