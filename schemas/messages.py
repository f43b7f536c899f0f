"""Every JSON message on the bus. Activations are binary and live in tensors.py; facts live in events.py.

No floats: temperatures and probabilities travel as per mille integers, so that one content has one encoding.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from sawyer.errors import SawyerError, UnknownModel, WrongManifest, from_code
from sawyer.schemas.base import Count, Fact, Hex32, Network, Positive, PublicKey, Sha256, Slug, Strict, Text, TimeMs
from sawyer.schemas.events import (
    Decided,
    InferenceRequested,
    ModelPublished,
    NodeRegistered,
    PricingPublished,
    Successor,
    TierName,
    VerifierKey,
    WorkReceipted,
)
from sawyer.schemas.generation import GenerateParams
from sawyer.schemas.models import GenerationDefaults
from sawyer.schemas.signed import Kind, Signature, Signed

MAX_SUCCESSORS: Final = 256
"""Keys of the operator and of the ledger that one network may have had: all of them are told to newcomers."""
MAX_BUCKETS_TOLD: Final = 100
MAX_ENTRY_PROOF_CHARS: Final = 64 * 1024
MAX_PROOF_HASHES: Final = 63
"""Of one consistency proof, as in c2sp.org/tlog-witness."""

Printable = Annotated[str, StringConstraints(pattern=r"^[ -~]{0,128}$")]
"""What a stranger says of itself, short and without anything that could steer a terminal."""


class ErrorBody(Strict):
    """A typed error on its way to another process."""

    code: Slug
    message: Text
    hint: Text = ""
    details: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, error: SawyerError) -> ErrorBody:
        return cls(code=error.code, message=error.message[:4096], hint=error.hint[:4096], details=error.details)

    def to_error(self) -> SawyerError:
        return from_code(self.code, self.message, self.hint, dict(self.details))


# --- generation -------------------------------------------------------------------------------------------------------


class InferRequest(Strict):
    """Client -> router. `salt` opens the commitment in the signed order. `trace` asks for one event a layer; without
    `speculate` nothing is computed ahead."""

    order: Signed[InferenceRequested]
    params: GenerateParams
    salt: Sha256
    trace: bool = False
    speculate: bool = True


class NodeUse(Strict):
    """What one node did for one request. `receipted`: its signed receipt is in the book, over what we received."""

    node: Slug
    host: Slug
    rows: Count
    receipted: bool


class Takeover(Strict):
    """Experts of `lost` were answered by `by` instead, first in this layer of this step."""

    lost: Slug
    by: Slug
    reason: Slug
    step: Count
    layer: Count


class Usage(Strict):
    """The bill. `entry` is the seq of the entry in the book; `prefill_us` is the time to the first token, `decode_us`
    from there to the end. If `speculative`, tokens may be guessed and computed ahead: only accepted ones are billed."""

    input_tokens: Count
    output_tokens: Count
    billed_tokens: Count
    entry: Positive
    nodes: tuple[NodeUse, ...]
    takeovers: tuple[Takeover, ...]
    prefill_us: Count
    decode_us: Count
    speculative: bool = False
    drafted_tokens: Count = 0
    accepted_tokens: Count = 0


class LayerCall(Strict):
    """One message of one layer: which node answered for which experts, how many rows, how long it took from send to
    reply, and how much of that the node computed."""

    node: Slug
    experts: tuple[Count, ...]
    rows: Count
    round_trip_us: Count
    compute_us: Count


class Accepted(Strict):
    """Tokens are held, work begins. `repeated`: this id was sent before, and what follows is the answer it has."""

    event: Literal["accepted"] = "accepted"
    n: Count
    router: Slug
    input_tokens: Count
    held_tokens: Count
    repeated: bool = False


class Logprob(Strict):
    """How likely a sampled token was: `surprise_micro` is -ln(p) in millionths, of the model's own distribution before
    temperature and limits. `top`: (token id, surprise_micro) of the likeliest tokens, likeliest first."""

    token: Count
    surprise_micro: Count
    top: tuple[tuple[Count, Count], ...] = ()


class Delta(Strict):
    """New text. `ids` are the token ids sampled since the last delta (text may wait for a whole UTF-8 character).
    `logprobs`: one for each id, if the request asked for them."""

    event: Literal["delta"] = "delta"
    n: Count
    text: str
    ids: tuple[Count, ...]
    logprobs: tuple[Logprob, ...] = ()


class Trace(Strict):
    event: Literal["trace"] = "trace"
    n: Count
    step: Count
    layer: Count
    calls: tuple[LayerCall, ...]


class Done(Strict):
    event: Literal["done"] = "done"
    n: Count
    finish: Literal["stop", "length", "cancelled"]
    usage: Usage


class Failed(Strict):
    event: Literal["failed"] = "failed"
    n: Count
    error: ErrorBody


InferEvent = Annotated[Accepted | Delta | Trace | Done | Failed, Field(discriminator="event")]


class InferMessage(Strict):
    """Router -> client. `n` counts the messages of one stream from 0: a gap means one was lost."""

    e: InferEvent


# --- nodes ------------------------------------------------------------------------------------------------------------


class Finish(Strict):
    """Router -> node. `used` are inclusive runs of this node's sequence numbers whose answers were used."""

    request: Hex32
    model: Slug
    used: Annotated[tuple[tuple[Positive, Positive], ...], Field(max_length=65_536)]


