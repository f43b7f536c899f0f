"""A process of the ledger's benchmark that ends: an error that says so, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest

from sawyer.bench import ledger, signatures
from sawyer.bookkeeper.verifying import Verified
from sawyer.errors import SawyerError
from sawyer.ledger.commands import VerifiedCommand


class Lost:
    """In place of verifiers whose process has ended."""

    async def verify(self, commands: Sequence[bytes]) -> list[Verified]:
        raise SawyerError(f"a process ended with {len(commands)} commands")


def test_yardstick_raises_if_its_processes_end_at_their_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_work", os._exit)  # no exit status is a pipe: it ends there
    with pytest.raises(SawyerError, match="ended before it was done"):
        signatures.verify_s([(b"", b"", b"")] * 2, 2)


async def test_client_of_the_benchmark_hears_of_it_if_a_verifying_process_ends() -> None:
    arrived: asyncio.Queue[tuple[bytes, asyncio.Future[VerifiedCommand]]] = asyncio.Queue()
    waiting: asyncio.Future[VerifiedCommand] = asyncio.get_running_loop().create_future()
    arrived.put_nowait((b"{}", waiting))
    job = asyncio.create_task(ledger._verify(arrived, Lost()))  # type: ignore[arg-type]
    with pytest.raises(SawyerError, match="a process ended with 1 commands"):
        await waiting
    job.cancel()
