"""Verifiers: a thread or processes, and the same answers. What may be said is not their question."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from sawyer.bookkeeper.verifying import Verifiers
from sawyer.errors import BadSignature, MalformedMessage, SawyerError
from sawyer.identity.keys import Key
from sawyer.ledger.commands import VerifiedCommand, command, read
from sawyer.schemas.base import Fact
from sawyer.schemas.messages import LedgerCommand


@pytest.fixture(params=[0, 1], ids=["thread", "process"])
def verifiers(request: pytest.FixtureRequest) -> Iterator[Verifiers]:
    with Verifiers(request.param) as made:
        yield made


@pytest.fixture
def opening(keys: dict[str, Key], event_examples: dict[str, Fact]) -> LedgerCommand:
    return command(event_examples["account.opened.v1"], "alice", keys["alice"])  # type: ignore[arg-type]


async def test_good_forged_and_broken_commands_are_told_apart_in_their_order(
    verifiers: Verifiers, opening: LedgerCommand, keys: dict[str, Key]
) -> None:
    stolen = opening.attestations[0].changed(key_id=keys["mallory"].id)
    forged = opening.model_copy(update={"attestations": (stolen,)})
    found = await verifiers.verify([opening.canonical(), b"{", forged.canonical(), opening.canonical()])
    assert [type(each) for each in found] == [VerifiedCommand, MalformedMessage, BadSignature, VerifiedCommand]


async def test_verified_command_is_what_the_book_would_read_itself(
    verifiers: Verifiers, opening: LedgerCommand
) -> None:
    (found,) = await verifiers.verify([opening.canonical()])
    assert found == read(opening.canonical())


async def test_killed_process_refuses_what_it_had_and_the_next_commands_have_a_new_one(opening: LedgerCommand) -> None:
    with Verifiers(1) as verifiers:
        await verifiers.verify([opening.canonical()])
        (process,) = verifiers.processes
        os.kill(process, signal.SIGKILL)
        with pytest.raises(SawyerError, match="a process that verifies signatures ended"):
            await _until_refused(verifiers, opening.canonical())
        (found,) = await verifiers.verify([opening.canonical()])
        assert isinstance(found, VerifiedCommand)


async def _until_refused(verifiers: Verifiers, command: bytes) -> None:
    """The pool learns of a death a moment later."""
    while True:
        await verifiers.verify([command])
