"""The whole bus on one page: every subject, as a typed builder. `ALL` is what documentation and tests read."""

from __future__ import annotations

import re
from typing import Final, Literal

from sawyer.errors import UsageError
from sawyer.ids import ModelId, NetworkId, NodeId, RequestId, is_slug

PREFIX: Final = "sawyer.v1"
ROUTERS: Final = "routers"
"""The queue group of the routers of one model: each request goes to one of them."""


def expert(node: NodeId, model: ModelId, layer: int, expert_id: int) -> str:
    """Router -> one node: activation request to one replica of one expert."""
    return f"{PREFIX}.expert.{_token(node)}.{_token(model)}.{layer}.{expert_id}"


def experts_of(node: NodeId, model: ModelId) -> str:
    """What a node listens on for one model it serves."""
    return f"{PREFIX}.expert.{_token(node)}.{_token(model)}.>"


def finish(node: NodeId) -> str:
    """Router -> node: which answers of a request were used; the reply is the signed receipt."""
    return f"{PREFIX}.node.{_token(node)}.finish"


def heartbeat(node: NodeId) -> str:
    """Node -> routers: signed health, throughput and hosted experts."""
    return f"{PREFIX}.node.{_token(node)}.heartbeat"


def all_heartbeats() -> str:
    return f"{PREFIX}.node.*.heartbeat"


def roll_call() -> str:
    """Router -> all nodes: send a heartbeat now. A router that has just started must not wait for the next ones."""
    return f"{PREFIX}.rollcall"


def infer(model: ModelId) -> str:
    """Client -> routers of a model (queue group): a whole generation; tokens come back on the client's inbox."""
    return f"{PREFIX}.infer.{_token(model)}"


def open_session(model: ModelId) -> str:
    """Client with a trunk of its own -> routers of a model (queue group): hold tokens, and give me a session."""
    return f"{PREFIX}.session.{_token(model)}"


def activate(router: str) -> str:
    """Client -> the router that it has a session with: hidden rows of one layer."""
    return f"{PREFIX}.router.{_token(router)}.activate"


def close_session(router: str) -> str:
    """Client -> the router that it has a session with: the bill."""
    return f"{PREFIX}.router.{_token(router)}.close"


def echo(model: ModelId) -> str:
    """Node -> routers of a model (queue group): the same bytes come back, to measure the way there."""
    return f"{PREFIX}.echo.{_token(model)}"


def cancel(request: RequestId) -> str:
    """Client -> the router that runs this request: stop."""
    return f"{PREFIX}.cancel.{_token(request)}"


def all_cancels() -> str:
    return f"{PREFIX}.cancel.*"


def ledger(command: str) -> str:
    """Router, node, operator or client -> bookkeeper: a signed command; the reply comes after the durable commit."""
    return f"{PREFIX}.ledger.{_token(command)}"


def all_ledger() -> str:
    return f"{PREFIX}.ledger.*"


def ledger_copy(network: NetworkId, row: Literal["entry", "checkpoint"]) -> str:
    """Bookkeeper -> JetStream: a row of the book, after its commit."""
    return f"{PREFIX}.ledger.copy.{network_token(network)}.{row}"


def all_ledger_copies(network: NetworkId) -> str:
    """What the stream of one network's copy listens on."""
    return f"{PREFIX}.ledger.copy.{network_token(network)}.*"


def network_token(network: NetworkId) -> str:
    """A network's name as one token; no two names have the same. A name holds no `_`, and one `/`: it is the last."""
    return _token(network.replace(".", "__").replace("/", "_"))


def network_of(token: str) -> NetworkId:
    """The network whose name `network_token` made this of."""
    name, _, part = token.rpartition("_")
    return NetworkId(f"{name.replace('__', '.')}/{part}")


def model_bucket(model: str, manifest: str) -> str:
    """The bucket of JetStream's object store with the files of these weights: named after model and manifest digest."""
    return f"SAWYER_{_token(model)}_{manifest[:16]}"


def is_bucket_of(model: str, bucket: str) -> bool:
    """Whether `model_bucket` makes this name for some weights of this model."""
    return re.fullmatch(rf"SAWYER_{re.escape(_token(model))}_[0-9a-f]{{16}}", bucket) is not None


def query(what: str) -> str:
    """Anyone allowed -> bookkeeper (network, members, balance, account, tree, cosign, publication), router (router,
    trace, metrics) or node (metrics): a question that writes nothing into the book."""
    return f"{PREFIX}.query.{_token(what)}"


def network(what: str) -> str:
    """Newcomer, member or operator -> the network's authority: a certificate (join), another one (renew), none any more
    (revoke), who has one (members). `gone`: authority -> routers, whose connection ended, or is revoked."""
    return f"{PREFIX}.network.{_token(what)}"


def discovery(verb: Literal["PING", "INFO", "STATS"], service: str = "", instance: str = "") -> str:
    """Anyone -> everyone, the programs of one kind, or one of them: the discovery protocol of NATS micro services
    (ADR-32 of nats-architecture-and-design), which is not ours and so not under our prefix."""
    named = [_token(name) for name in (service, instance) if name]
    return ".".join(["$SRV", verb, *named])


ALL: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("sawyer.v1.expert.<node>.<model>.<layer>.<expert>", "router", "node", "ActivationRequest -> ActivationReply"),
    ("sawyer.v1.node.<node>.finish", "router", "node", "Finish -> FinishReply"),
    ("sawyer.v1.node.<node>.heartbeat", "node", "router", "Signed[Heartbeat]"),
    ("sawyer.v1.rollcall", "router", "node", "empty: send a heartbeat now"),
    ("sawyer.v1.infer.<model>", "client", "router", "InferRequest -> a stream of InferEvent"),
    ("sawyer.v1.session.<model>", "client", "router", "SessionOpen -> SessionOpened"),
    ("sawyer.v1.router.<router>.activate", "client", "router", "HiddenRows -> SummedRows"),
    ("sawyer.v1.router.<router>.close", "client", "router", "SessionClose -> SessionClosed"),
    ("sawyer.v1.echo.<model>", "node", "router", "any bytes -> the same bytes"),
    ("sawyer.v1.cancel.<request>", "client", "router", "empty: stop this request"),
    ("sawyer.v1.ledger.<command>", "any", "bookkeeper", "LedgerCommand -> LedgerReply"),
    ("sawyer.v1.ledger.copy.<network>.<row>", "bookkeeper", "auditor", "a row of the book, kept by JetStream"),
    (
        "sawyer.v1.query.<what>",
        "any",
        "bookkeeper, router, node",
        "network, members, balance, account, tree, cosign, publication; router, trace, metrics",
    ),
    ("sawyer.v1.network.<what>", "any", "authority, router", "join, renew, revoke, members; gone"),
)
"""(pattern, who sends, who listens, what)."""


def _token(text: str) -> str:
    if not is_slug(text):
        raise UsageError(
            f"{text!r} cannot stand in a subject",
            hint="Names are lower-case letters, digits, - and _, at most 63 characters.",
        )
    return text
