"""Books of random commands: whatever the writer allows of them, in whatever order. To hold two verifiers against each
other where nobody chose the story."""

from __future__ import annotations

import random
from typing import Final

from corpus import cast, story

from sawyer.ledger.book import Book
from sawyer.ledger.commands import VerifiedCommand
from sawyer.ledger.entry import StoredRow
from sawyer.ledger.store import Store
from sawyer.schemas.events import InferenceRequested, NodeRows
from sawyer.schemas.signed import Signed

STEPS: Final = 120
SNAPSHOT_ENTRIES: Final = 40


def book(chosen: random.Random) -> list[StoredRow]:
    """The rows of a book that such a walk leaves behind."""
    store = Store.in_memory()
    walk = _Walk(chosen, story.opened(store, SNAPSHOT_ENTRIES))
    for _ in range(STEPS):
        walk.step()
    return list(store.rows())


class _Walk:
    def __init__(self, chosen: random.Random, book: Book) -> None:
        self._chosen = chosen
        self._book = book
        self._now_ms = story.day(1, 1)
        self._requests = 0
        self._grants = 0
        self._receipts = cast.Receipts()
        self._fmt = "f32"
        self._sheet = story.JANUARY
        self._open: list[tuple[Signed[InferenceRequested], str, VerifiedCommand]] = []
        """Orders that are held, their routers, and how they may be completed. Their receipts are signed already, one
        after another, and come in any order, or never."""
        members = [
            cast.founding(self._now_ms), cast.add_key("router", "router", "router"),
            cast.add_key("router", "router-2", "router-2"), cast.by_operator(cast.model("f32")),
            cast.by_operator(self._sheet), cast.node("node-a", "bob", 2000), cast.node("node-b", "carol", 0),
            cast.account("alice"),
        ]  # fmt: skip
        self._try(members)

    def step(self) -> None:
        """Something that somebody may do, after some time."""
        self._now_ms += self._chosen.choice((0, 1, 500, story.MINUTE, 11 * story.MINUTE, 3 * story.DAY))
        acts = (self._grant, self._reserve, self._reserve, self._complete, self._complete, self._void, self._expire)
        self._chosen.choice((*acts, self._publish))()

    def _try(self, commands: list[VerifiedCommand]) -> bool:
        """Refusals are fine: then nothing is written."""
        return all(reply.error is None for reply in self._book.commit(commands, self._now_ms))

    def _grant(self) -> None:
        self._grants += 1
        name, tokens = f"grant-{self._grants}", self._chosen.choice((1, 50, 3_000))
        if self._chosen.random() < 0.5:
            start = self._now_ms - self._chosen.choice((0, 20)) * story.DAY
            self._try([cast.grant(name, start, tokens, sealed=self._chosen.choice(("", "a note")))])
            return
        days = self._chosen.choice((1, 2, 40))
        start = self._now_ms + self._chosen.choice((0, 1)) * story.DAY
        self._try([cast.gift(name, start, start + days * story.DAY, tokens, by="operator")])

    def _reserve(self) -> None:
        self._requests += 1
        asked = cast.order(self._requests, self._now_ms, self._sheet, max_tokens=self._chosen.choice((1, 7, 40, 900)))
        router, input_tokens = self._chosen.choice(("router", "router-2")), self._chosen.choice((1, 5, 30))
        if self._try([cast.reserve(asked, self._sheet, self._fmt, input_tokens, router=router)]):
            self._open.append((asked, router, self._completion(asked, input_tokens, router)))

    def _completion(self, asked: Signed[InferenceRequested], input_tokens: int, router: str) -> VerifiedCommand:
        output_tokens = self._chosen.randint(1, asked.body.max_tokens)
        fed = input_tokens + output_tokens - 1 + self._chosen.choice((0, 1, 8))
        first = fed * cast.ROWS_PER_TOKEN // 2
        rest = fed * cast.ROWS_PER_TOKEN - first
        work = (self._receipts.of(asked, self._fmt, "node-a", first),)
        unreceipted: tuple[NodeRows, ...] = (NodeRows(node="node-b", rows=rest),)
        if self._chosen.random() < 0.5:
            work, unreceipted = (*work, self._receipts.of(asked, self._fmt, "node-b", rest)), ()
        latencies = tuple(self._chosen.choice((900, 2000, 2001, 4001, 8001)) for _ in work)
        return cast.complete(
            asked, input_tokens, output_tokens, fed, work, latencies, unreceipted=unreceipted, router=router
        )

    def _complete(self) -> None:
        if self._open:
            _, _, completion = self._taken()
            self._try([completion])

    def _void(self) -> None:
        if self._open:
            asked, router, _ = self._taken()
            self._try([cast.void(asked, "cancelled", router=router)])

    def _expire(self) -> None:
        self._try(self._book.expire(self._now_ms))

    def _publish(self) -> None:
        """Other weights, and the prices for both."""
        self._fmt = self._chosen.choice(("f32", "q8"))
        self._sheet = cast.sheet(f"sheet-{self._requests}-{self._grants}-{self._now_ms}", "f32", "q8")
        self._try([cast.by_operator(cast.model(self._fmt)), cast.by_operator(self._sheet)])

    def _taken(self) -> tuple[Signed[InferenceRequested], str, VerifiedCommand]:
        return self._open.pop(self._chosen.randrange(len(self._open)))
