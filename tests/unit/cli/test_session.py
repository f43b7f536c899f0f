"""Who answers: the network that this home is pinned to, or nobody that it will use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.bus.protocol import Message
from sawyer.bus.service import Service
from sawyer.cli.session import account_key, checked_network, chosen_model
from sawyer.errors import NobodyServes, UnknownModel, UsageError, VerificationError
from sawyer.home import Home, Pin
from sawyer.identity.keys import Key, load_or_create
from sawyer.ledger.checkpoint import Checkpoint, vkey_of
from sawyer.schemas import subjects
from sawyer.schemas.base import Fact
from sawyer.schemas.messages import ErrorBody, NetworkReply, QueryError

NETWORK = "sawyer-net/3f9a1c22"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def told(keys: dict[str, Key]) -> NetworkReply:
    ledger = keys["ledger"]
    return NetworkReply(
        network=NETWORK, ledger_vkey=vkey_of(NETWORK, ledger), operator=keys["operator"].id, successors=(),
        mode="test", models=(), size=1, checkpoint=Checkpoint(NETWORK, 1, bytes(32)).sign(ledger), now_ms=1,
    )  # fmt: skip


@pytest.fixture
async def bus(request: pytest.FixtureRequest, told: NetworkReply) -> AsyncIterator[MemoryBus]:
    """A bus on which a bookkeeper says what `told` says, changed as the test's parameter asks."""
    memory = MemoryNetwork()
    reply = told.model_copy(update=getattr(request, "param", {}))

    async def answer(_: Message) -> bytes:
        return reply.canonical()

    service = Service(
        MemoryBus(memory), subjects.query("network"), answer, lambda e: QueryError(error=ErrorBody.of(e)).canonical(),
        limit=8,
    )  # fmt: skip
    await service.start()
    yield MemoryBus(memory)
    await service.stop()


async def test_home_without_a_network_is_pinned_once_and_says_so(
    bus: MemoryBus, home: Home, told: NetworkReply, capsys: pytest.CaptureFixture[str]
) -> None:
    await checked_network(bus, home, pin=True)
    assert home.pin() == Pin(NETWORK, told.ledger_vkey, told.operator)
    said = capsys.readouterr().err.replace("\n", "")
    assert told.ledger_vkey in said
    assert "compare it" in said
    await checked_network(bus, home, pin=True)
    assert capsys.readouterr().err == ""


async def test_key_that_was_given_vouches_for_itself_and_another_is_refused(
    bus: MemoryBus, home: Home, told: NetworkReply, keys: dict[str, Key], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(VerificationError, match="not with"):
        await checked_network(bus, home, pin=True, vkey=vkey_of(NETWORK, keys["alice"]))
    assert home.pin() is None
    await checked_network(bus, home, pin=True, vkey=told.ledger_vkey)
    said = capsys.readouterr().err
    assert "Nobody vouched" not in said
    assert "the one that you gave" in said


async def test_home_without_a_network_stays_so_unless_pinning_is_asked_for(bus: MemoryBus, home: Home) -> None:
    await checked_network(bus, home)
    assert home.pin() is None


@pytest.mark.parametrize("field", ["network", "ledger_vkey", "operator"])
async def test_network_that_is_not_the_pinned_one_is_refused_with_what_to_do(
    bus: MemoryBus, home: Home, told: NetworkReply, field: str
) -> None:
    pin = {"network": NETWORK, "ledger_vkey": told.ledger_vkey, "operator": told.operator}
    home.write_pin(Pin(**{**pin, field: "another"}))
    with pytest.raises(VerificationError, match="is pinned to another") as caught:
        await checked_network(bus, home, pin=True)
    assert caught.value.hint
    assert home.pin() == Pin(**{**pin, field: "another"})


@pytest.mark.parametrize("bus", [{"checkpoint": ""}, {"checkpoint": "forged"}], indirect=True)
async def test_checkpoint_that_the_ledger_did_not_sign_is_refused(bus: MemoryBus, home: Home) -> None:
    with pytest.raises(VerificationError):
        await checked_network(bus, home, pin=True)
    assert home.pin() is None


async def test_nobody_that_answers_is_said(home: Home) -> None:
    with pytest.raises(NobodyServes):
        await checked_network(MemoryBus(MemoryNetwork()), home)


def test_account_key_of_an_account_that_was_opened_here_is_read(home: Home) -> None:
    key = load_or_create(home.account_key("alice"))
    with pytest.raises(UsageError, match="no account alice"):  # a key alone belongs to no network
        account_key(home, "alice")
    home.write_pin(Pin(NETWORK, "vkey", "operator"))
    assert account_key(home, "alice").id == key.id


def test_account_key_that_is_not_here_names_the_command_that_makes_it(home: Home) -> None:
    home.write_pin(Pin(NETWORK, "vkey", "operator"))
    with pytest.raises(UsageError) as caught:
        account_key(home, "bob")
    assert "sawyer account open bob" in caught.value.hint


def test_model_is_the_one_that_is_wanted_or_the_only_one(told: NetworkReply, event_examples: dict[str, Fact]) -> None:
    published = event_examples["model.published.v1"]
    one = told.model_copy(update={"models": (published,)})
    assert chosen_model(one, "") == chosen_model(one, "austen") == "austen"
    with pytest.raises(UnknownModel):
        chosen_model(one, "other")
    with pytest.raises(UnknownModel):
        chosen_model(told, "")
    two = told.model_copy(update={"models": (published, published.changed(model="other"))})
    with pytest.raises(UsageError) as caught:
        chosen_model(two, "")
    assert "austen, other" in caught.value.hint
