"""The library as its tutorial has it: an aggregate an account, load, mutate, save. The yardstick of `sawyer bench
ledger`
(nothing else uses it): what group commit and memory save is measured against the same work done so."""

from __future__ import annotations

from pathlib import Path
from typing import Self
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event


class PlainAccount(Aggregate):
    """Tokens of one account, without any rule."""

    @event("Opened")
    def __init__(self, available: int) -> None:
        self.available = available
        self.held = 0
        self.consumed = 0

    @event("Reserved")
    def reserve(self, request: str, tokens: int) -> None:  # noqa: ARG002 (the event keeps it)
        """Hold tokens for a request."""
        self.available -= tokens
        self.held += tokens

    @event("Completed")
    def complete(self, request: str, held: int, billed: int) -> None:  # noqa: ARG002 (the event keeps it)
        """Debit what was used of a hold, release the rest."""
        self.held -= held
        self.consumed += billed
        self.available += held - billed


class PlainLedger:
    """Accounts in a SQLite file, each command a transaction of its own. Use it as a context."""

    def __init__(self, path: Path) -> None:
        environment = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
        self._application: Application[UUID] = Application(environment)

    def open(self, tokens: int) -> UUID:
        """A new account."""
        account = PlainAccount(tokens)
        self._application.save(account)
        return account.id

    def reserve(self, account: UUID, request: str, tokens: int) -> None:
        """Durable when it returns."""
        found: PlainAccount = self._application.repository.get(account)
        found.reserve(request, tokens)
        self._application.save(found)

    def complete(self, account: UUID, request: str, held: int, billed: int) -> None:
        """Durable when it returns."""
        found: PlainAccount = self._application.repository.get(account)
        found.complete(request, held, billed)
        self._application.save(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._application.close()
