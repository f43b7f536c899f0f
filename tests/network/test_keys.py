"""Keys that are replaced or revoked while a network runs: who trusts it still does, and only the right key counts."""

from __future__ import annotations

import asyncio

import pytest

from sawyer.bus.calls import record
from sawyer.cli import rotation
from sawyer.cli.founding import Founder
from sawyer.cli.grants import grant_of_tokens
from sawyer.cli.rotation import revoke, rotate_holder, rotate_ledger, rotate_operator
from sawyer.cli.session import checked_network
from sawyer.clock import SystemClock
from sawyer.errors import Busy, NotAuthorised, RefusedError, UsageError
from sawyer.home import Home
from sawyer.identity.keys import Key, load, load_or_create
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.commands import command
from sawyer.ledger.succession import trusted
from sawyer.model.catalog import DEMO_MODEL
from sawyer.schemas.events import AccountOpened
from sawyer.settings import Settings

from .conftest import start_bookkeeper


def settings_of(network) -> Settings:
    return Settings.load(home=network.home.path, nats=network.url)


def a_grant(network):
    return grant_of_tokens(network.network, "alice", 7, SystemClock().now_ms())


async def generated(network, key: Key | None = None):
    async with network.client(key=key) as client:
        return await client.generate("It was a", model=DEMO_MODEL, max_tokens=8)


async def check_book(network) -> None:
    report = await network.audit()
    assert report.problem is None, report.problem


async def test_network_goes_on_under_a_new_operator_and_old_and_new_homes_trust_it(founded, tmp_path):
    old = load(founded.home.operator_key)
    done = await rotate_operator(settings_of(founded))
    assert (done.old, load(founded.home.operator_key).id) == (old.id, done.new)
    founder = Founder(founded.bus, founded.home, founded.home.pin(), SystemClock())
    told = await founder.found()
    await founder.record(a_grant(founded))
    with pytest.raises(NotAuthorised):
        await record(founded.bus, command(a_grant(founded), "operator", old))
    newcomer = Home(tmp_path / "newcomer")
    await checked_network(founded.bus, newcomer, pin=True)
    assert newcomer.pin() == founded.home.pin(), "the pin stays that of the founding"
    assert trusted(newcomer.pin(), told.successors)[0] == done.new
    await check_book(founded)


@pytest.mark.parametrize("step", ["checked_network", "put_in_place"])
async def test_operators_rotation_that_was_cut_short_after_its_entry_is_finished_by_running_it_again(
    founded, monkeypatch, step
):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    old = load(founded.home.operator_key)
    monkeypatch.setattr(rotation, step, die)
    with pytest.raises(KeyboardInterrupt):
        await rotate_operator(settings_of(founded))
    monkeypatch.undo()
    assert load(founded.home.operator_key).id == old.id
    done = await rotate_operator(settings_of(founded))
    assert (done.old, done.entry) == (old.id, 0)
    assert load(founded.home.operator_key).id == done.new
    assert load(done.former).id == old.id
    await Founder(founded.bus, founded.home, founded.home.pin(), SystemClock()).found()


async def test_ledger_signs_with_its_new_key_from_the_next_checkpoint_on(founded):
    await founded.parts["bookkeeper"].stop()
    done = await asyncio.to_thread(rotate_ledger, settings_of(founded))
    assert load(founded.home.ledger_successor(done.new)).id == done.new
    await start_bookkeeper(founded)
    founder = Founder(founded.bus, founded.home, founded.home.pin(), SystemClock())
    await founder.found()
    await founder.record(a_grant(founded))
    told = await checked_network(founded.bus, founded.home)
    verifiers = trusted(founded.home.pin(), told.successors)[1]
    assert verifiers[-1].key_id == done.new
    assert Checkpoint.verify(told.checkpoint, verifiers[-1]).size == told.size
    await check_book(founded)


async def test_ledgers_key_is_not_replaced_while_its_network_runs(founded):
    with founded.home.alone(), pytest.raises(Busy, match="runs a network"):
        await asyncio.to_thread(rotate_ledger, settings_of(founded))
    assert founded.home.ledger_successors() == []


