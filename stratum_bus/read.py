"""Reading a stream: from a sequence, a time or now, to an end or following; never acknowledging."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import anyio
import msgspec

from stratum_bus.cursor import Cursor
from stratum_bus.errors import NoAnswer, NoStream, NotFound
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.message import (
    Message,
    delivered,
    from_api,
    from_delivery,
    from_direct,
    is_direct,
)
from stratum_bus.pull import Pull

WINDOW_MESSAGES = 2_000
DEDUPE_SECONDS = 180.0
"""How far back a message with a known id is looked for: the streams' dedupe window and some."""


class Reader(Cursor):
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
        pull = Pull(connection, self._receive)
        super().__init__(connection, pull, stream, filters, start, end, follow, window)
        self._buffer: deque[Message] = deque()

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

    def _held(self) -> int:
        return len(self._buffer)

    def _receive(self, reply: Reply) -> None:
        at = delivered(reply.reply)
        if at.consumer != self._consumer or self._ended:
            return
        if self._passes(at, at, 1):
            self._buffer.append(from_delivery(reply, at))


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
    info = await connection.api(f"STREAM.INFO.{stream}")
    # The clock of this process may be wrong; it is the server's that they were stored by.
    start = datetime.fromisoformat(info["ts"]) - timedelta(seconds=DEDUPE_SECONDS)
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
