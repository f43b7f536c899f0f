"""In which order files are split when shards come one after the other, and how much room that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sawyer.ids import ModelId
from sawyer.model.artifacts import expected_files
from sawyer.model.checkpoint import Checkpoint, StoredTensor, TensorRef
from sawyer.model.families import family_of
from sawyer.model.split import split
from sawyer.model.supply import AllHere, Step, in_order_of_shards, last_uses, missing_shards, most_added

SHARDS = [Path("0"), Path("1"), Path("2")]
STORED = {name: StoredTensor(SHARDS[n], "F32", (1,), 0) for n, name in enumerate("abc")}


def refs(*names: str) -> tuple[TensorRef, ...]:
    return tuple(TensorRef.all_of(name, 1) for name in names)


def test_each_file_is_written_when_its_last_shard_is_there() -> None:
    made_of = {"late": refs("c"), "both": refs("b", "a"), "first": refs("a"), "second": refs("b")}
    steps = in_order_of_shards(dict.fromkeys([*made_of, "words"], 7), made_of, STORED, SHARDS, {"both"})
    assert [step.path for step in steps] == ["words", "first", "both", "second", "late"]
    assert [step.shards for step in steps] == [set(), {0}, {0, 1}, {1}, {2}]
    assert [step.path for step in steps if step.written] == ["both"]
    assert last_uses(steps) == {"both": {0}, "second": {1}, "late": {2}}


def step(path: str, *shards: int, written: bool = False) -> Step:
    return Step(path, 1, frozenset(shards), written)


@pytest.mark.parametrize(
    ("steps", "here", "most"),
    [
        ([step("a", 0), step("b", 1), step("c", 2)], (0, 0, 0), 400),
        ([step("a", 0), step("b", 0, 1), step("c", 1, 2)], (0, 0, 0), 500),
        ([step("a", 0), step("b", 1), step("c", 0, 2)], (0, 0, 0), 700),
        ([step("a", 0, written=True), step("b", 0, 1, written=True), step("c", 2, written=True)], (0, 0, 0), 0),
        ([step("a", 0, written=True), step("b", 1), step("c", 2, written=True)], (0, 0, 0), 100),
        ([step("a", 0), step("b", 1), step("c", 2)], (0, 0, 300), 400),
        ([step("a", 0), step("b", 1), step("c", 2)], (350, 0, 300), 50),
        ([step("a", 0), step("b", 1), step("c", 2)], (400, 100, 300), 0),
        ([], (0, 0, 0), 0),
    ],
)
def test_room_for_shards_is_that_of_the_worst_moment(steps: list[Step], here: tuple[int, ...], most: int) -> None:
    """Beside what is here: that of a later shard stays until its turn."""
    assert most_added(steps, [400, 100, 300], here) == most


def test_shards_of_files_that_are_written_are_not_missing() -> None:
    assert missing_shards([step("a", 0, 1, written=True), step("b", 1, 2), step("c")]) == {1, 2}


@pytest.mark.parametrize(("format", "trunk"), [("f32", "f32"), ("q4", "q8")])
def test_a_split_tells_of_every_weights_file_and_all_its_tensors(
    tiny: Any, tmp_path: Path, format: Any, trunk: Any
) -> None:
    class Listening(AllHere):
        def schedule(
            self, out: Path, sizes: Mapping[str, int], refs: Mapping[str, tuple[TensorRef, ...]]
        ) -> Sequence[str]:
            self.made_of = refs
            return super().schedule(out, sizes, refs)

    checkpoint, heard = Checkpoint.open(tiny.write()), Listening()
    split(checkpoint, tmp_path / "out", model=ModelId("tiny"), format=format, trunk_format=trunk, supply=heard)
    family = family_of(checkpoint.config)
    layout = family.layout(checkpoint.config)
    tensors = family.tensors(layout, checkpoint.tensors.keys(), tied=False)
    assert heard.made_of.keys() == expected_files(layout, format, trunk, tied=False).keys()
    assert {ref for of_file in heard.made_of.values() for ref in of_file} == set(tensors.refs())
