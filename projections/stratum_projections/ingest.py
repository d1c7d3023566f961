"""Stored messages as decoded batches, ready to be folded: what is read while another is folded.

From the stream, or from the lake and then the stream, behind one interface. Reading and decoding
are one task, so that a batch is decoded on one core while DuckDB takes in the one before it on the
other. At most three batches are on their way at a time, which bounds the memory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import anyio.to_thread
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus import bulk
from stratum_bus.bulk import Columns
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.tasks import task_group
from stratum_projections.batch import Decoded, Stored, decode, one_piece, rows_where
from stratum_projections.lake import read as lake_read
from stratum_projections.position import Position
from stratum_projections.projection import Projection
from stratum_projections.whole import whole

CATCH_UP_FACTOR = 3
"""How much larger the batches are while more than one of them waits. With two it takes 40 MB less, and
a seventh longer."""

IDLE_SECONDS = 2.0
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
    projections: Collection[Projection] = (),
    end: int | None = None,
    lake: str = "",
    position: Position | None = None,
    patience_seconds: float = float("inf"),
) -> AsyncIterator[AsyncIterator[Batch]]:
    """Read and decode from a sequence on, up to `end`, or for ever where that is None.

    Large batches while there is much to read. Then the first events after a pause at once, and at
    most one batch each `batch_milliseconds`, unless someone waits at `position`. While nothing
    comes there is a batch of None every IDLE_SECONDS.

    Data that one of `projections` wants is brought in from its blob.

    Raises what `bus.read` raises, LakeError where the lake lacks what is needed. A blob is waited
    for, where the server is lost, for `patience_seconds`.
    """
    size = config.batch_events
    reading = _open(bus, stream, lake, start, end, (CATCH_UP_FACTOR + 1) * size)
    async with reading as source:
        send, receive = anyio.create_memory_object_stream[Batch](0)
        ahead = _Ahead(bus, source, stream, config, projections, position, patience_seconds, send)
        async with send, receive, task_group() as tasks:
            tasks.start_soon(ahead.run)
            yield receive
            tasks.cancel_scope.cancel()


def _open(
    bus: Bus, stream: str, lake: str, start: int, end: int | None, window: int
) -> AbstractAsyncContextManager[Columns | lake_read.ColumnsReading]:
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
        source: Columns | lake_read.ColumnsReading,
        stream: str,
        config: ProjectorConfig,
        projections: Collection[Projection],
        position: Position | None,
        patience_seconds: float,
        send: anyio.abc.ObjectSendStream[Batch],
    ) -> None:
        self._bus = bus
        self._source = source
        self._stream = stream
        self._small = config.batch_events
        self._seconds = config.batch_milliseconds / 1000
        self._projections = projections
        self._position = position
        self._patience = patience_seconds
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
                stored = of_table(table, self._stream)
                decoded = await anyio.to_thread.run_sync(decode, stored)
                await self._send.send(Batch(await self._whole(decoded), pending))
                self._sent = anyio.current_time()

    async def _whole(self, batch: Decoded) -> Decoded:
        return await whole(self._bus, batch, self._projections, patience_seconds=self._patience)

    async def _next(self, size: int) -> pa.Table:
        left = self._sent + self._seconds - anyio.current_time()
        if left > 0 and self._position and not self._source.pending:
            await self._position.linger(left)
        return await self._source.batch(size, IDLE_SECONDS)


def of_table(table: pa.Table, stream: str) -> Stored:
    """A table of `bulk.SCHEMA` as what is decoded."""
    table = table.combine_chunks()
    seq, subject, stored_ns, headers, payload = (one_piece(column) for column in table.columns)
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