class FinishReply(Strict):
    receipt: Signed[WorkReceipted] | None = None
    error: ErrorBody | None = None


class HostedLayer(Strict):
    """Experts of one layer that a node serves: `first` as first choice, `replica` as second."""

    layer: Count
    first: tuple[Count, ...]
    replica: tuple[Count, ...]


class HostedModel(Strict):
    """`row_us`: one row through one expert. `rows_per_second`: many rows through one expert. Both measured when the
    experts were loaded, on the device that they really run on."""

    model: Slug
    manifest: Sha256
    format: Slug
    layers: tuple[HostedLayer, ...]
    row_us: Count
    rows_per_second: Count


class Vitals(Strict):
    """What a node measures of itself. `provider` is the ONNX Runtime provider that its sessions really run on.
    `latency` is from arrival to reply, over the last answers. `runs` counts ONNX Runtime runs: below the number of
    (answer, expert) pairs when rows of several requests were joined. Of the experts it serves so many are `loaded`;
    `loads` and `drops` count since it started. `round_trip_us` and `kilobytes_per_second` are to
    a router of its model and back; 0 before they were measured."""

    version: Printable
    provider: Printable
    device: Printable
    threads: Positive
    memory_total_mb: Count
    memory_free_mb: Count
    loaded: Count
    loads: Count
    drops: Count
    queue: Count
    answers: Count
    refused: Count
    rows: Count
    runs: Count
    latency_p50_us: Count
    latency_p95_us: Count
    rows_per_second: Count
    round_trip_us: Count
    kilobytes_per_second: Count


class Heartbeat(Strict):
    """What a node says of itself, once a second. `instance` is drawn anew by each process: two of them under one node's
    name are two processes with one key."""

    network: Network
    node: Slug
    at_ms: TimeMs
    beat: Positive
    instance: Hex32
    started_ms: TimeMs
    models: tuple[HostedModel, ...]
    draining: bool
    vitals: Vitals


HEARTBEAT_KIND: Final = "node.beat.v1"


# --- the book ---------------------------------------------------------------------------------------------------------


class LedgerCommand(Strict):
    """A fact that somebody asks the ledger to record: its kind, the signed body, and who signed it."""

    kind: Kind
    body: dict[str, object]
    attestations: Annotated[tuple[Signature, ...], Field(min_length=1, max_length=4)]


class EntryRef(Fact, frozen=True):
    """Where a fact stands in the book. `leaf` is its RFC 6962 leaf hash."""

    seq: Positive
    leaf: Sha256
    kind: Kind
    ts_ms: TimeMs
    decided: Decided


class LedgerReply(Fact, frozen=True):
    """`entry` after the durable commit, or `error`. `repeated`: the entry was already there. A fact, though nobody
    signs
    it: the one writer makes thousands a second."""

    repeated: bool
    entry: EntryRef | None = None
    error: ErrorBody | None = None

    @classmethod
    def refused(cls, error: SawyerError) -> LedgerReply:
        return cls(repeated=False, error=ErrorBody.of(error))


class BalanceQuery(Strict):
    account: Slug


class BalanceReply(Strict):
    """Tokens: `available` to reserve now, `held` by running requests, `consumed`, `expired` and `granted` ever. `seq`:
    as
    of this entry."""

    account: Slug
    available: Count
    held: Count
    consumed: Count
    expired: Count
    granted: Count
    seq: Count


class AccountQuery(Strict):
    account: Slug


class AccountBucket(Strict):
    """One grant, of a tier or of none. `granted` tokens are `available`, `held`, `consumed` or `expired`; they can be
    reserved from `valid_from_ms` on, before `expires_ms`. `seq` is the entry of the grant."""

    grant: Slug
    tier: TierName
    granted: Positive
    available: Count
    held: Count
    consumed: Count
    expired: Count
    valid_from_ms: TimeMs
    expires_ms: TimeMs
    seq: Positive


class AccountReply(Strict):
    """An account: its key, the entry that opened it, and its budget. `buckets` are those of its `grants` that something
    is left of, the soonest to expire first, at most MAX_BUCKETS_TOLD."""

    account: Slug
    key: PublicKey
    opened: Positive
    balance: BalanceReply
    grants: Count
    buckets: Annotated[tuple[AccountBucket, ...], Field(max_length=MAX_BUCKETS_TOLD)]


