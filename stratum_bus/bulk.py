"""Reading a stream in bulk: as Arrow tables of what was stored, without an object for a message.

A bare client's fetch takes 36 us of a processor for a message, one large pull with a callback for
each 13, a client written in Rust 5 to 9, and then there is no table yet; this takes 3 with the table
(`make bench ONLY=reading`). The frames are found in Python, all else is done for thousands at once.
Only for who needs that: it brings Arrow along, and a connection of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus import jetstream
from stratum_bus.bus import Bus
from stratum_bus.cursor import Cursor
from stratum_bus.frames import PARTS, Frames
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.message import Message, delivered
from stratum_bus.pull import Pull
from stratum_bus.wire import read_headers

SCHEMA = pa.schema(
    [
        ("seq", pa.int64()),
        ("subject", pa.dictionary(pa.int32(), pa.string())),
        ("stored_ns", pa.int64()),
        ("headers", pa.binary()),
        ("payload", pa.binary()),
    ]
)
"""`headers` is the block as it was sent (`NATS/1.0…`), NULL for a message without headers."""

WINDOW_MESSAGES = 40_000
AHEAD_BYTES = 32 << 20
"""What is read ahead at most, waiting here or asked for. Where the server takes messages of more
than 8 MiB, it is eight of them."""

TABLE_BYTES = 32 << 20
"""A table is not added to when it has so much."""

GATHER_SECONDS = 0.1


class Columns(Cursor):
    """An open reading in bulk. Made by `read_columns`.

    `stored` is the stream's last sequence when the reading began, `pending` how many were known
    to be behind the last message that was handed out.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        start: int,
        end: int | None,
        follow: bool,
        window: int,
    ) -> None:
        pull = Pull(connection, self._astray, self._receive)
        super().__init__(connection, pull, stream, (), start, end, follow, window)
        self._max_bytes = max(AHEAD_BYTES // 4, 2 * connection.max_payload)
        self._runs: deque[Frames] = deque()
        self._count = self._bytes = 0
        self.pending = 0

    async def batch(self, max_messages: int, wait_seconds: float | None) -> pa.Table:
        """Up to `max_messages`, in order, as a table of SCHEMA.

        Waits `wait_seconds` (None: for ever) for the first. Where more are known to be on their
        way, it collects for a tenth of a second; so who has to catch up gets large tables. No rows
        mean: nothing came in time, or the end (`ended`). Raises NotFound where the stream is gone,
        PermissionDenied, and ConnectionLost when a bounded reading waited 30 s for the server.
        """
        deadline = None if wait_seconds is None else anyio.current_time() + wait_seconds
        collecting = False
        while not self._ended and self._count < max_messages and self._bytes < TABLE_BYTES:
            now = anyio.current_time()
            if self._count and not collecting:
                collecting, enough = True, now + GATHER_SECONDS
                deadline = enough if deadline is None else min(enough, deadline)
            if self._count and (self._pull.broken or not self._pending):
                break
            left = 60.0 if deadline is None else deadline - now
            if left <= 0:
                break
            await self._keep_open()
            if self._count and not self._pull.outstanding:
                break  # the window is full
            if not self._ended:
                await self._pull.wait(left)
        taken = list(self._take(max_messages))
        await self._ask()
        if not taken:
            return SCHEMA.empty_table()
        self.pending = delivered(taken[-1].reply(-1)).pending
        return columns(taken)  # and `taken` is empty

    def _held(self) -> int:
        return self._count

    def _take(self, count: int) -> Iterator[Frames]:
        most = self._bytes - TABLE_BYTES
        while self._runs and count and self._bytes > most:
            frames = self._runs.popleft()
            if len(frames) > count:
                self._runs.appendleft(frames.part(count, len(frames)))
                frames = frames.part(0, count)
            self._count -= len(frames)
            self._bytes -= frames.size
            count -= len(frames)
            yield frames

    async def _ask(self) -> None:
        ahead = self._bytes + self._pull.outstanding_bytes
        if ahead + self._max_bytes <= 4 * self._max_bytes:
            await super()._ask()

    def _receive(self, frames: Frames) -> None:
        if self._ended:
            return
        count = len(frames)
        first, last = delivered(frames.reply(0)), delivered(frames.reply(-1))
        if (
            first.consumer == last.consumer == self._consumer
            and last.consumer_sequence - first.consumer_sequence == count - 1
            and (self._end is None or last.stream_sequence <= self._end)
        ):
            if self._passes(first, last, count):
                self._keep(frames)
        elif count > 1:  # a consumer given up, a loss or the end is somewhere within
            self._receive(frames.part(0, count // 2))
            self._receive(frames.part(count // 2, count))
        elif first.consumer == self._consumer:
            self._passes(first, last, 1)

    def _keep(self, frames: Frames) -> None:
        self._runs.append(frames)
        self._count += len(frames)
        self._bytes += frames.size

    def _astray(self, reply: Reply) -> None:
        raise AssertionError(f"{reply.subject} did not come in bulk")


@asynccontextmanager
async def read_columns(
    bus: Bus,
    stream: str = "LOG",
    *,
    start: int,
    end: int | None = None,
    follow: bool = False,
    window: int = WINDOW_MESSAGES,
) -> AsyncIterator[Columns]:
    """Read `stream` from a sequence in order, each message once, over a connection of its own.

    Without `follow` the reading ends at what is stored when it begins, or at sequence `end`. At
    most `window` messages and AHEAD_BYTES are read ahead. Raises what `bus.read` raises.
    """
    ours = bus.connection
    await ours.wait_connected(0)
    name = f"{ours.name}-bulk"
    connecting = jetstream.connect(ours.url, name=name, options=ours.options, bulk=True)
    async with connecting as connection:
        reading = Columns(connection, stream, start, end, follow, window)
        async with reading._pull.subscribed():
            try:
                await reading.open()
                reading.pending = reading._pending
                yield reading
            finally:
                await reading.close()


def columns(runs: list[Frames]) -> pa.Table:
    """The messages as a table of SCHEMA. Takes them out of the list, to have them twice at most."""
    # … $JS.ACK.….<deliveries>.<sequence>.<consumer sequence>.<time>.<pending> <sizes>, and in the
    # form with domain and account there may be one more word behind pending
    words = 5 if runs[0].reply(0).count(".") == 11 else 4
    mixed = pa.concat_arrays([_mixed(frames) for frames in runs])
    runs.clear()
    count = len(mixed) // PARTS
    taken: list[Any] = [mixed.take(_every(part, count)) for part in range(3)]
    lines, headers, payloads = taken
    del mixed, taken
    lengths = pc.binary_length(headers)
    if pc.min(lengths).as_py() == 0:
        headers = pc.if_else(
            pc.greater(lengths, pa.scalar(0)), headers, pa.scalar(None, pa.binary())
        )
    numbers = pc.split_pattern(lines, ".", max_splits=words, reverse=True)
    sequences, times = (_numbers(pc.list_element(numbers, at)) for at in (1, 3))
    subjects = _texts(pc.list_element(pc.split_pattern(lines, " ", max_splits=2), 1))
    return pa.table([sequences, subjects, times, headers, payloads], schema=SCHEMA)


def message(table: pa.Table, row: int, stream: str = "LOG", end: int = 0) -> Message:
    """A row as a message, as `bus.read` gives it. `pending` is how many are left up to `end`."""
    [values] = table.slice(row, 1).to_pylist()
    sequence, headers = values["seq"], values["headers"]
    return Message(
        stream,
        sequence,
        values["subject"],
        values["stored_ns"],
        values["payload"],
        None if headers is None else read_headers(headers),
        max(0, end - sequence),
    )


def _mixed(frames: Frames) -> pa.Array[Any]:
    """All parts of all messages as they stand there, without a copy."""
    marks = frames.marks[:]
    marks.append(marks[-1])
    buffers = [None, pa.py_buffer(marks), pa.py_buffer(frames.buffer)]
    return pa.Array.from_buffers(pa.binary(), len(frames) * PARTS, buffers)


_INDEX: list[pa.Int32Array] = []


def _every(part: int, count: int) -> pa.Int32Array:
    """The numbers of the elements that are this part of a message."""
    if not _INDEX or len(_INDEX[0]) < count:
        _INDEX[:] = [pa.array(range(n, PARTS * 2 * count, PARTS), pa.int32()) for n in range(PARTS)]
    return _INDEX[part].slice(0, count)


def _numbers(digits: pa.Array[Any]) -> pa.Array[Any]:
    return digits.cast(pa.string()).cast(pa.int64())


def _texts(subjects: pa.Array[Any]) -> pa.Array[Any]:
    """As text; bytes that are none are replaced, as in every subject that we receive."""
    encoded: Any = pc.dictionary_encode(subjects)
    try:
        texts = encoded.dictionary.cast(pa.string())
    except pa.ArrowInvalid:
        texts = pa.array([each.decode(errors="replace") for each in encoded.dictionary.to_pylist()])
    return pa.DictionaryArray.from_arrays(encoded.indices, texts)
