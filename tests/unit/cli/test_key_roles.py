"""Who has which key, as the entries say: a role is taken over, a key is revoked, and nothing is forgotten."""

from __future__ import annotations

import pytest

from sawyer.cli.key_roles import KeyHeld, keys_held
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import vkey_of
from sawyer.projections.fold import Entry
from sawyer.schemas.base import Fact
from sawyer.schemas.events import KIND_OF, Decided, KeyAdded, KeyRevoked, KeyRotated, NetworkFounded

NETWORK = "sawyer-net/3f9a1c22"
LATER = Key.from_raw(b"4" * 32)


def entry(seq: int, body: Fact) -> Entry:
    kind = KIND_OF[type(body)]
    return Entry(seq, "", "", NETWORK, seq, kind, "stream", 1, "idem", body, b"{}", Decided(), ())  # type: ignore[arg-type]


@pytest.fixture
def entries(event_examples: dict[str, Fact], keys: dict[str, Key]) -> list[Entry]:
    founded = event_examples["network.founded.v1"]
    assert isinstance(founded, NetworkFounded)
    bodies = [
        founded.changed(ledger_vkey=vkey_of(NETWORK, keys["ledger"])),
        event_examples["key.added.v1"],
        event_examples["node.registered.v1"],
        event_examples["account.opened.v1"],
        KeyAdded(network=NETWORK, role="ledger", name="ledger", key=LATER.id),
        KeyRotated(network=NETWORK, role="node", name="node-a", key=keys["node-b"].id),
        KeyRevoked(network=NETWORK, key=keys["node-a"].id, since_ms=5, reason="stolen"),
    ]
    return [entry(seq, body) for seq, body in enumerate(bodies, start=1)]


def test_each_role_has_its_key_since_its_entry_and_until_the_next_one(
    entries: list[Entry], keys: dict[str, Key]
) -> None:
    assert keys_held(entries) == [
        KeyHeld("operator", "operator", keys["operator"].id, 1),
        KeyHeld("ledger", "ledger", keys["ledger"].id, 1, until=5, vkey=vkey_of(NETWORK, keys["ledger"])),
        KeyHeld("ledger", "ledger", LATER.id, 5, vkey=vkey_of(NETWORK, LATER)),
        KeyHeld("router", "router", keys["router"].id, 2),
        KeyHeld("node", "node-a", keys["node-a"].id, 3, until=6, revoked=7, reason="stolen", in_question_ms=5),
        KeyHeld("node", "node-a", keys["node-b"].id, 6),
        KeyHeld("account", "alice", keys["alice"].id, 4),
    ]


def test_keys_in_force_are_neither_replaced_nor_revoked(entries: list[Entry]) -> None:
    assert [each.since for each in keys_held(entries) if each.in_force] == [1, 5, 2, 6, 4]


def test_routers_may_have_several_keys(entries: list[Entry], keys: dict[str, Key]) -> None:
    another = KeyAdded(network=NETWORK, role="router", name="router", key=keys["mallory"].id)
    held = [each for each in keys_held([*entries, entry(8, another)]) if each.role == "router"]
    assert [each.in_force for each in held] == [True, True]


def test_nothing_is_held_where_nothing_was_said() -> None:
    assert keys_held([]) == []
