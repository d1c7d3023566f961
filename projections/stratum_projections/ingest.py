"""Stored messages as decoded batches, ready to be folded: what is read while another is folded.

From the stream, or from the lake and then the stream, behind one interface. Reading and decoding
are one task, so that a batch is decoded on one core while DuckDB takes in the one before it on the
other. At most three batches are on their way at a time, which bounds the memory.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus import bulk, event
from stratum_bus.blob import PREFIX
from stratum_bus.bulk import Columns
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import BlobError, ConnectionLost, InvalidEvent, NoAnswer, NoStream
from stratum_bus.tasks import task_group
from stratum_projections.batch import Column, Decoded, Stored, decode, rows_where
from stratum_projections.lake import read as lake_read
from stratum_projections.position import Position

log = logging.getLogger("stratum.projector")

CATCH_UP_FACTOR = 8
"""How much larger the batches are while more than one of them waits."""

IDLE_SECONDS = 2.0
RETRY_SECONDS = 0.2
LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)
_REFERENCE = f'"dataref":"{PREFIX}'
_DEREFERENCED = ("memory.", "dead.")
"""Where tables are made of data that may be in a blob."""

_BINARY_MODE = "\r\nce-"


class Batch(msgspec.Struct, frozen=True):
    """A decoded batch, and how many events are known to be behind it; None for a pause."""

    decoded: Decoded | None
    pending: int = 0


@asynccontextmanager
async def batches(
    bus: Bus,
    stream: str,
    *,
    start: int,
    config: ProjectorConfig,
    end: int | None = None,
    lake: str = "",
    position: Position | None = None,
) -> AsyncIterator[AsyncIterator[Batch]]:
    """Read and decode from a sequence on, up to `end`, or for ever where that is None.

    Large batches while there is much to read. Then the first events after a pause at once, and at
    most one batch each `batch_milliseconds`, unless someone waits at `position`. While nothing
    comes there is a batch of None every IDLE_SECONDS.

    Raises what `bus.read` raises, LakeError where the lake lacks what is needed.
    """
    size = config.batch_events
    reading = _open(bus, stream, lake, start, end, 2 * CATCH_UP_FACTOR * size)
    send, receive = anyio.create_memory_object_stream[Batch](0)
    async with reading as source, task_group() as tasks:
        tasks.start_soon(_Ahead(bus, source, stream, config, position, send).run)
        async with receive:
            yield receive
        tasks.cancel_scope.cancel()


def _open(
    bus: Bus, stream: str, lake: str, start: int, end: int | None, window: int
) -> AbstractAsyncContextManager[Columns]:
    follow = end is None
    if not lake:
        return bulk.read_columns(bus, stream, start=start, end=end, follow=follow, window=window)
    return lake_read.read_columns(
        bus, lake, stream, start=start, end=end, follow=follow, window=window
    )


class _Ahead:
    """The task that reads and decodes."""

    def __init__(
        self,
        bus: Bus,
        source: Columns,
        stream: str,
        config: ProjectorConfig,
        position: Position | None,
        send: anyio.abc.ObjectSendStream[Batch],
    ) -> None:
        self._bus = bus
        self._source = source
        self._stream = stream
        self._small = config.batch_events
        self._seconds = config.batch_milliseconds / 1000
        self._position = position
        self._send = send
        self._sent = 0.0

    async def run(self) -> None:
        size = self._small
        async with self._send:
            while not self._source.ended:
                table = await self._next(size)
                if not table.num_rows:
                    await self._send.send(Batch(None))
                    continue
                pending = self._source.pending
                size = self._small * (CATCH_UP_FACTOR if pending > self._small else 1)
                stored = await whole(self._bus, of_table(table, self._stream))
                decoded = await anyio.to_thread.run_sync(decode, stored)
                await self._send.send(Batch(decoded, pending))
                self._sent = anyio.current_time()

    async def _next(self, size: int) -> pa.Table:
        table = await self._source.batch(size, IDLE_SECONDS)
        left = self._sent + self._seconds - anyio.current_time()
        missing = size - table.num_rows
        if 0 < missing < size and left > 0 and self._position and not self._source.pending:
            await self._position.linger(left)
            more = await self._source.batch(missing, 0)
            table = pa.concat_tables([table, more], promote_options="default").unify_dictionaries()
        return table


def of_table(table: pa.Table, stream: str) -> Stored:
    """A table of `bulk.SCHEMA` as what is decoded."""
    table = table.combine_chunks()
    seq, subject, stored_ns, headers, payload = (_one(column) for column in table.columns)
    attributes = pc.match_substring(headers, pattern=_BINARY_MODE, ignore_case=True)
    return Stored(
        stream,
        seq,
        subject,
        stored_ns,
        payload,
        set(rows_where(attributes)),
        lambda row: bulk.message(table, row, stream),
    )


async def whole(bus: Bus, stored: Stored) -> Stored:
    """The same, with the data of notes and dead letters that was kept as blobs.

    Waits for a lost server. What cannot be had is left as it is, and said.
    """
    rows = _referring(stored)
    if not rows:
        return stored
    payloads = stored.payload.to_pylist()
    for row in rows:
        payloads[row] = await _whole(bus, stored, row)
    return msgspec.structs.replace(stored, payload=pa.array(payloads, pa.binary()))


def _referring(stored: Stored) -> list[int]:
    subjects: list[str] = stored.subject.dictionary.to_pylist()
    ours = pa.array([subject.startswith(_DEREFERENCED) for subject in subjects], pa.bool_())
    if not pc.any(ours).as_py():
        return []
    rows = pa.array(rows_where(ours.take(stored.subject.indices)), pa.int64())
    found: Column = rows.filter(pc.match_substring(stored.payload.take(rows), pattern=_REFERENCE))
    return list(found.to_pylist())


async def _whole(bus: Bus, stored: Stored, row: int) -> bytes:
    message = stored.message(row)
    while True:
        try:
            return event.encode(await bus.event(message))
        except (InvalidEvent, BlobError) as error:
            log.warning("%s %d: %s", message.stream, message.sequence, error)
            return message.payload
        except LOST_SERVER as error:
            log.debug("waiting for a blob: %s", error)
            await anyio.sleep(RETRY_SECONDS)


def _one(column: pa.ChunkedArray[Any]) -> Any:
    """A column of one chunk, or of none."""
    return column.chunk(0) if column.num_chunks else column.combine_chunks()
