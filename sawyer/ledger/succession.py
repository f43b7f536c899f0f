"""Who speaks for a network, for those who trust its pin: the two keys of its founding, and the keys that replaced them.
The one place that says so; whether a statement could stand where it stands in the book is replay's question.

Each successor is a signed statement of the operator of its time, so the pin alone proves the newest keys. A key of the
ledger signs up to the checkpoint that covers the naming of the next: with one that is stolen later nobody can make the
book longer. What somebody was told and has checked is remembered: a network that leaves it out later is not believed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sawyer import durable
from sawyer.errors import NotCanonical, VerificationError
from sawyer.home import Pin
from sawyer.identity.envelope import check_signed
from sawyer.identity.keys import public_bytes
from sawyer.ledger.checkpoint import Verifier
from sawyer.ledger.commands import LEDGER_NAME, OPERATOR_NAME
from sawyer.ledger.seek import covered_at
from sawyer.ledger.store import Store
from sawyer.projections.registry import Registry
from sawyer.schemas.events import KIND_OF, KeyAdded, Successor

log = logging.getLogger(__name__)


def trusted(pin: Pin, successors: Iterable[Successor]) -> tuple[str, tuple[Verifier, ...]]:
    """The operator's key now, and every key that may have signed checkpoints, each with the sizes at which it may, the
    newest last. Raises VerificationError unless each successor is signed by the operator of its time, the first by the
    pinned one, and each is covered by a larger checkpoint than the ledger's key before it."""
    operator, verifiers = pin.operator, [Verifier.parse(pin.ledger_vkey)]
    for number, each in enumerate(successors, start=1):
        body, signer = each.added.body, each.added.signature
        expected = (pin.network, operator, OPERATOR_NAME)
        if (body.network, signer.key_id, signer.by) != expected:
            raise _broken(pin, number, f"is signed by {signer.key_id} for {body.network}, expected {operator}")
        check_signed(each.added, KIND_OF[KeyAdded])
        if body.role == OPERATOR_NAME and body.key.startswith("O"):
            operator = body.key
        elif body.role != LEDGER_NAME:
            raise _broken(pin, number, f"gives {body.key} the role {body.role}, which has no successors")
        elif each.covered < verifiers[-1].first - 1:  # two in one batch are covered by one checkpoint
            raise _broken(pin, number, f"is said to be covered by {each.covered} entries, before the one before it")
        else:
            verifiers[-1] = replace(verifiers[-1], last=each.covered)
            verifiers.append(Verifier(pin.network, public_bytes(body.key), first=each.covered + 1))
    return operator, tuple(verifiers)


class Succession:
    """The successors in a book that is being written, as newcomers are told of them. Where each is covered is looked
    up once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._covered: dict[int, int] = {}

    def told(self, registry: Registry) -> tuple[Successor, ...]:
        """All of them, in order; they must be written. Raises SawyerError if the database cannot."""
        return tuple(
            Successor(added=each, covered=self._covered_at(registry.keys[each.body.key].valid_from_seq))
            for each in registry.successors
        )

    def _covered_at(self, seq: int) -> int:
        if seq not in self._covered:
            self._covered[seq] = covered_at(self._store, seq)
        return self._covered[seq]


def known_successors(file: Path) -> tuple[Successor, ...]:
    """What is remembered in this file. Raises VerificationError if it is damaged."""
    try:
        return tuple(map(Successor.parse, file.read_bytes().splitlines()))
    except FileNotFoundError:
        return ()
    except (OSError, NotCanonical) as error:
        raise VerificationError(
            f"cannot read {file}: {error}", hint="Restore it; if you cannot, delete it: it is told again."
        ) from error


def with_remembered(file: Path, told: Sequence[Successor]) -> tuple[Successor, ...]:
    """What was told, as far as it may be believed by who remembers what is in this file. Where a statement stands is
    not signed: of two sizes the smaller counts, so that no key gets more to sign by a lie. Raises VerificationError if
    something is left out, or another, that is remembered."""
    known = known_successors(file)
    if [each.added for each in told[: len(known)]] != [each.added for each in known]:
        raise VerificationError(
            f"a key that was given a role in this network is left out: {file} has it",
            hint="Somebody stands in for your network, or its book was restored from before: ask its operator. Only if "
            "the operator says so: delete that file.",
        )
    lowest = [min(one.covered, other.covered) for one, other in zip(told, known, strict=False)]
    return tuple(each.model_copy(update={"covered": low}) for each, low in zip(told, lowest, strict=False)) + tuple(
        told[len(known) :]
    )


def check_remembered(file: Path, told: Sequence[Successor]) -> tuple[Successor, ...]:
    """Remember what was told, once it is checked; what may be believed of it. Raises what `with_remembered` does."""
    believed = with_remembered(file, told)
    if believed != known_successors(file):
        try:
            durable.replace(file, b"".join(each.canonical() + b"\n" for each in believed))
        except OSError as error:  # a home may be only read here
            log.warning("cannot remember the network's new keys: %s", error)
    return believed


def _broken(pin: Pin, number: int, why: str) -> VerificationError:
    return VerificationError(
        f"a key is said to have replaced an older one of {pin.network}, and statement {number} {why}",
        hint="Trust it no further: somebody stands in for your network, or made this book. Ask its operator.",
    )
