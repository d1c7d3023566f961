"""Who may be handled beside whom: a suspect of having killed an instance is handled alone.

So the next death, if it is that message's doing, has one message in hand and not sixteen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import anyio

SOLITUDE_SECONDS = 30.0
"""How long a suspect waits for the others to end before it goes on among them."""


class Gate:
    """`suspects` are messages as `<stream>-<sequence>`. Without any it costs nothing."""

    def __init__(self, suspects: Collection[str] = ()) -> None:
        self._suspects = set(suspects)
        self._inside = 0
        self._alone = anyio.Lock()
        self._changed = anyio.Event()

    @asynccontextmanager
    async def passed(self, message: str) -> AsyncIterator[None]:
        """Wait until `message` may be handled; it is as long as the context."""
        if message in self._suspects:
            async with self._alone:
                await self._until_empty()
                async with self._counted():
                    yield
                self._suspects.discard(message)
            return
        if self._suspects:
            async with self._alone:
                pass  # behind the suspects that wait or work
        async with self._counted():
            yield

    async def _until_empty(self) -> None:
        with anyio.move_on_after(SOLITUDE_SECONDS):
            while self._inside:
                self._changed = anyio.Event()
                await self._changed.wait()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._changed.set()
