"""A book in which everything happens that moves something: for what is read from books, not for their rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

DAY_MS = 86_400_000


def tell(scene: Any, folder: Path) -> Path:
    """Two months of alice, from January 5 2026 on; the book's path. Her grants have names that other programs dislike:

    2026_jan-a  500,000 tokens for $5.00, gone after 30 days
    cheap_u     1,000 tokens for 25 uUSD, gone after 10 days
    gift        300,000 tokens for nothing, gone after 90 days

    Requests 1 and 2 are completed, 3 fails, 4 is abandoned, 5 is completed after its grant expired, 6 is still held; in
    February, 7 is completed from the gift. Each costs 7 or 8 tokens."""
    scene.now_ms = 1_767_607_200_000
    book = scene.open(folder)

    def say(*commands: Any) -> None:
        for asked in commands:
            (reply,) = book.commit([asked], scene.now_ms)
            assert reply.error is None, reply.error

    say(
        *scene.members(),
        scene.grant("2026_jan-a", 500_000),
        scene.grant("cheap_u", 1_000, end_ms=10 * DAY_MS, paid_uusd=25),
    )
    say(scene.grant("gift", 300_000, end_ms=90 * DAY_MS, paid_uusd=0))
    first = scene.order(1)
    say(scene.reserve(first), scene.complete(first, output_tokens=2))
    scene.now_ms += DAY_MS
    second, third, fourth = scene.order(2), scene.order(3), scene.order(4)
    say(scene.reserve(second), scene.complete(second), scene.reserve(third), scene.void(third), scene.reserve(fourth))
    scene.now_ms += 9 * DAY_MS - 60_000
    fifth = scene.order(5)
    say(*book.expire(scene.now_ms), scene.reserve(fifth))
    scene.now_ms += 120_000
    say(scene.complete(fifth, output_tokens=2), *book.expire(scene.now_ms))
    sixth = scene.order(6)
    say(scene.reserve(sixth))
    scene.now_ms += 25 * DAY_MS
    seventh = scene.order(7)
    say(*[each for each in book.expire(scene.now_ms) if "TokensExpired" in type(each.body).__name__])
    say(scene.reserve(seventh), scene.complete(seventh))
    book.close()
    return folder / "book.sqlite"
