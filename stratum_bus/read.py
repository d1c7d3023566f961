"""Reading a stream: from a sequence, a time or now, to an end or following; never acknowledging.

A Reader uses a short-lived consumer in the server's memory, takes it up again behind the last
message it saw when the server or the connection was gone, and removes it when left.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import msgspec

from stratum_bus.errors import BusError, ConnectionLost, NoAnswer, NoStream, NotFound
from stratum_bus.event import uuid7
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.message import (
    Message,
    delivered,
    from_api,
    from_delivery,
    from_direct,
    is_direct,
)
from stratum_bus.pull import NS, Pull

log = logging.getLogger("stratum.read")

WINDOW_MESSAGES = 2_000
WINDOW_BYTES = 16 << 20
KEEP_SECONDS = 60.0
DEDUPE_SECONDS = 180.0
"""How far back a message with a known id is looked for: the streams' dedupe window and some."""

RETRY_SECONDS = 0.2
BOUNDED_PATIENCE_SECONDS = 30.0


class Reader:
    """An open reading; iterate over it, or take batches. Made by `read`.

    `stored` is the stream's last sequence when the reading began.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        start: int | datetime | None,
        end: int | None,
        follow: bool,
        window: int,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._start = start
        self._end = end
        self._follow = follow
        self._window = window
        self._buffer: deque[Message] = deque()
        self._pull = Pull(connection, self._receive)
        self._consumer = ""
        self._expected = 0
        self._ended = False
        self.stored = 0
        self.position = 0

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Message]:
        while batch := await self.batch(self._window, None, gather=False):
            for message in batch:
                yield message

    async def batch(
        self, max_messages: int, wait_seconds: float | None, *, gather: bool = True
    ) -> list[Message]:
        """Up to `max_messages`, in order.

        Waits `wait_seconds` (None: for ever) for the first; with `gather` it goes on collecting
        for the rest of that time. An empty list means: nothing came in time, or the end
        (`ended`). Raises NotFound where the stream is gone, PermissionDenied, and ConnectionLost
        when a bounded reading waited 30 s for the server.
        """
        deadline = None if wait_seconds is None else anyio.current_time() + wait_seconds
        while not self._ended:
            if len(self._buffer) >= max_messages or (self._buffer and not gather):
                break
            left = 60.0 if deadline is None else deadline - anyio.current_time()
            if left <= 0:
                break
            await self._keep_open()
            if self._buffer and (not gather or self._ended):
                continue
            if not self._ended:
                await self._pull.wait(left)
        if len(self._buffer) <= max_messages:
            taken = list(self._buffer)
            self._buffer.clear()
        else:
            taken = [self._buffer.popleft() for _ in range(max_messages)]
        await self._ask()
        return taken

    @property
    def ended(self) -> bool:
        """Whether a bounded reading has handed out all it will."""
        return self._ended and not self._buffer

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
        free = self._window - self._pull.outstanding - len(self._buffer)
        if self._ended or self._pull.broken or free < self._window // 2:
            return
        try:
            await self._pull.ask(self._stream, self._consumer, free, max_bytes=WINDOW_BYTES)
        except ConnectionLost:
            self._pull.invalidate()

    def _receive(self, reply: Reply) -> None:
        at = delivered(reply.reply)
        if at.consumer != self._consumer or self._ended:
            return
        if at.consumer_sequence != self._expected:
            self._pull.invalidate()  # one was lost on the way: begin again behind the last one
            return
        self._expected += 1
        if self._end is not None and at.stream_sequence > self._end:
            self._ended = True
            return
        self.position = at.stream_sequence
        self._buffer.append(from_delivery(reply, at))
        if self._end is not None and (
            at.stream_sequence == self._end or (at.pending == 0 and not self._follow)
        ):
            self._ended = True

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


@asynccontextmanager
async def read(
    connection: Connection,
    stream: str = "LOG",
    *,
    filters: Sequence[str] = (),
    start: int | datetime | None = 1,
    end: int | None = None,
    follow: bool = False,
    window: int = WINDOW_MESSAGES,
) -> AsyncIterator[Reader]:
    """Read `stream` in order, each message once.

    `filters` are subjects with wildcards (none: all). `start` is a sequence, a time, or None for
    only what comes from now on. Without `follow` the reading ends at what is stored when it
    begins, or at sequence `end`. At most `window` messages and 16 MiB are read ahead.
    """
    reader = Reader(connection, stream, filters, start, end, follow, window)
    async with reader._pull.subscribed():
        try:
            await reader.open()
            yield reader
        finally:
            await reader.close()


async def last(connection: Connection, stream: str, subject: str) -> Message | None:
    """The last message of a subject (no wildcards), or None; raises NotFound without the stream."""
    return await _direct(connection, stream, {"last_by_subj": subject}, f".{subject}")


async def get(connection: Connection, stream: str, sequence: int) -> Message:
    """The message of a sequence; raises NotFound."""
    found = None
    if sequence > 0:
        found = await _direct(connection, stream, {"seq": sequence})
    if found is None:
        raise NotFound("message", f"{sequence} in stream {stream}")
    return found


async def next_after(
    connection: Connection, stream: str, subject: str, sequence: int
) -> Message | None:
    """The first message of a subject (no wildcards) behind a sequence, or None."""
    return await _direct(connection, stream, {"seq": sequence + 1, "next_by_subj": subject})


async def find_by_ids(
    connection: Connection, stream: str, subjects: Sequence[str], ids: Collection[str]
) -> dict[str, int]:
    """The sequences of those messages that the server still knows as duplicates, by their ids."""
    found: dict[str, int] = {}
    start = datetime.now(UTC) - timedelta(seconds=DEDUPE_SECONDS)
    async with read(connection, stream, filters=subjects, start=start) as reader:
        async for message in reader:
            if message.id in ids:
                found[message.id] = message.sequence
    return found


async def _direct(
    connection: Connection, stream: str, query: dict[str, Any], subject: str = ""
) -> Message | None:
    """`subject` instead of a body is the form that permissions can restrict."""
    target = f"{stream}{subject}"
    body = b"" if subject else msgspec.json.encode(query)
    try:
        reply = await connection.request(f"$JS.API.DIRECT.GET.{target}", body)
    except NoStream:
        raise NotFound("stream", stream) from None
    if not is_direct(reply):
        if reply.status == "404":
            return None
        raise NoAnswer(f"direct get of {target}: status {reply.status}", subject=target)
    found = from_direct(reply)
    if found is None:
        answer = await connection.api(f"STREAM.MSG.GET.{stream}", query)
        found = from_api(stream, answer["message"])
    return found
