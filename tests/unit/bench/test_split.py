"""The benchmark of the split: how big the checkpoint is, and that there is room for it."""

from __future__ import annotations

from collections import namedtuple

import pytest

from sawyer.bench import split as module
from sawyer.bench.split import SplitPlan, measure
from sawyer.errors import NoSpace

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(("quick", "size"), [(False, 2_000_000_000), (False, 9_000_000_000), (True, 100_000_000)])
def test_checkpoint_has_about_the_size_asked_for(quick: bool, size: int) -> None:
    shape = SplitPlan(size, 1, "q4", "f32", quick).shape
    experts = 3 * shape.hidden * shape.ffn * shape.experts * shape.layers * module.BF16_BYTES
    assert 0.7 * size < experts < 1.3 * size


def test_full_disk_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    monkeypatch.setattr(module, "write_checkpoint", lambda *_: pytest.fail("it was written"))
    with pytest.raises(NoSpace, match=r"8\.0 GB are needed"):
        measure(SplitPlan(2_000_000_000, 1, "q4", "f32", quick=False), "asyncio", lambda _: None)
