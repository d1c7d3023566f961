"""The receiving end of a pull consumer: one inbox, many requests, and a count of what is due.

Shared by `read` (a consumer of its own, no acks) and `consume` (a durable one, explicit acks).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec

from stratum_bus.errors import PermissionDenied
from stratum_bus.frames import Frames
from stratum_bus.jetstream import Connection, Reply

NS = 1_000_000_000
EXPIRES_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0

_STALE = {"404", "408", "409"}
_ACK = "$JS.ACK."


class Pull:
    """Requests to one consumer. `outstanding` messages are asked for and not yet here.

    `broken` is set when the requests are void: the connection changed, the consumer is gone, or
    the server's idle heartbeats stay out. `open` again then. With `on_frames` the messages come
    in bulk, and `on_message` is not called.
    """

    def __init__(
        self,
        connection: Connection,
        on_message: Callable[[Reply], None],
        on_frames: Callable[[Frames], None] | None = None,
    ) -> None:
        self._connection = connection
        self._on_message = on_message
        self._on_frames = on_frames
        self._inbox = connection.new_inbox()
        self._heard = 0.0
        self._denied: PermissionDenied | None = None
        self._needed: tuple[str, ...] = ()
        self._requests: deque[list[int]] = deque()
        self.outstanding = 0
        self.broken = True
        self.changed = asyncio.Event()

    @asynccontextmanager
    async def subscribed(self) -> AsyncIterator[Pull]:
        """Listen as long as the context; on leaving, what was on its way is handed over."""
        stop_listening = self._connection.on_change(self._on_change)
        try:
            in_bulk = self._take if self._on_frames else None
            subscribing = self._connection.subscribe(self._inbox, self._receive, on_frames=in_bulk)
            async with subscribing:
                yield self
        finally:
            stop_listening()

    def open(self) -> None:
        """The consumer is there (again): requests count from now."""
        self.outstanding, self.broken = 0, False
        self._requests.clear()
        self._heard = anyio.current_time()

    @property
    def outstanding_bytes(self) -> int:
        """How much may come at most, by the requests' `max_bytes`."""
        return sum(size for _, size in self._requests)

    def invalidate(self) -> None:
        self.broken = True
        self.changed.set()

    def _on_change(self, denied: PermissionDenied | None) -> None:
        if denied is None:
            self.invalidate()
        elif denied.subject.lower().startswith(self._needed):
            self._denied = denied
            self.changed.set()

    async def ask(self, stream: str, consumer: str, batch: int, *, max_bytes: int = 0) -> None:
        """Ask for up to `batch` messages; raises ConnectionLost."""
        if batch <= 0:
            return
        body: dict[str, Any] = {
            "batch": batch,
            "expires": int(EXPIRES_SECONDS * NS),
            "idle_heartbeat": int(HEARTBEAT_SECONDS * NS),
        }
        if max_bytes:
            body["max_bytes"] = max_bytes
        self.outstanding += batch
        self._requests.append([batch, max_bytes])
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._needed = (subject.lower(), f"$JS.ACK.{stream}.{consumer}.".lower())
        await self._connection.send(subject, msgspec.json.encode(body), reply=self._inbox)

    async def wait(self, seconds: float) -> None:
        """Return when something arrived or changed, or after `seconds`. Raises PermissionDenied."""
        if self._denied:
            raise self._denied
        now = anyio.current_time()
        if self.outstanding and now - self._heard > 2.5 * HEARTBEAT_SECONDS:
            self.invalidate()
        try:
            async with asyncio.timeout(min(seconds, HEARTBEAT_SECONDS)):
                await self.changed.wait()
        except TimeoutError:
            return
        self.changed.clear()

    def _receive(self, reply: Reply) -> None:
        self._heard = anyio.current_time()
        status = reply.status
        if reply.reply.startswith(_ACK):  # a stored message may have a header `Status` too
            self._settled(1, len(reply.payload))
            self._on_message(reply)
        elif status in _STALE:
            left = int((reply.headers or {}).get("Nats-Pending-Messages", 0) or 0)
            self._settled(left)
            description = (reply.headers or {}).get("Description", "").lower()
            if status == "409" and ("deleted" in description or "shutdown" in description):
                self.broken = True
        elif status == "503":
            self.broken = True
        elif status == "100":
            return
        self.changed.set()

    def _take(self, frames: Frames) -> None:
        assert self._on_frames is not None
        self._heard = anyio.current_time()
        self._settled(len(frames), frames.size)
        self._on_frames(frames)
        self.changed.set()

    def _settled(self, messages: int, size: int = 0) -> None:
        """That many came, or will not come. The server serves the requests in turn."""
        self.outstanding = max(0, self.outstanding - messages)
        while messages > 0 and self._requests:
            first = self._requests[0]
            if first[0] > messages:
                first[0] -= messages
                first[1] = max(0, first[1] - size)
                return
            messages -= first[0]
            self._requests.popleft()
