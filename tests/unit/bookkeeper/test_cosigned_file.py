"""The file in which the bookkeeper keeps what witnesses cosigned: only what is of its book stays there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sawyer.bookkeeper.witnessing import Witnessing
from sawyer.clock import ManualClock
from sawyer.identity.keys import Key
from sawyer.ledger.checkpoint import Checkpoint
from sawyer.ledger.merkle import Tree
from sawyer.ledger.witness import cosign, witness_name
from sawyer.schemas.messages import CosignQuery, TreeQuery

from .grown import NETWORK, Grown


@pytest.fixture
def log(keys: dict[str, Key]) -> Grown:
    """Seven entries, and a node."""
    made = Grown(keys["ledger"], {"node-a": keys["node-a"]})
    made.grow(7)
    return made


def line(log: Grown) -> bytes:
    """The node's line on the log's newest checkpoint."""
    found = Checkpoint.read(log.checkpoint())
    signature = cosign(found, witness_name(NETWORK, "node-a"), log.nodes["node-a"], 1_700_000_000)
    return CosignQuery(node="node-a", size=found.size, line=signature.line).canonical()


FOREIGN = (
    "damaged", "another tree of its size", "another tree, smaller", "a book that was longer", "another network",
    "of no entry",
)  # fmt: skip


def _foreign(log: Grown) -> dict[str, bytes]:
    """What is no cosigned checkpoint of a log of seven entries."""
    other, longer = Grown(log.key, log.nodes), Grown(log.key, log.nodes)
    other.grow(7, b"other")
    longer.grow(9)
    shorter = Grown(log.key, log.nodes)
    shorter.grow(4, b"other")
    stranger = Checkpoint("another-net/00000000", 7, log.tree.root()).sign(log.key)
    empty = Checkpoint(NETWORK, 0, Tree().root()).sign(log.key)
    return {
        "damaged": b"\xff",
        "another tree of its size": other.checkpoint().encode(),
        "another tree, smaller": shorter.checkpoint().encode(),
        "a book that was longer": longer.checkpoint().encode(),
        "another network": stranger.encode(),
        "of no entry": empty.encode(),
    }


@pytest.mark.parametrize("what", FOREIGN)
def test_kept_note_that_is_not_of_this_book_is_set_aside_and_new_lines_are_taken(
    what: str, log: Grown, clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "cosigned.txt"
    note = _foreign(log)[what]
    file.write_bytes(note)
    witnessing = Witnessing(log, clock, file)
    assert witnessing.cosigned == ""
    assert "is no cosigned checkpoint of this book" in caplog.text
    assert (tmp_path / "cosigned.txt.former-1").read_bytes() == note
    witnessing.tree(TreeQuery(size=0).canonical())
    assert witnessing.cosign(line(log)).witnesses == 1
    assert Checkpoint.read(file.read_text()) == Checkpoint.read(log.checkpoint())


def test_kept_note_of_this_book_is_gone_on_with_when_the_book_has_grown(
    log: Grown, clock: ManualClock, tmp_path: Path
) -> None:
    file = tmp_path / "cosigned.txt"
    kept = log.checkpoint()
    file.write_text(kept)
    log.grow(6)
    assert Witnessing(log, clock, file).cosigned == kept
    assert [each.name for each in tmp_path.iterdir()] == ["cosigned.txt"]


def test_line_is_never_put_under_another_tree_of_the_same_size(log: Grown, clock: ManualClock) -> None:
    witnessing = Witnessing(log, clock)
    witnessing.tree(TreeQuery(size=0).canonical())
    other = Grown(log.key, log.nodes)
    other.grow(7, b"other")
    witnessing._cosigned = other.checkpoint()
    assert witnessing.cosign(line(log)).witnesses == 1
    assert Checkpoint.read(witnessing.cosigned) == Checkpoint.read(log.checkpoint())
