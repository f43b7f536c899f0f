"""Both sides of witnessing, over a bus in memory: what the bookkeeper offers and takes, what a node cosigns."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from sawyer.bookkeeper.witnessing import MAX_AHEAD_S, MAX_COSIGNATURES, OFFER_FOR_MS, OFFERS_KEPT, Witnessing
from sawyer.bus.memory import MemoryBus, MemoryNetwork
from sawyer.clock import ManualClock
from sawyer.errors import (
    BadSignature,
    Busy,
    NotAuthorised,
    NotExtended,
    RefusedError,
    RetiredKey,
    RolledBack,
    SplitView,
    VerificationError,
)
from sawyer.home import Pin
from sawyer.identity.keys import Key
from sawyer.ids import NodeId
from sawyer.ledger.checkpoint import Checkpoint, vkey_of
from sawyer.ledger.keyring import node_cosigner
from sawyer.ledger.witness import cosign, witness_name, witnessed
from sawyer.node import witness as node_witness
from sawyer.node.witness import EVIDENCE_FILE, HELD_FILE, SUCCESSORS_FILE, CheckpointWitness, Evidence
from sawyer.schemas.events import Successor
from sawyer.schemas.messages import CosignQuery, CosignReply, NetworkReply, TreeQuery, TreeReply

from .grown import NETWORK, Grown, serving, successor


@pytest.fixture
def log(keys: dict[str, Key]) -> Grown:
    """Seven entries; node-a and node-b are registered."""
    made = Grown(keys["ledger"], {name: keys[name] for name in ("node-a", "node-b")})
    made.grow(7)
    return made


@pytest.fixture
def witnessing(log: Grown, clock: ManualClock, tmp_path: Path) -> Witnessing:
    return Witnessing(log, clock, tmp_path / "cosigned.txt")


@pytest.fixture
def told() -> list[Successor]:
    """The later keys that the network tells of."""
    return []


@pytest.fixture
async def bus(witnessing: Witnessing, keys: dict[str, Key], told: list[Successor]) -> AsyncIterator[MemoryBus]:
    """A node's connection; the bookkeeper's side answers."""
    network = MemoryNetwork()

    def say(_: bytes) -> NetworkReply:
        return NetworkReply(
            network=NETWORK, ledger_vkey=vkey_of(NETWORK, keys["ledger"]), operator=keys["operator"].id,
            successors=tuple(told), mode="test", models=(), size=9, checkpoint="", now_ms=0,
        )  # fmt: skip

    async with serving(network, {"tree": witnessing.tree, "cosign": witnessing.cosign, "network": say}):
        yield MemoryBus(network)


@pytest.fixture
def node(bus: MemoryBus, keys: dict[str, Key], clock: ManualClock, tmp_path: Path) -> Callable[..., CheckpointWitness]:
    """`node()` is node-a as a witness, with what an earlier one of that name left behind."""

    def make(name: str = "node-a", own: MemoryBus | None = None) -> CheckpointWitness:
        pin = Pin(NETWORK, vkey_of(NETWORK, keys["ledger"]), keys["operator"].id)
        made = CheckpointWitness(own or bus, NodeId(name), keys[name], pin, tmp_path / "witness" / name, clock)
        assert made._begin()
        return made

    return make


# --- together ---------------------------------------------------------------------------------------------------------


async def test_checkpoint_is_cosigned_by_every_node_that_asks(node, witnessing: Witnessing, log: Grown) -> None:
    assert await node().ask_once() == CosignReply(size=7, witnesses=1)
    assert await node("node-b").ask_once() == CosignReply(size=7, witnesses=2)
    known = [node_cosigner(NETWORK, name, key.id) for name, key in log.nodes.items()]
    assert witnessed(witnessing.cosigned, known) == dict.fromkeys(known, 1_700_000_000)


async def test_witness_that_comes_back_goes_on_from_what_it_held(node, log: Grown, clock: ManualClock) -> None:
    await node().ask_once()
    log.grow(5)
    clock.advance(OFFER_FOR_MS)
    assert await node().ask_once() == CosignReply(size=12, witnesses=1)


async def test_witness_cosigns_one_checkpoint_once(node) -> None:
    witness = node()
    assert await witness.ask_once() is not None
    assert await witness.ask_once() is None


async def test_line_that_was_not_taken_is_handed_in_again(node, witnessing: Witnessing, monkeypatch) -> None:
    witness, taken = node(), witnessing._keep
    monkeypatch.setattr(witnessing, "_keep", lambda *_: (_ for _ in ()).throw(Busy("not now")))
    with pytest.raises(Busy):
        await witness.ask_once()
    monkeypatch.setattr(witnessing, "_keep", taken)
    assert await witness.ask_once() == CosignReply(size=7, witnesses=1)


# --- what a node refuses ----------------------------------------------------------------------------------------------


async def test_split_view_ends_the_witness_for_good_with_its_evidence(
    node, log: Grown, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    witness = node()
    await witness.ask_once()
    first = log.checkpoint()
    log.fork(5)
    log.grow(2, b"other")
    clock.advance(OFFER_FOR_MS)
    await witness.run()  # returns, and waits for nothing
    kept = Evidence.parse((tmp_path / "witness" / "node-a" / EVIDENCE_FILE).read_bytes().rstrip(b"\n"))
    assert (kept.code, kept.held, kept.offered.note) == (SplitView.code, first, log.checkpoint())
    assert "node-a cosigns no more: two trees of 7 entries are signed" in caplog.text
    log.fork(0)
    log.grow(20)
    caplog.clear()
    await witness.run()
    assert "the ledger signed two trees of one size" in caplog.text


async def test_rollback_is_refused_and_a_later_extension_is_not(
    node, log: Grown, clock: ManualClock, tmp_path: Path
) -> None:
    witness = node()
    await witness.ask_once()
    log.fork(4)
    clock.advance(OFFER_FOR_MS)
    with pytest.raises(RolledBack):
        await witness.ask_once()
    assert (tmp_path / "witness" / "node-a" / EVIDENCE_FILE).exists()
    assert Checkpoint.read((tmp_path / "witness" / "node-a" / HELD_FILE).read_text()).size == 7
    log.grow(5)  # the same entries as before, and two more
    clock.advance(OFFER_FOR_MS)
    reply = await node().ask_once()
    assert reply is not None
    assert reply.size == 9


async def test_fork_is_refused_however_often_it_is_offered(node, log: Grown, clock: ManualClock) -> None:
    await node().ask_once()
    log.fork(5)
    log.grow(9, b"other")
    for _ in range(3):
        clock.advance(OFFER_FOR_MS)
        with pytest.raises(NotExtended):
            await node().ask_once()


async def test_checkpoint_of_a_stranger_is_not_cosigned(keys, node, log: Grown, tmp_path: Path) -> None:
    network = MemoryNetwork()
    forged = Grown(keys["mallory"], log.nodes)
    forged.grow(7)
    said = NetworkReply(
        network=NETWORK, ledger_vkey=vkey_of(NETWORK, keys["mallory"]), operator=keys["operator"].id, successors=(),
        mode="test", models=(), size=7, checkpoint="", now_ms=0,
    )  # fmt: skip
    answers = {"tree": lambda _: TreeReply(note=forged.checkpoint(), hashes=()), "network": lambda _: said}
    async with serving(network, answers):
        with pytest.raises(BadSignature):
            await node(own=MemoryBus(network)).ask_once()
    assert not (tmp_path / "witness").exists()


async def test_checkpoint_of_a_later_ledger_key_is_cosigned_if_the_pinned_operator_added_it(
    keys, node, log: Grown, clock: ManualClock, told: list[Successor]
) -> None:
    await node().ask_once()
    log.key = keys["router"]
    log.grow(2)
    clock.advance(OFFER_FOR_MS)
    told.append(successor(keys["router"], keys["mallory"], 7))
    with pytest.raises(VerificationError, match="is signed by"):
        await node().ask_once()
    told[:] = [successor(keys["router"], keys["operator"], 7)]
    assert await node().ask_once() == CosignReply(size=9, witnesses=1)


async def test_witness_never_cosigns_what_a_former_key_signs_after_its_time(
    keys, node, log: Grown, clock: ManualClock, told: list[Successor], tmp_path: Path
) -> None:
    """Even if it extends what the witness holds, and whoever answers: what it was told it remembers."""
    await node().ask_once()
    told.append(successor(keys["router"], keys["operator"], 7))
    log.key = keys["router"]
    log.grow(2)
    clock.advance(OFFER_FOR_MS)
    await node().ask_once()
    log.key = keys["ledger"]
    log.grow(3)
    for said in (list(told), []):
        told[:] = said
        clock.advance(OFFER_FOR_MS)
        with pytest.raises(RetiredKey, match="a checkpoint of 12 entries"):
            await node().ask_once()
    (tmp_path / "witness" / "node-a" / SUCCESSORS_FILE).unlink()
    with pytest.raises(BadSignature, match="size 9"):
        await node().ask_once()  # nobody says whose key signed what it holds
    log.key = keys["router"]
    told.append(successor(keys["router"], keys["operator"], 7))
    clock.advance(OFFER_FOR_MS)
    assert await node().ask_once() == CosignReply(size=12, witnesses=1)


@pytest.mark.parametrize("moved_on", [False, True])
async def test_two_trees_of_one_size_end_no_witness_if_one_is_by_a_former_key(
    keys, node, log: Grown, clock: ManualClock, told: list[Successor], tmp_path: Path, moved_on: bool, monkeypatch
) -> None:
    """Who stole a key that was replaced may sign what he likes with it: it is kept as evidence, and no more."""
    await node().ask_once()
    told.append(successor(keys["router"], keys["operator"], 7))
    if moved_on:
        log.key = keys["router"]
        log.grow(2)
        clock.advance(OFFER_FOR_MS)
        await node().ask_once()
    true, log.key = list(log.leaves), keys["ledger"]
    log.fork(5)
    log.grow(len(true) - 5, b"other")
    clock.advance(OFFER_FOR_MS)
    witness = node()
    with pytest.raises(RetiredKey):
        await witness.ask_once()
    kept = Evidence.parse((tmp_path / "witness" / "node-a" / EVIDENCE_FILE).read_bytes().rstrip(b"\n"))
    assert (kept.code, kept.offered.note) == (RetiredKey.code, log.checkpoint())
    log.fork(0)
    for leaf in true:
        log.leaves.append(leaf)
        log.tree.append(leaf)
    log.key = keys["router"]
    log.grow(3)
    clock.advance(OFFER_FOR_MS)
    reply = await node().ask_once()  # also after a restart
    assert reply is not None
    assert reply.size == len(true) + 3


async def test_split_view_by_the_newest_key_ends_the_witness_after_a_rotation_too(
    keys, node, log: Grown, clock: ManualClock, told: list[Successor]
) -> None:
    told.append(successor(keys["router"], keys["operator"], 5))
    log.key = keys["router"]
    await node().ask_once()
    log.fork(6)
    log.grow(1, b"other")
    clock.advance(OFFER_FOR_MS)
    with pytest.raises(SplitView):
        await node().ask_once()


async def test_damaged_memory_of_the_ledgers_keys_lets_a_witness_cosign_nothing(
    keys, bus: MemoryBus, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture, witnessing: Witnessing
) -> None:
    (tmp_path / SUCCESSORS_FILE).write_bytes(b"{}\n")
    pin = Pin(NETWORK, vkey_of(NETWORK, keys["ledger"]), keys["operator"].id)
    await CheckpointWitness(bus, NodeId("node-a"), keys["node-a"], pin, tmp_path, clock).run()
    assert "node-a cosigns nothing: cannot read" in caplog.text
    assert witnessing.cosigned == ""


async def test_node_that_changed_its_key_is_one_witness(
    keys, node, log: Grown, witnessing: Witnessing, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node().ask_once()
    monkeypatch.setitem(keys, "node-a", Key.from_raw(b"9" * 32))
    log.nodes["node-a"] = keys["node-a"]
    assert await node().ask_once() == CosignReply(size=7, witnesses=1)
    assert list(witnessed(witnessing.cosigned, [node_cosigner(NETWORK, "node-a", keys["node-a"].id)]))


async def test_what_goes_wrong_is_told_once_and_the_witness_goes_on(
    node, log: Grown, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, witness = iter(range(3)), node()

    async def turn(_: float) -> None:
        if next(turns, None) is None:
            raise EndOfTest

    monkeypatch.setattr(node_witness.asyncio, "sleep", turn)
    log.fork(0)
    with caplog.at_level(logging.INFO), pytest.raises(EndOfTest):
        await witness.run()
    assert caplog.text.count("node-a has cosigned nothing: nothing is written in this book yet") == 1


class EndOfTest(Exception):
    """Ends a loop that has no end."""


@pytest.mark.parametrize(
    "content", [b"x", b"\xff", b"other-net/1\n1\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 a AAAAAAA=\n"]
)
async def test_node_whose_held_file_is_damaged_or_of_another_log_cosigns_nothing(
    content: bytes, keys, bus: MemoryBus, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    witnessing: Witnessing,
) -> None:  # fmt: skip
    (tmp_path / HELD_FILE).write_bytes(content)
    pin = Pin(NETWORK, vkey_of(NETWORK, keys["ledger"]), keys["operator"].id)
    await CheckpointWitness(bus, NodeId("node-a"), keys["node-a"], pin, tmp_path, clock).run()
    assert "node-a cosigns nothing" in caplog.text
    assert (tmp_path / HELD_FILE).read_bytes() == content
    assert witnessing.cosigned == ""


# --- what the bookkeeper does -----------------------------------------------------------------------------------------


def ask(witnessing: Witnessing, size: int = 0) -> TreeReply:
    return witnessing.tree(TreeQuery(size=size).canonical())


def line(
    log: Grown, name: str = "node-a", *, key: Key | None = None, size: int = 7, at_s: int = 1_700_000_000
) -> bytes:
    root = log.tree.root_at(size, lambda first, count: log.leaves[first : first + count])
    signature = cosign(Checkpoint(NETWORK, size, root), witness_name(NETWORK, name), key or log.nodes[name], at_s)
    return CosignQuery(node=name, size=size, line=signature.line).canonical()


def test_one_checkpoint_is_offered_to_all_for_a_while(witnessing: Witnessing, log: Grown, clock: ManualClock) -> None:
    first = ask(witnessing)
    log.grow(3)
    clock.advance(OFFER_FOR_MS - 1)
    assert ask(witnessing) == first
    clock.advance(1)
    later = ask(witnessing, 7)
    assert (Checkpoint.read(later.note).size, len(later.hashes)) == (10, len(log.consistency(7, 10)))
    clock.advance(-10 * OFFER_FOR_MS)
    log.grow(1)
    assert Checkpoint.read(ask(witnessing).note).size == 11  # a clock that jumps back stops nobody


def test_who_holds_more_than_the_book_is_shown_the_book(witnessing: Witnessing, log: Grown) -> None:
    assert ask(witnessing, 99) == TreeReply(note=log.checkpoint(), hashes=())


def test_empty_book_offers_nothing(log: Grown, clock: ManualClock) -> None:
    log.fork(0)
    with pytest.raises(RefusedError, match="nothing is written"):
        ask(Witnessing(log, clock))


def test_line_of_a_stranger_or_for_what_was_never_offered_is_refused(
    witnessing: Witnessing, log: Grown, keys: dict[str, Key]
) -> None:
    ask(witnessing)
    with pytest.raises(NotAuthorised, match="no node mallory"):
        witnessing.cosign(line(log, "mallory", key=keys["mallory"]))
    with pytest.raises(BadSignature):
        witnessing.cosign(line(log, key=keys["mallory"]))
    with pytest.raises(BadSignature):
        witnessing.cosign(CosignQuery.parse(line(log)).model_copy(update={"node": "node-b"}).canonical())
    with pytest.raises(RefusedError, match="size 6 is offered"):
        witnessing.cosign(line(log, size=6))
    assert witnessing.cosigned == ""


def test_line_from_the_far_future_is_refused(witnessing: Witnessing, log: Grown) -> None:
    ask(witnessing)
    witnessing.cosign(line(log, at_s=1_700_000_000 + MAX_AHEAD_S))
    for ahead_s in (MAX_AHEAD_S + 1, 2**62):
        with pytest.raises(RefusedError, match="in the future"):
            witnessing.cosign(line(log, at_s=1_700_000_000 + ahead_s))


def test_cosignatures_outlive_the_bookkeeper(
    witnessing: Witnessing, log: Grown, clock: ManualClock, tmp_path: Path
) -> None:
    ask(witnessing)
    witnessing.cosign(line(log))
    again = Witnessing(log, clock, tmp_path / "cosigned.txt")
    assert again.cosigned == witnessing.cosigned != ""
    ask(again)
    assert again.cosign(line(log, "node-b")) == CosignReply(size=7, witnesses=2)


def test_line_for_an_older_checkpoint_never_replaces_a_newer_one(
    witnessing: Witnessing, log: Grown, clock: ManualClock
) -> None:
    ask(witnessing)
    late = line(log, "node-b")
    log.grow(3)
    clock.advance(OFFER_FOR_MS)
    ask(witnessing)
    witnessing.cosign(line(log, size=10))
    assert witnessing.cosign(late) == CosignReply(size=10, witnesses=1)


def test_offers_and_lines_are_bounded(log: Grown, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(MAX_COSIGNATURES + 1):
        log.nodes[f"n{number}"] = Key.from_raw(number.to_bytes(32, "big"))
    witnessing = Witnessing(log, clock)
    ask(witnessing)
    for number in range(MAX_COSIGNATURES):
        witnessing.cosign(line(log, f"n{number}"))
    with pytest.raises(Busy, match=f"{MAX_COSIGNATURES} witnesses"):
        witnessing.cosign(line(log, f"n{MAX_COSIGNATURES}"))
    assert witnessing.cosign(line(log, "n0", at_s=1_700_000_009)).witnesses == MAX_COSIGNATURES
    for _ in range(OFFERS_KEPT):
        log.grow(1)
        clock.advance(OFFER_FOR_MS)
        ask(witnessing)
    with pytest.raises(RefusedError, match="size 7 is offered"):
        witnessing.cosign(line(log, "n1"))
