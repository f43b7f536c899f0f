"""Founding against a bookkeeper that keeps another network than the pinned one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.cli.founding import Founder, pinned_network
from sawyer.cli.seeds import next_seed
from sawyer.clock import ManualClock
from sawyer.errors import NotAuthorised, SawyerError, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.envelope import sign
from sawyer.identity.keys import Key, encode_public, load, load_or_create
from sawyer.ledger.checkpoint import Checkpoint, vkey_of
from sawyer.schemas import subjects
from sawyer.schemas.events import KeyAdded, Successor
from sawyer.schemas.messages import ErrorBody, NetworkReply, QueryError

OTHERS = Key.from_raw(bytes([77]) * 32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def pin(home: Home) -> Pin:
    return pinned_network(home)


@pytest.fixture
def told(pin: Pin) -> dict[str, Any]:
    """What the bookkeeper says of its network: the pinned one, unless a test changes it."""
    return {"network": pin.network, "ledger_vkey": pin.ledger_vkey, "operator": pin.operator, "successors": ()}


@pytest.fixture
async def founder(home: Home, pin: Pin, told: dict[str, Any], clock: ManualClock) -> AsyncIterator[Founder]:
    memory = MemoryNetwork()
    note = Checkpoint(pin.network, 1, bytes(32)).sign(load(home.ledger_key))

    async def answer(message: Message) -> bytes:
        return NetworkReply(**told, mode="test", models=(), size=1, checkpoint=note, now_ms=1).canonical()

    def refuse(error: SawyerError) -> bytes:
        return QueryError(error=ErrorBody.of(error)).canonical()

    service = Service(MemoryBus(memory), subjects.query("network"), answer, refuse, limit=8)
    await service.start()
    yield Founder(MemoryBus(memory), home, pin, clock)
    await service.stop()


async def test_network_that_is_the_pinned_one_is_taken(founder: Founder, pin: Pin) -> None:
    assert (await founder.found()).network == pin.network


@pytest.mark.parametrize("field", ["network", "ledger_vkey", "operator"])
async def test_found_network_that_is_not_the_pinned_one_is_refused(
    founder: Founder, pin: Pin, told: dict[str, Any], field: str
) -> None:
    told[field] = {
        "network": "sawyer-net/ffffffff",
        "ledger_vkey": vkey_of(pin.network, OTHERS),
        "operator": encode_public("O", OTHERS.public),
    }[field]
    with pytest.raises(VerificationError, match="is pinned to") as caught:
        await founder.found()
    assert caught.value.hint


# --- whose home it is -------------------------------------------------------------------------------------------------


def test_founded_home_is_founded_once(home: Home, pin: Pin) -> None:
    assert pinned_network(home) == pin == home.pin()


def test_home_that_joined_a_network_of_others_founds_none_and_says_what_to_do(home: Home, pin: Pin) -> None:
    guest = Home(home.path / "guest")
    guest.write_pin(pin)
    with pytest.raises(UsageError, match=f"joined network {pin.network}") as caught:
        pinned_network(guest)
    assert "sawyer serve" in caught.value.hint
    assert "--home" in caught.value.hint
    assert not guest.keys.exists()


@pytest.mark.parametrize("role", ["operator", "ledger"])
def test_key_that_was_lost_is_named_and_never_made_anew(home: Home, pin: Pin, clock: ManualClock, role: str) -> None:
    file = getattr(home, f"{role}_key")
    file.unlink()
    with pytest.raises(UsageError, match=rf"{role}\.nk") as caught:
        pinned_network(home)
    assert "Restore it" in caught.value.hint
    if role == "operator":
        with pytest.raises(UsageError, match=r"operator\.nk"):
            Founder(MemoryBus(MemoryNetwork()), home, pin, clock)
    assert not file.exists()


@pytest.mark.parametrize("role", ["operator", "ledger"])
def test_key_of_a_stranger_in_the_place_of_ours_is_refused(home: Home, pin: Pin, clock: ManualClock, role: str) -> None:
    file = getattr(home, f"{role}_key")
    file.unlink()
    load_or_create(file, "O" if role == "operator" else "U")
    for use in (lambda: pinned_network(home), lambda: Founder(MemoryBus(MemoryNetwork()), home, pin, clock)):
        with pytest.raises(UsageError, match=f"not the {role} key that {pin.network} was founded with"):
            use()


# --- after a rotation -------------------------------------------------------------------------------------------------


def added(home: Home, pin: Pin, role: str, key: Key) -> Successor:
    """The operator of this home gives a key a role."""
    body = KeyAdded(network=pin.network, role=role, name=role, key=key.id)  # type: ignore[arg-type]
    return Successor(added=sign(body, "key.added.v1", "operator", load(home.operator_key)), covered=1)


async def test_rotation_of_the_operator_that_was_cut_short_after_its_entry_is_finished(
    founder: Founder, home: Home, pin: Pin, told: dict[str, Any]
) -> None:
    new = next_seed(home.operator_key, "O")
    told["successors"] = (added(home, pin, "operator", new),)
    await founder.found()
    assert load(home.operator_key).id == new.id
    assert pinned_network(home) == pin, "it may go on with the new key"


async def test_rotation_that_the_book_does_not_know_leaves_the_key_in_its_place(
    founder: Founder, home: Home, pin: Pin
) -> None:
    next_seed(home.operator_key, "O")
    await founder.found()
    assert load(home.operator_key).id == pin.operator


async def test_home_that_missed_a_rotation_does_not_act_as_the_operator(
    founder: Founder, home: Home, pin: Pin, told: dict[str, Any]
) -> None:
    told["successors"] = (added(home, pin, "operator", Key.from_raw(b"2" * 32, "O")),)
    with pytest.raises(NotAuthorised, match="is not that one") as caught:
        await founder.found()
    assert "--home" in caught.value.hint
    with pytest.raises(UsageError, match=f"is not the operator's key of {pin.network}"):
        pinned_network(home)


async def test_founding_key_is_refused_in_the_place_of_its_successor(
    founder: Founder, home: Home, pin: Pin, told: dict[str, Any]
) -> None:
    new = next_seed(home.operator_key, "O")
    told["successors"] = (added(home, pin, "operator", new),)
    await founder.found()
    home.former_key(pin.operator).rename(home.operator_key)
    with pytest.raises(UsageError, match="is not the operator's key"):
        pinned_network(home)


async def test_ledger_key_in_force_that_is_not_here_is_named(
    founder: Founder, home: Home, pin: Pin, told: dict[str, Any]
) -> None:
    new = Key.from_raw(b"4" * 32)
    told["successors"] = (added(home, pin, "ledger", new),)
    await founder.found()
    with pytest.raises(UsageError, match=new.id) as caught:
        pinned_network(home)
    assert "copy" in caught.value.hint
    load_or_create(home.ledger_successor(new.id))
    assert pinned_network(home) == pin
