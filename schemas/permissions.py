"""Who may say and hear what on the bus: one table, a row a role. The account's JWT carries it as one scope a role, so
the server enforces it, and a certificate holds no permission of its own that somebody could get wrong.

`{{name()}}` and `{{subject()}}` are the certificate's name and public key, `{{tag(model)}}` each of its model tags: the
server puts them in at each connect (NATS: scoped signing keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from sawyer.schemas.subjects import PREFIX

Role = Literal["operator", "bookkeeper", "authority", "router", "node", "account", "newcomer"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

NAME: Final = "{{name()}}"
INBOX: Final = "_INBOX.{{subject()}}.>"
MODEL: Final = "{{tag(model)}}"
FOREVER: Final = -1
MINUTE_S: Final = 60


@dataclass(frozen=True)
class Scope:
    """What one role may publish on and subscribe to, and how it may answer whoever asked it: so many messages (-1:
    any number) within so many seconds; 0 answers: not at all. `connections`: of one certificate at once, as far as the
    server counts them (-1: any number)."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: int = 0
    within_s: int = 0
    payload_bytes: int = FOREVER
    subscriptions: int = FOREVER


def _words(*words: str) -> tuple[str, ...]:
    return tuple(f"{PREFIX}.{word}" for word in words)


_READ_STREAMS: Final = (
    "$JS.API.INFO",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.DIRECT.GET.*",
    "$JS.API.DIRECT.GET.*.>",
)
"""Reading what JetStream keeps: the copy of the book, and models' files. No consumers: one could be told to deliver on
somebody else's subject."""
_MEMBER: Final = (*_words("query.*", "network.renew", "network.members"), "$SRV.>", *_READ_STREAMS)
_ASK: Final = _words("infer.*", "session.*", "router.*.activate", "router.*.close", "cancel.*")
_OWN_KEY: Final = _words("ledger.key-rotated", "ledger.key-revoked")

SCOPES: Final[dict[Role, Scope]] = {
    "operator": Scope(
        publish=(*_MEMBER, *_ASK, *_words("ledger.*", "rollcall", "network.*"), "$JS.API.>", "$O.>"),
        subscribe=(INBOX, *_words("node.*.heartbeat", "ledger.copy.>"), "$O.>"),
    ),
    "bookkeeper": Scope(
        publish=(*_MEMBER, *_words("ledger.copy.>"), "$JS.API.STREAM.>"),
        subscribe=(INBOX, *_words("ledger.*", "ledger.copy.>"), "$SRV.>",
                   *_words(*(f"query.{what}" for what in ("network", "members", "balance", "account", "tree", "cosign",
                                                          "publication")))),
        answers=1,
        within_s=2 * MINUTE_S,
    ),
    "authority": Scope(
        publish=(*_MEMBER, *_words("network.gone")),
        subscribe=(INBOX, *_words("network.join", "network.renew", "network.revoke", "network.members")),
        answers=1,
        within_s=MINUTE_S,
    ),
    "router": Scope(
        publish=(*_MEMBER, *_words("expert.>", "node.*.finish", "rollcall", "ledger.tokens-reserved",
                                   "ledger.inference-completed", "ledger.reservation-voided"), *_OWN_KEY),
        subscribe=(INBOX, *_words("infer.*", "session.*", f"router.{NAME}.*", "echo.*", "cancel.*", "node.*.heartbeat",
                                  "query.router", "query.trace", "query.metrics", "network.gone"), "$SRV.>"),
        answers=FOREVER,
        within_s=15 * MINUTE_S,
    ),
    "node": Scope(
        publish=(*_MEMBER, *_words(f"node.{NAME}.heartbeat", "rollcall", "echo.*", "ledger.node-registered"),
                 *_OWN_KEY),
        subscribe=(INBOX, *_words(f"expert.{NAME}.{MODEL}.>", f"node.{NAME}.finish", "node.*.heartbeat", "rollcall",
                                  "query.metrics", "ledger.copy.>"), "$SRV.>"),
        answers=1,
        within_s=MINUTE_S,
        subscriptions=256,
    ),
    "account": Scope(
        publish=(*_MEMBER, *_ASK, *_words("ledger.account-opened", "rollcall"), *_OWN_KEY),
        subscribe=(INBOX, *_words("node.*.heartbeat", "ledger.copy.>")),
        subscriptions=1024,
    ),
    "newcomer": Scope(
        publish=_words("network.join"),
        subscribe=(INBOX,),
        payload_bytes=16 * 1024,
        subscriptions=8,
    ),
}  # fmt: skip
