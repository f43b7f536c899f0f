"""The book of this home's own network, opened to write in it."""

from __future__ import annotations

from sawyer.home import Pin
from sawyer.identity.keys import load
from sawyer.ids import NetworkId
from sawyer.ledger.book import Book
from sawyer.settings import Settings


def open_book(settings: Settings, pin: Pin) -> Book:
    """With every key that the ledger has had here, and against the checkpoint that the last replay kept. One process at
    a time may write. Raises what Book.open does."""
    home = settings.home
    return Book.open(
        settings.book,
        network=NetworkId(pin.network),
        operator=pin.operator,
        ledger_key=load(home.ledger_key),
        successors=[load(file) for file in home.ledger_successors()],
        views=home.views,
        held=home.held_checkpoint(),
        synchronous=settings.durability,
    )
