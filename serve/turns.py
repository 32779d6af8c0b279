"""Pictures that the front process itself has to decode: one after another, beside the requests of others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """Work that takes memory and time, in a thread; one at a time, so that it takes the memory of one."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` gives, or raises."""
        async with self._turn:
            return await asyncio.to_thread(work)