async def test_ledgers_rotation_that_was_cut_short_before_its_entry_uses_the_seed_that_was_made(founded, monkeypatch):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    await founded.parts["bookkeeper"].stop()
    monkeypatch.setattr(rotation, "command", die)
    with pytest.raises(KeyboardInterrupt):
        rotate_ledger(settings_of(founded))
    monkeypatch.undo()
    (made,) = founded.home.ledger_successors()
    done = rotate_ledger(settings_of(founded))
    assert done.new == load(made).id
    assert founded.home.ledger_successors() == [made]


async def test_account_goes_on_with_its_new_key_and_the_old_one_orders_nothing(network):
    old = load(network.home.account_key("alice"))
    done = await rotate_holder(settings_of(network), "account", "alice")
    assert load(network.home.account_key("alice")).id == done.new != old.id
    assert (await generated(network)).usage.billed_tokens
    with pytest.raises(NotAuthorised):
        await generated(network, old)
    async with network.client() as client:
        assert (await client.open_account()).seq == (await client.account()).opened
    await check_book(network)


async def test_rotation_of_a_holder_that_was_cut_short_after_its_entry_is_finished_by_running_it_again(
    founded, monkeypatch
):
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rotation, "put_in_place", die)
    with pytest.raises(KeyboardInterrupt):
        await rotate_holder(settings_of(founded), "account", "alice")
    monkeypatch.undo()
    done = await rotate_holder(settings_of(founded), "account", "alice")
    assert done.entry == 0
    async with founded.client() as client:
        assert (await client.account()).key == done.new == load(founded.home.account_key("alice")).id


async def test_holder_whose_key_is_elsewhere_or_not_the_books_is_refused(founded):
    with pytest.raises(UsageError, match="no key of node attic"):
        await rotate_holder(settings_of(founded), "node", "attic")
    founded.home.account_key("alice").unlink()
    load_or_create(founded.home.account_key("alice"))
    with pytest.raises(RefusedError, match="the book knows account alice by the key"):
        await rotate_holder(settings_of(founded), "account", "alice")


async def test_node_earns_nothing_with_its_old_key_and_all_of_it_again_when_restarted(network):
    await rotate_holder(settings_of(network), "node", "node-1")
    answer = await generated(network)
    assert {use.node: use.receipted for use in answer.usage.nodes} == {"node-1": False, "node-2": True}
    await network.parts["node-1"].stop()
    await network.add_node("node-1", 0, 2)
    directory = network.parts["router-1"].part._directory
    node, key = directory.placement.nodes["node-1"], load(network.home.node_key("node-1")).id
    async with asyncio.timeout(10):
        while node.key != key or node.gone or node.draining:
            directory.changed.clear()
            await directory.changed.wait()
    answer = await generated(network)
    assert {use.node: use.receipted for use in answer.usage.nodes} == {"node-1": True, "node-2": True}
    await check_book(network)


async def test_revoked_key_signs_nothing_any_more_whoever_revoked_it(founded, keys, tmp_path):
    done = await rotate_holder(settings_of(founded), "account", "alice")
    await revoke(settings_of(founded), done.old, 0, "retired")
    opened = AccountOpened(network=founded.network, account="carol", key=done.old)
    with pytest.raises(NotAuthorised, match="was revoked"):
        await record(founded.bus, command(opened, "carol", load(done.former)))
    elsewhere = Home(tmp_path / "elsewhere")
    await checked_network(founded.bus, elsewhere, pin=True)
    load_or_create(elsewhere.account_key("bob"))
    holder = Settings.load(home=elsewhere.path, nats=founded.url)
    key = load(elsewhere.account_key("bob"))
    async with founded.client("bob", key) as client:
        await client.open_account()
    await revoke(holder, key.id, 5, "stolen")
    with pytest.raises(NotAuthorised, match="does not hold the operator's key"):
        await revoke(holder, keys["mallory"].id, 0, "stolen")
    await check_book(founded)


async def test_operators_key_in_office_cannot_be_revoked(founded):
    with pytest.raises(RefusedError, match="in office"):
        await revoke(settings_of(founded), load(founded.home.operator_key).id, 0, "stolen")
