"""Founding against a bookkeeper that keeps another network than the pinned one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.cli.founding import Founder, pinned_network
from sawyer.clock import ManualClock
from sawyer.errors import SawyerError, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key, encode_public, load, load_or_create
from sawyer.ledger.checkpoint import Checkpoint, vkey_of
from sawyer.schemas import subjects
from sawyer.schemas.messages import ErrorBody, NetworkReply, QueryError

OTHERS = Key.from_raw(bytes([77]) * 32)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def pin(home: Home) -> Pin:
    return pinned_network(home)


@pytest.fixture
def told(pin: Pin) -> dict[str, str]:
    """What the bookkeeper says of its network: the pinned one, unless a test changes it."""
    return {"network": pin.network, "ledger_vkey": pin.ledger_vkey, "operator": pin.operator}


@pytest.fixture
async def founder(home: Home, pin: Pin, told: dict[str, str], clock: ManualClock) -> AsyncIterator[Founder]:
    memory = MemoryNetwork()
    note = Checkpoint(pin.network, 1, bytes(32)).sign(load(home.ledger_key))

    async def answer(message: Message) -> bytes:
        return NetworkReply(**told, mode="test", models=(), size=1, checkpoint=note, now_ms=1).canonical()  # type: ignore[arg-type]

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
    founder: Founder, pin: Pin, told: dict[str, str], field: str
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
