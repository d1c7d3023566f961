"""What is in the lake, and readings that begin in the lake and go on in the stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar, cast

import anyio
import anyio.to_thread
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stratum_bus import bulk, subject
from stratum_bus.bus import Bus
from stratum_bus.cursor import RETRY_SECONDS
from stratum_bus.errors import ConnectionLost, LakeError, NoAnswer, NoStream
from stratum_bus.message import Message, nanoseconds
from stratum_bus.read import WINDOW_MESSAGES, Reader
from stratum_projections.lake.columns import columns_of
from stratum_projections.lake.export import plan, state
from stratum_projections.lake.rows import RAW, messages_of
from stratum_projections.lake.segment import Folder, Segment, damaged, facts_of, opened

BATCH_EVENTS = 5_000
_ATTEMPTS = 5

Piece = TypeVar("Piece")
Tail = TypeVar("Tail")


def lake_messages(
    path: Path | str, stream: str = "LOG", start: int = 1, end: int | None = None
) -> Iterator[Message]:
    """The messages from `start` to `end`, it included, in order, as `bus.read` would give them.

    Without `end` up to where the lake ends now. `pending` counts up to the end. Raises LakeError:
    `missing` for a range that the lake does not hold whole, `damaged`, `folder`. Blocking.
    """
    for batch in lake_batches(Folder(path, stream), start, end):
        yield from batch


def lake_batches(
    folder: Folder, start: int = 1, end: int | None = None, *, stored: int = 0
) -> Iterator[list[Message]]:
    """As `lake_messages`, some thousands at once. `pending` counts up to `stored`, if that is more."""

    def read(segment: Segment, first: int, last: int) -> Iterator[tuple[int, list[Message]]]:
        for batch in segment_batches(segment, folder.stream, first, last, stored=stored):
            yield batch[-1].sequence, batch

    return _pieces(folder, start, end, read)


def lake_tables(folder: Folder, start: int = 1, end: int | None = None) -> Iterator[pa.Table]:
    """The same rows as tables of `bulk.SCHEMA`. Blocking.

    `headers` are written anew from what was read of them when they were exported.
    """

    def read(segment: Segment, first: int, last: int) -> Iterator[tuple[int, pa.Table]]:
        for batch in _rows(segment, folder.stream, first, last):
            columns = columns_of(batch, first, last)
            if columns.num_rows:
                yield cast(int, columns["seq"][-1].as_py()), columns

    return _pieces(folder, start, end, read)


def _pieces(
    folder: Folder,
    start: int,
    end: int | None,
    read: Callable[[Segment, int, int], Iterator[tuple[int, Piece]]],
) -> Iterator[Piece]:
    """What `read` gives of one segment after the other, each piece with its last sequence."""
    at, attempts = max(1, start), 0
    last: int = folder.listing().last if end is None else end
    while at <= last:
        segment = _holding(folder, at, last)
        try:
            for sequence, piece in read(segment, at, last):
                yield piece
                at, attempts = sequence + 1, 0
            at = segment.last + 1
        except FileNotFoundError:
            # A compaction replaced it since it was listed.
            if (attempts := attempts + 1) == _ATTEMPTS:
                raise damaged(segment.path, "it is listed, and cannot be found") from None


def sequence_at(folder: Folder, time: datetime) -> int | None:
    """The first sequence that was stored at `time` or later; None where the lake ends before."""
    time_ns = nanoseconds(time)
    for segment in folder.listing().segments:
        if segment.day >= time.date():
            table = _table(segment, folder.stream, ["seq", "stored_ns"])
            late = table.filter(pc.field("stored_ns") >= time_ns)
            if late.num_rows:
                return cast(int, late["seq"][0].as_py())
    return None


@asynccontextmanager
async def read(
    bus: Bus,
    path: Path | str,
    stream: str = "LOG",
    *,
    filters: Sequence[str] = (),
    start: int | datetime = 1,
    end: int | None = None,
    follow: bool = False,
    window: int = WINDOW_MESSAGES,
) -> AsyncIterator[Reading]:
    """Read as `bus.read` does, but from the lake what the stream holds no more.

    Raises what `bus.read` raises, and LakeError: `missing` for what is in neither.
    """
    folder = Folder(path, stream)
    if isinstance(start, datetime):
        found = await anyio.to_thread.run_sync(sequence_at, folder, start)
        start = start if found is None else found
    async with AsyncExitStack() as stack:
        reading = Reading(bus, folder, start, end, follow, window, stack)
        reading.filters = filters
        await reading.begin()
        yield reading


@asynccontextmanager
async def read_columns(
    bus: Bus,
    path: Path | str,
    stream: str = "LOG",
    *,
    start: int,
    end: int | None = None,
    follow: bool = False,
    window: int = bulk.WINDOW_MESSAGES,
) -> AsyncIterator[ColumnsReading]:
    """Read as `bulk.read_columns` does, but from the lake what the stream holds no more.

    Raises what that raises, and LakeError: `missing` for what is in neither.
    """
    async with AsyncExitStack() as stack:
        reading = ColumnsReading(bus, Folder(path, stream), start, end, follow, window, stack)
        await reading.begin()
        yield reading


class _Crossing(ABC, Generic[Tail, Piece]):
    """A reading that goes from the lake into the stream."""

    def __init__(
        self,
        bus: Bus,
        folder: Folder,
        start: int | datetime,
        end: int | None,
        follow: bool,
        window: int,
        stack: AsyncExitStack,
    ) -> None:
        self._bus = bus
        self._folder = folder
        self._start = start
        self._end = end
        self._follow = follow
        self._window = window
        self._stack = stack
        self._lake: Iterator[Piece] | None = None
        self._tail: Tail | None = None
        self.stored = 0

    @abstractmethod
    def _in_stream(self, start: int | datetime) -> AbstractAsyncContextManager[Tail]: ...

    @abstractmethod
    def _in_lake(self, start: int, end: int) -> Iterator[Piece]: ...

    async def begin(self) -> None:
        """Find the end and open what the start is in."""
        self.stored = (await state(self._bus, self._folder.stream)).last
        if not self._follow:
            self._end = self.stored if self._end is None else min(self._end, self.stored)
        await self._open()

    async def _next_piece(self) -> Piece | None:
        """What comes next from the lake; None at its end, where the stream follows or more of it."""
        if self._lake is None:
            await self._open_again()
        found: Piece | None = None
        if self._lake is not None:
            found = await anyio.to_thread.run_sync(next, self._lake, None)
            if found is None:
                self._lake = None
        return found

    async def _open(self) -> None:
        """Open the stream where the lake ended, or the lake for what the stream has not."""
        stack = await self._stack.enter_async_context(AsyncExitStack())
        start = self._start
        tail = await stack.enter_async_context(self._in_stream(start))
        # Asked only now: what the stream held at this time, the reading will be given.
        first = (await state(self._bus, self._folder.stream)).first
        if isinstance(start, datetime) or start >= first:
            self._tail = tail
            return
        await stack.aclose()
        await plan(self._bus, self._folder)  # it is the same stream's lake
        last = first - 1 if self._end is None else min(self._end, first - 1)
        self._lake = self._in_lake(start, last)
        self._start = first

    async def _open_again(self) -> None:
        """As `_open`; a reading that follows waits for a lost server, as `bus.read` does."""
        while True:
            try:
                return await self._open()
            except (ConnectionLost, NoAnswer, NoStream):
                if not self._follow or self._bus.connection.closed:
                    raise
                await anyio.sleep(RETRY_SECONDS)


class Reading(_Crossing[Reader, list[Message]]):
    """An open reading, with the ways of `stratum_bus.read.Reader`. Made by `read`.

    `stored` is the stream's last sequence when the reading began.
    """

    filters: Sequence[str] = ()
    _held: Sequence[Message] = ()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[Message]:
        while batch := await self.batch(self._window, None, gather=False):
            for message in batch:
                yield message

    @property
    def ended(self) -> bool:
        """Whether a bounded reading has handed out all it will."""
        return not self._held and self._tail is not None and self._tail.ended

    async def batch(
        self, max_messages: int, wait_seconds: float | None, *, gather: bool = True
    ) -> list[Message]:
        """As `Reader.batch`; what comes from the lake comes at once."""
        while not self._held and self._tail is None:
            self._held = [m for m in await self._next_piece() or () if self._wanted(m)]
        if self._held:
            taken, self._held = self._held[:max_messages], self._held[max_messages:]
            return list(taken)
        assert self._tail is not None
        return await self._tail.batch(max_messages, wait_seconds, gather=gather)

    def _in_stream(self, start: int | datetime) -> AbstractAsyncContextManager[Reader]:
        return self._bus.read(
            self._folder.stream,
            filters=self.filters,
            start=start,
            end=self._end,
            follow=self._follow,
            window=self._window,
        )

    def _in_lake(self, start: int, end: int) -> Iterator[list[Message]]:
        return lake_batches(self._folder, start, end, stored=self._end or self.stored)

    def _wanted(self, message: Message) -> bool:
        filters = self.filters
        return not filters or any(subject.matches(each, message.subject) for each in filters)


class ColumnsReading(_Crossing[bulk.Columns, pa.Table]):
    """An open reading, with the ways of `stratum_bus.bulk.Columns`. Made by `read_columns`.

    `stored` is the stream's last sequence when the reading began, `pending` how many were known
    to be behind the last message that was handed out.
    """

    _held = bulk.SCHEMA.empty_table()
    pending = 0

    @property
    def ended(self) -> bool:
        """Whether a bounded reading has handed out all it will."""
        return not self._held.num_rows and self._tail is not None and self._tail.ended

    async def batch(self, max_messages: int, wait_seconds: float | None) -> pa.Table:
        """As `Columns.batch`; what comes from the lake comes at once."""
        held = [self._held] if self._held.num_rows else []
        rows, size = self._held.num_rows, self._held.nbytes
        while self._tail is None and rows < max_messages and size < bulk.TABLE_BYTES:
            piece = await self._next_piece()
            if piece is not None:
                held.append(piece)
                rows, size = rows + piece.num_rows, size + piece.nbytes
            elif held:
                break
        if held:
            return self._hand_out(pa.concat_tables(held), max_messages)
        assert self._tail is not None
        found = await self._tail.batch(max_messages, wait_seconds)
        self.pending = self._tail.pending
        return found

    def _hand_out(self, rows: pa.Table, most: int) -> pa.Table:
        taken, self._held = rows.slice(0, most), rows.slice(most)
        last = cast(int, taken["seq"][-1].as_py())
        self.pending = max(0, (self._end or self.stored) - last)
        return taken.unify_dictionaries().combine_chunks()

    def _in_stream(self, start: int | datetime) -> AbstractAsyncContextManager[bulk.Columns]:
        assert isinstance(start, int)
        return bulk.read_columns(
            self._bus,
            self._folder.stream,
            start=start,
            end=self._end,
            follow=self._follow,
            window=self._window,
        )

    def _in_lake(self, start: int, end: int) -> Iterator[pa.Table]:
        return lake_tables(self._folder, start, end)


def _holding(folder: Folder, sequence: int, end: int) -> Segment:
    listing = folder.listing()
    for segment in listing.segments:
        if segment.first <= sequence <= segment.last:
            return segment
    missing = ", ".join(f"{a:,} to {b:,}" for a, b in listing.missing(sequence, end)[:3])
    raise LakeError("missing", f"{folder.root} does not hold {folder.stream} {missing}")


def segment_batches(
    segment: Segment, stream: str, start: int, end: int, *, stored: int = 0
) -> Iterator[list[Message]]:
    """The messages of one segment from `start` to `end`.

    Raises LakeError `damaged`, and FileNotFoundError where a compaction has removed it.
    """
    for batch in _rows(segment, stream, start, end):
        messages = messages_of(batch, stream, max(end, stored))
        if messages[0].sequence < start or messages[-1].sequence > end:
            messages = [m for m in messages if start <= m.sequence <= end]
        if messages:
            yield messages


def _rows(segment: Segment, stream: str, start: int, end: int) -> Iterator[pa.RecordBatch]:
    """The columns RAW of what may lie between `start` and `end`."""
    with opened(segment.path) as file:
        facts_of(segment, stream, file.metadata)
        groups = [i for i in range(file.num_row_groups) if _within(file, i, start, end)]
        try:
            for group in groups:  # one at a time: each has some MB at most, however few rows
                yield from file.iter_batches(BATCH_EVENTS, row_groups=[group], columns=list(RAW))
        except (pa.ArrowException, OSError) as error:
            raise damaged(segment.path, str(error)) from error


def _table(segment: Segment, stream: str, columns: list[str]) -> pa.Table:
    with opened(segment.path) as file:
        facts_of(segment, stream, file.metadata)
        try:
            return file.read(columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise damaged(segment.path, str(error)) from error


def _within(file: pq.ParquetFile, group: int, start: int, end: int) -> bool:
    """Whether a row group may have sequences from `start` to `end`."""
    row_group = file.metadata.row_group(group)
    column = row_group.column(file.schema_arrow.get_field_index("seq"))
    if (known := column.statistics) is None or not known.has_min_max:
        return True
    low, high = cast(int, known.min), cast(int, known.max)
    return low <= end and high >= start
