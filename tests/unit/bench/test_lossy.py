"""The lossy link: which packets are lost is decided by a seed, and the others come later, in order."""

from __future__ import annotations

import asyncio
import os

import pytest

from sawyer.bench import lossy
from sawyer.bench.lossy import Losses, Way
from sawyer.errors import UsageError


def test_share_of_the_packets_is_lost_and_the_same_ones_for_the_same_seed() -> None:
    lost = [[one.next() for _ in range(10_000)] for one in (Losses(0.02, 7), Losses(0.02, 7), Losses(0.02, 8))]
    assert lost[0] == lost[1] != lost[2]
    assert 100 < sum(lost[0]) < 300
    assert not any(Losses(0.0, 1).next() for _ in range(100))


@pytest.mark.parametrize(("share", "arrived"), [(0.0, [b"one", b"two", b"three"]), (1.0, [])])
async def test_packets_come_out_in_order_unless_they_are_lost(share: float, arrived: list[bytes]) -> None:
    (source, enters), (leaves, target) = os.pipe(), os.pipe()
    loop, way = asyncio.get_running_loop(), Way(source, target, 0.001, Losses(share, 1))
    for each in (source, leaves):
        os.set_blocking(each, False)
    came: list[bytes] = []
    all_came = asyncio.Event()

    def take() -> None:
        came.append(os.read(leaves, 100))
        if b"".join(came) == b"".join(arrived):
            all_came.set()

    loop.add_reader(leaves, take)
    way.start()
    for packet in (b"one", b"two", b"three"):
        os.write(enters, packet)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    if arrived:
        await asyncio.wait_for(all_came.wait(), 10)
    assert b"".join(came) == b"".join(arrived)
    for each in (source, leaves):
        loop.remove_reader(each)
    for each in (source, enters, leaves, target):
        os.close(each)


def test_machine_that_cannot_lose_packets_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lossy.shutil, "which", lambda tool: None if tool == "nsenter" else "/bin/true")
    with pytest.raises(UsageError, match="nsenter is not here"):
        lossy.check_possible()
    monkeypatch.setattr(lossy.shutil, "which", lambda _: "/bin/true")
    monkeypatch.setattr(lossy.os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="this is not root"):
        lossy.check_possible()