class NetworkReply(Strict):
    """What a newcomer needs to know: the network, the key its checkpoints verify with, prices and models. `checkpoint`
    is the newest signed checkpoint (a C2SP signed note): a book that is cut or forked below it will not hold it.
    `ledger_vkey` and `operator` are those of the founding; `successors` those that replaced them, in order, each named
    by the operator of its time. `now_ms` is the bookkeeper's clock."""

    network: Network
    ledger_vkey: VerifierKey
    operator: PublicKey
    successors: Annotated[tuple[Successor, ...], Field(max_length=MAX_SUCCESSORS)]
    mode: Literal["test", "live"]
    models: tuple[ModelPublished, ...]
    pricing: PricingPublished | None = None
    size: Count
    checkpoint: Text
    now_ms: TimeMs

    def format_of(self, model: str) -> str:
        """The format of the newest weights of a model, which is part of its price. Raises UnknownModel."""
        for published in self.models:
            if published.model == model:
                return published.format
        raise UnknownModel(f"the network publishes no model {model}", hint="Publish it first, or check its name.")

    def check_published(self, model: str, manifest: str) -> None:
        """Raises UnknownModel or WrongManifest unless the network publishes exactly these weights under this name."""
        for published in self.models:
            if published.model == model:
                if published.manifest != manifest:
                    raise WrongManifest(
                        f"the network publishes {model} as {published.manifest[:16]}, here is {manifest[:16]}"
                    )
                return
        raise UnknownModel(f"the network publishes no model {model}", hint="Publish it first, or check its name.")


class MembersReply(Strict):
    nodes: tuple[NodeRegistered, ...]
    routers: tuple[tuple[Slug, PublicKey], ...]
    seq: Count


class SeenNode(Strict):
    """A node as a router sees it: how many (layer, expert) pairs it serves first and as a replica, and the round trip
    that the router expects of it. `avoided`: it failed lately. `gone`: nobody listens there. `silent_ms`: since its
    last heartbeat, which said `vitals`."""

    node: Slug
    host: Slug
    first: Count
    replica: Count
    expected_us: Count
    draining: bool
    avoided: bool
    gone: bool
    silent_ms: Count
    vitals: Vitals


class RouterReply(Strict):
    """What a router serves and sees. `missing` counts those of the model's `experts` (layer, expert) pairs that no node
    serves now. Counts are since `started_ms`; `recent_tokens` were sampled in the last `recent_ms`. `chat`: the model
    has a chat template, and answers `messages`. `generation`: how its maker would have it sampled, where he said so.
    `context_bytes` of `context_limit_bytes`: what running requests may take for the tokens before."""

    router: Slug
    model: Slug
    manifest: Sha256
    version: Text
    started_ms: TimeMs
    experts: Count
    missing: Count
    running: Count
    waiting: Count
    completed: Count
    failed: Count
    refused: Count
    output_tokens: Count
    recent_tokens: Count
    recent_ms: Count
    nodes: tuple[SeenNode, ...]
    chat: bool = False
    generation: GenerationDefaults | None = None
    context_bytes: Count = 0
    context_limit_bytes: Count = 0


class TreeQuery(Strict):
    """A witness asks what it may cosign. `size`: of the checkpoint that it cosigned last, 0 before the first."""

    size: Count


class TreeReply(Strict):
    """The checkpoint that is offered to every witness for some time, and RFC 6962's proof that its tree has all of the
    tree of the size that was asked with: nothing if there is nothing to prove."""

    note: Text
    hashes: Annotated[tuple[Sha256, ...], Field(max_length=MAX_PROOF_HASHES)]


class CosignQuery(Strict):
    """A witness's line (C2SP tlog-cosignature) for the offered checkpoint of this size."""

    node: Slug
    size: Positive
    line: Text


class CosignReply(Strict):
    """The newest checkpoint that was cosigned, and by how many witnesses."""

    size: Positive
    witnesses: Count


class PublicationQuery(Strict):
    """Who pulls a model asks whether the book has it. `manifest` names the weights."""

    model: Slug
    manifest: Sha256


class PublicationReply(Strict):
    """`proof`: a C2SP tlog-proof of the `model.published.v1` in the newest checkpoint, with the entry's bytes."""

    proof: Annotated[str, StringConstraints(max_length=MAX_ENTRY_PROOF_CHARS)]


class QueryError(Strict):
    error: ErrorBody


MESSAGES: Final[tuple[type[Strict | Fact], ...]] = (
    InferRequest,
    InferMessage,
    Finish,
    FinishReply,
    Heartbeat,
    LedgerCommand,
    LedgerReply,
    BalanceQuery,
    BalanceReply,
    AccountQuery,
    AccountReply,
    NetworkReply,
    MembersReply,
    RouterReply,
    TreeQuery,
    TreeReply,
    CosignQuery,
    CosignReply,
    PublicationQuery,
    PublicationReply,
    QueryError,
)
