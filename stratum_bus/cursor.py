"""A place in a stream that moves on: what all readings have in common.

A Cursor uses a short-lived consumer in the server's memory, takes it up again behind the last
message it saw when the server or the connection was gone, and removes it when left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import anyio

from stratum_bus.errors import BusError, ConnectionLost, NoAnswer, NoStream
from stratum_bus.event import uuid7
from stratum_bus.jetstream import Connection
from stratum_bus.message import Delivered
from stratum_bus.pull import NS, Pull

log = logging.getLogger("stratum.read")

WINDOW_BYTES = 16 << 20
KEEP_SECONDS = 60.0
RETRY_SECONDS = 0.2
BOUNDED_PATIENCE_SECONDS = 30.0


class Cursor:
    """Where a reading stands, and the consumer behind it.

    `stored` is the stream's last sequence when the reading began, `position` the sequence of the
    last message that came, `pending` how many the consumer still had behind that.
    """

    def __init__(
        self,
        connection: Connection,
        pull: Pull,
        stream: str,
        filters: Sequence[str],
        start: int | datetime | None,
        end: int | None,
        follow: bool,
        window: int,
    ) -> None:
        self._connection = connection
        self._pull = pull
        self._stream = stream
        self._filters = list(filters)
        self._start = start
        self._end = end
        self._follow = follow
        self._window = max(1, window)
        self._max_bytes = WINDOW_BYTES
        self._consumer = ""
        self._expected = 0
        self._pending = 0
        self._ended = False
        self.stored = 0
        self.position = 0

    @property
    def ended(self) -> bool:
        """Whether a bounded reading has handed out all it will."""
        return self._ended and not self._held()

    def _held(self) -> int:
        """How many messages came and were not handed out yet."""
        raise NotImplementedError

    async def _keep_open(self) -> None:
        patience = BOUNDED_PATIENCE_SECONDS
        give_up = anyio.current_time() + patience
        while self._pull.broken and not self._ended:
            try:
                await self._connection.wait_connected(patience)
                await self._open_consumer()
            except (ConnectionLost, NoAnswer, NoStream) as error:
                if self._connection.closed:
                    raise
                if not self._follow and anyio.current_time() > give_up:
                    raise
                log.debug("reading %s waits: %s", self._stream, error)
                await anyio.sleep(RETRY_SECONDS)
        await self._ask()

    async def open(self) -> None:
        """Find where to begin and end. Raises NotFound, ConnectionLost."""
        info = await self._connection.api(f"STREAM.INFO.{self._stream}")
        self.stored = info["state"]["last_seq"]
        if self._start is None:
            self._start = self.stored + 1
        if not self._follow:
            self._end = self.stored if self._end is None else min(self._end, self.stored)
        await self._open_consumer()

    async def _open_consumer(self) -> None:
        name = f"read-{uuid7()}"
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(KEEP_SECONDS * NS),
            **self._deliver_from(),
        }
        if self._filters:
            config["filter_subjects"] = self._filters
        self._consumer, self._expected = name, 1
        info = await self._connection.api(
            f"CONSUMER.CREATE.{self._stream}.{name}",
            {"stream_name": self._stream, "config": config},
        )
        self._pull.open()
        self._pending = info["num_pending"]
        if self._end is not None and (info["num_pending"] == 0 or self.position >= self._end):
            self._ended = not self._follow or self.position >= self._end

    def _deliver_from(self) -> dict[str, Any]:
        if isinstance(self._start, datetime) and not self.position:
            if self._start.tzinfo is None:
                raise ValueError(f"{self._start} has no time zone: where does the reading begin?")
            time = self._start.astimezone(UTC).isoformat()
            return {"deliver_policy": "by_start_time", "opt_start_time": time}
        if self.position:
            self._start = self.position + 1
        assert isinstance(self._start, int)
        return {"deliver_policy": "by_start_sequence", "opt_start_seq": max(1, self._start)}

    async def _ask(self) -> None:
        free = self._window - self._pull.outstanding - self._held()
        if self._ended or self._pull.broken or free < self._window // 2:
            return
        try:
            await self._pull.ask(self._stream, self._consumer, free, max_bytes=self._max_bytes)
        except ConnectionLost:
            self._pull.invalidate()

    def _passes(self, first: Delivered, last: Delivered, count: int) -> bool:
        """Move on behind messages of our consumer that stand one behind the other.

        False where one was lost on the way, or where they reach behind the reading's end.
        """
        if (first.consumer_sequence, last.consumer_sequence) != (
            self._expected,
            self._expected + count - 1,
        ):
            self._pull.invalidate()  # begin again behind the last one
            return False
        if self._end is not None and last.stream_sequence > self._end:
            self._ended = True
            return False
        self._expected += count
        self.position, self._pending = last.stream_sequence, last.pending
        if self._end is not None and (
            self.position == self._end or (self._pending == 0 and not self._follow)
        ):
            self._ended = True
        return True

    async def close(self) -> None:
        """Remove the consumer; also under cancellation, for at most a second."""
        if not (self._connection.connected and self._consumer):
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._connection.api(
                    f"CONSUMER.DELETE.{self._stream}.{self._consumer}", timeout_seconds=1
                )
            except BusError as error:
                log.debug("consumer %s is left to expire: %s", self._consumer, error)
