"""Who says what to whom: every exchange on the bus with its message types. `subjects.ALL` is the same bus for readers;
asyncapi.py turns this page into the AsyncAPI document. Sends nothing and knows no bus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sawyer.schemas import certificates, events, messages, metrics, sessions, traces
from sawyer.schemas.base import Strict
from sawyer.schemas.events import Body
from sawyer.schemas.messages import Heartbeat, QueryError
from sawyer.schemas.session_rows import HiddenRows, SummedRows
from sawyer.schemas.shapes import Shaped
from sawyer.schemas.signed import Signed
from sawyer.schemas.subjects import PREFIX, ROUTERS
from sawyer.schemas.tensors import ActivationError, ActivationReply, ActivationRequest

Role = Literal["router", "node", "client", "bookkeeper", "operator", "auditor", "authority"]

ROLES: Final[dict[Role, str]] = {
    "router": "Runs a model's trunk and gates, asks nodes for experts, streams the text, has it billed.",
    "node": "Hosts experts and answers for them.",
    "client": "Orders generations on a consumer's account.",
    "bookkeeper": "Writes every fact into the book, and answers what is in it.",
    "operator": "Runs the network: founds it, adds routers, publishes models and prices, grants budgets.",
    "auditor": "Reads the copy of the book, verifies it, keeps views of its own.",
    "authority": "Gives certificates to those who may connect, renews and revokes them.",
}


@dataclass(frozen=True, slots=True)
class Command:
    """A LedgerCommand whose body is this event."""

    body: type[Body]


@dataclass(frozen=True, slots=True)
class Plain:
    """Bytes without a structure: none at all, or any."""

    name: str
    what: str
    at_most: int | None = None


@dataclass(frozen=True, slots=True)
class Micro:
    """A reply of the discovery protocol of NATS micro services (ADR-32 of nats-architecture-and-design). Theirs, not
    ours: not canonical, and known here by its `type` and the fields that all three have."""

    verb: str

    @property
    def type(self) -> str:
        return f"io.nats.micro.v1.{self.verb.lower()}_response"


Activation: TypeAlias = (
    type[ActivationRequest] | type[ActivationReply] | type[ActivationError] | type[HiddenRows] | type[SummedRows]
)
Payload: TypeAlias = Shaped | Activation | Command | Plain | Micro

NOTHING: Final = Plain("Empty", "No bytes: the subject says it all.", at_most=0)
ANYTHING: Final = Plain("AnyBytes", "Any bytes.")
ENTRY_BYTES: Final = Plain("EntryBytes", "The exact bytes of an entry (docs/ledger-format.md).")
NOTE: Final = Plain("CheckpointNote", "A checkpoint: a C2SP signed note, UTF-8.")
COPIED_ROWS: Final = ("entry", "checkpoint")
VERBS: Final = ("PING", "INFO", "STATS")


@dataclass(frozen=True, slots=True)
class Exchange:
    """One kind of message and its replies. `subject` is a row of subjects.ALL, or one of its subjects. `senders` ask or
    tell, `receivers` listen, and answer to the sender's inbox if there are `replies`. In a `queue` group one receiver
    gets each message; without one, all do. `stream`: many replies, until one of them says that it is the last."""

    name: str
    subject: str
    what: str
    senders: tuple[Role, ...]
    receivers: tuple[Role, ...]
    payloads: tuple[Payload, ...]
    replies: tuple[Payload, ...] = ()
    queue: str = ""
    stream: bool = False


def _recorded(by: Role | tuple[Role, ...], what: str, *bodies: type[Body], name: str = "") -> Exchange:
    return Exchange(
        name=name or f"{by}_command",
        subject=f"{PREFIX}.ledger.<command>",
        what=f"{what} The reply comes after the durable commit; sent again, the same command has the same entry.",
        senders=by if isinstance(by, tuple) else (by,),
        receivers=("bookkeeper",),
        payloads=tuple(map(Command, bodies)),
        replies=(messages.LedgerReply,),
    )


def _asked(
    what: str,
    says: str,
    senders: tuple[Role, ...],
    reply: type[Strict],
    question: type[Strict] | Plain = NOTHING,
    by: Role = "bookkeeper",
) -> Exchange:
    return Exchange(
        name=f"{what}_query",
        subject=f"{PREFIX}.query.{what}",
        what=says,
        senders=senders,
        receivers=(by,),
        payloads=(question,),
        replies=(reply, QueryError),
    )


def _certified(
    what: str, says: str, senders: tuple[Role, ...], question: type[Strict] | Plain, reply: type[Strict]
) -> Exchange:
    return Exchange(
        name=f"network_{what}",
        subject=f"{PREFIX}.network.{what}",
        what=says,
        senders=senders,
        receivers=("authority",),
        payloads=(question,),
        replies=(reply, QueryError),
    )


def _found(name: str, subject: str, who: str) -> Exchange:
    return Exchange(
        name=name,
        subject=subject,
        what=f"Who is there, what it answers, what came of it: {who}. Everyone who is meant replies (`nats micro`).",
        senders=("operator",),
        receivers=("router", "node", "bookkeeper"),
        payloads=(NOTHING,),
        replies=(*map(Micro, VERBS), messages.ErrorBody),
    )


EXCHANGES: Final[tuple[Exchange, ...]] = (
    Exchange(
        name="activation",
        subject=f"{PREFIX}.expert.<node>.<model>.<layer>.<expert>",
        what="Rows for some experts of one layer, all hosted by this node; on the subject of the first of them.",
        senders=("router",),
        receivers=("node",),
        payloads=(ActivationRequest,),
        replies=(ActivationReply, ActivationError),
    ),
    Exchange(
        name="finish",
        subject=f"{PREFIX}.node.<node>.finish",
        what="A request is over: which of the node's answers were used. The reply is its signed receipt over them.",
        senders=("router",),
        receivers=("node",),
        payloads=(messages.Finish,),
        replies=(messages.FinishReply,),
    ),
    Exchange(
        name="heartbeat",
        subject=f"{PREFIX}.node.<node>.heartbeat",
        what="What a node serves and how it is, once a second.",
        senders=("node",),
        receivers=("router",),
        payloads=(Signed[Heartbeat],),
    ),
    Exchange(
        name="roll_call",
        subject=f"{PREFIX}.rollcall",
        what="Every node sends a heartbeat now: a router that has just started does not wait for the next ones.",
        senders=("router",),
        receivers=("node",),
        payloads=(NOTHING,),
    ),
    Exchange(
        name="generation",
        subject=f"{PREFIX}.infer.<model>",
        what="A whole generation. Replies are numbered; the last is `done` or `failed`. The same request sent again "
        "gets the answer it has, from the beginning, and is billed once.",
        senders=("client",),
        receivers=("router",),
        payloads=(messages.InferRequest,),
        replies=(messages.InferMessage,),
        queue=ROUTERS,
        stream=True,
    ),
    Exchange(
        name="session",
        subject=f"{PREFIX}.session.<model>",
        what="A generation whose trunk the client runs itself: tokens are held, and the router takes its rows.",
        senders=("client",),
        receivers=("router",),
        payloads=(sessions.SessionOpen,),
        replies=(sessions.SessionOpened, QueryError),
        queue=ROUTERS,
    ),
    Exchange(
        name="session_rows",
        subject=f"{PREFIX}.router.<router>.activate",
        what="Rows of one layer with experts: the router gates, asks nodes, adds up. Steps and layers come in order; "
        "the last one sent again gets the answer it has.",
        senders=("client",),
        receivers=("router",),
        payloads=(HiddenRows,),
        replies=(SummedRows, ActivationError),
    ),
    Exchange(
        name="session_close",
        subject=f"{PREFIX}.router.<router>.close",
        what="A session is over: steps that all layers were asked for are billed. Again is the same bill.",
        senders=("client",),
        receivers=("router",),
        payloads=(sessions.SessionClose,),
        replies=(sessions.SessionClosed, QueryError),
    ),
    Exchange(
        name="echo",
        subject=f"{PREFIX}.echo.<model>",
        what="The same bytes come back: how far away a router is, and how fast the way there.",
        senders=("node",),
        receivers=("router",),
        payloads=(ANYTHING,),
        replies=(ANYTHING,),
        queue=ROUTERS,
    ),
    Exchange(
        name="cancel",
        subject=f"{PREFIX}.cancel.<request>",
        what="Stop this request after the token under way; what was written is billed. It may come before its request.",
        senders=("client",),
        receivers=("router",),
        payloads=(NOTHING,),
    ),
    _recorded(
        "router",
        "Hold tokens before any work; then post the bill, or give the hold back.",
        events.TokensReserved,
        events.InferenceCompleted,
        events.ReservationVoided,
    ),
    _recorded("node", "Join with a key of its own.", events.NodeRegistered),
    _recorded("client", "Open an account with a key of its own.", events.AccountOpened),
    _recorded(
        ("node", "client"),
        "Take another key, signed by the old one and by the new one.",
        events.KeyRotated,
        name="rotation_command",
    ),
    _recorded(
        ("node", "client", "router", "operator"),
        "A key may sign nothing any more: by itself, or by the operator.",
        events.KeyRevoked,
        name="revocation_command",
    ),
    _recorded(
        "operator",
        "Found the network; add keys; publish models and prices; grant budgets; erase what is personal.",
        events.NetworkFounded,
        events.KeyAdded,
        events.ModelPublished,
        events.PricingPublished,
        events.TokensGranted,
        events.SubjectErased,
    ),
    Exchange(
        name="copied_row",
        subject=f"{PREFIX}.ledger.copy.<network>.<row>",
        what="A row of the book after its commit, in the order of the book and none left out. A JetStream stream keeps "
        "it: sequence n is row n. Headers: docs/protocol.md. An auditor asks the stream; it need not listen here.",
        senders=("bookkeeper",),
        receivers=("auditor",),
        payloads=(ENTRY_BYTES, NOTE),
    ),
    _asked(
        "network",
        "Which network this is, its keys, models and prices, and the newest checkpoint of its book.",
        ("router", "node", "client", "operator"),
        messages.NetworkReply,
    ),
    _asked("members", "Every node and router, with its key.", ("router", "node", "operator"), messages.MembersReply),
    _asked(
        "balance",
        "What an account may spend now.",
        ("client", "operator"),
        messages.BalanceReply,
        messages.BalanceQuery,
    ),
    _asked(
        "account",
        "An account: its key, its balance, and the grants that something is left of.",
        ("client", "operator"),
        messages.AccountReply,
        messages.AccountQuery,
    ),
    _asked(
        "tree",
        "What a witness may cosign: a checkpoint, and the proof that the log only grew since its last one.",
        ("node",),
        messages.TreeReply,
        messages.TreeQuery,
    ),
    _asked(
        "cosign",
        "A witness's signature on the checkpoint that it was offered.",
        ("node",),
        messages.CosignReply,
        messages.CosignQuery,
    ),
    _asked(
        "publication",
        "The proof that the book has a model's weights: nothing of them is used without.",
        ("router", "node", "operator"),
        messages.PublicationReply,
        messages.PublicationQuery,
    ),
    _asked(
        "router",
        "What a router serves and sees. Every router answers: wait a moment for the others.",
        ("client", "operator"),
        messages.RouterReply,
        by="router",
    ),
    _asked(
        "trace",
        "Where the time of a request went. Every router answers: one that does not remember it refuses.",
        ("client", "operator"),
        traces.RequestTrace,
        traces.TraceQuery,
        by="router",
    ),
    Exchange(
        name="metrics_query",
        subject=f"{PREFIX}.query.metrics",
        what="What routers and nodes count. Every one of them answers: wait a moment for the others.",
        senders=("operator",),
        receivers=("router", "node"),
        payloads=(NOTHING,),
        replies=(metrics.Metrics, QueryError),
    ),
    _certified(
        "join",
        "A newcomer with an invitation asks for a certificate.",
        ("node", "client"),
        certificates.Joining,
        certificates.CertificateReply,
    ),
    _certified(
        "renew",
        "A member asks for another certificate, before theirs ends.",
        ("node", "client"),
        certificates.Renewing,
        certificates.CertificateReply,
    ),
    _certified(
        "revoke",
        "No certificate of this key counts any more: who has it is cut off.",
        ("operator",),
        certificates.Revoking,
        certificates.CertifiedReply,
    ),
    _certified("members", "Who has a certificate.", ("operator", "client"), NOTHING, certificates.CertifiedReply),
    Exchange(
        name="gone",
        subject=f"{PREFIX}.network.gone",
        what="A member's connection ended, as the server says, or its certificate is revoked.",
        senders=("authority",),
        receivers=("router",),
        payloads=(certificates.Gone,),
    ),
    _found("discovery", "$SRV.<verb>", "every program"),
    _found("discovery_of_a_kind", "$SRV.<verb>.<service>", "every program of one kind"),
    _found("discovery_of_one", "$SRV.<verb>.<service>.<instance>", "one program"),
)
