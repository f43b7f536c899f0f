"""Files of one model at once, over one connection: what goes wrong with several is one error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from sawyer.errors import UnreachableError

FILES_AT_ONCE: Final = 4

ItemT = TypeVar("ItemT")


async def each_of(items: Sequence[ItemT], do: Callable[[ItemT], Awaitable[None]]) -> None:
    """Returns when it was done with all of them, a few at a time. The first that fails ends the others; what is wrong
    is raised before what was not there."""
    queue = iter(items)

    async def work() -> None:
        for item in queue:
            await do(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(FILES_AT_ONCE, len(items))):
                group.create_task(work())
    except* Exception as several:
        found = [each for each in several.exceptions if not isinstance(each, BaseExceptionGroup)]
        raise next((each for each in found if not isinstance(each, UnreachableError)), found[0]) from several
