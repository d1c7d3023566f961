"""The sequence that the tables reflect, and waiting for it to be reached."""

from __future__ import annotations

import anyio


class Position:
    """`sequence` only grows; it is moved when a batch is committed. `left` is how many events were
    known to be behind it when the last ones came; None before.
    """

    def __init__(self, sequence: int = 0) -> None:
        self.sequence = sequence
        self.left: int | None = None
        self._moved = anyio.Event()
        self._waiting = 0
        self._hurry = anyio.Event()

    def advance(self, sequence: int) -> None:
        """The tables reflect `sequence` now."""
        self.sequence = sequence
        self._moved.set()
        self._moved = anyio.Event()

    async def reach(self, sequence: int, timeout_seconds: float) -> bool:
        """Wait until `sequence` is reflected; False where it is not within the time."""
        self._waiting += 1
        self._hurry.set()
        try:
            with anyio.move_on_after(timeout_seconds):
                while self.sequence < sequence:
                    await self._moved.wait()
        finally:
            self._waiting -= 1
        return self.sequence >= sequence

    async def linger(self, seconds: float) -> None:
        """Let a batch fill up for so long; not while somebody waits for a sequence."""
        if not self._waiting:
            self._hurry = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._hurry.wait()
