"""Who has had which key in which role, as the entries of a book say. Pure; verifies nothing: that is replay's work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sawyer.identity.keys import encode_public, public_bytes
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME
from sawyer.projections.fold import Entry
from sawyer.schemas.events import AccountOpened, KeyAdded, KeyRevoked, KeyRotated, NetworkFounded, NodeRegistered

KINDS: Final = ("network", "key", "node.registered", "account.opened")
"""Where a book says so: kinds, or their first words."""
ROLES: Final = (OPERATOR_NAME, LEDGER_NAME, "router", "node", "account")


@dataclass
class KeyHeld:
    """A key in a role, from entry `since` on; `until`: the entry with which another took its place, 0 if none did.
    `revoked`: the entry that ended it, 0 if none did; `in_question_ms`: since when it may have been in other hands.
    `vkey`: a ledger's, as `--key` takes it."""

    role: str
    name: str
    key: str
    since: int
    until: int = 0
    revoked: int = 0
    reason: str = ""
    in_question_ms: int = 0
    vkey: str = ""

    @property
    def in_force(self) -> bool:
        return not (self.until or self.revoked)


def keys_held(entries: Iterable[Entry]) -> list[KeyHeld]:
    """By role, name, and entry. Of these entries, in their order, those of other kinds are passed over."""
    held: list[KeyHeld] = []
    for entry in entries:
        body = entry.body
        if isinstance(body, KeyRevoked):
            for each in held:
                if each.key == body.key:
                    each.revoked, each.reason, each.in_question_ms = entry.seq, body.reason, body.since_ms
        else:
            for role, name, key in _given(entry):
                vkey = Verifier(entry.log, public_bytes(key)).vkey if role == LEDGER_NAME else ""
                _take(held, KeyHeld(role, name, key, entry.seq, vkey=vkey))
    return sorted(held, key=lambda each: (ROLES.index(each.role), each.name, each.since))


def _given(entry: Entry) -> list[tuple[str, str, str]]:
    """(role, name, key) that an entry gives."""
    match entry.body:
        case NetworkFounded() as body:
            ledger = encode_public("U", Verifier.parse(body.ledger_vkey).public)
            return [(OPERATOR_NAME, OPERATOR_NAME, body.operator), (LEDGER_NAME, LEDGER_NAME, ledger)]
        case KeyAdded() | KeyRotated() as body:
            return [(body.role, body.name, body.key)]
        case NodeRegistered() as body:
            return [("node", body.node, body.key)]
        case AccountOpened() as body:
            return [("account", body.account, body.key)]
    return []


def _take(held: list[KeyHeld], new: KeyHeld) -> None:
    """A role and name has one key at a time, but a router's: of these there may be several."""
    if new.role != "router":
        for each in held:
            if (each.role, each.name) == (new.role, new.name) and not each.until:
                each.until = new.since
    held.append(new)
