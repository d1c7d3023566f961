"""Messages out of the lake, and a reading that begins in the lake and goes on in the stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import cast

import anyio
import anyio.to_thread
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.cursor import RETRY_SECONDS
from stratum_bus.errors import ConnectionLost, LakeError, NoAnswer, NoStream
from stratum_bus.message import Message, nanoseconds
from stratum_bus.read import WINDOW_MESSAGES, Reader
from stratum_projections.lake.export import plan, state
from stratum_projections.lake.rows import RAW, messages_of
from stratum_projections.lake.segment import Folder, Segment, damaged, facts_of, opened

BATCH_EVENTS = 5_000
_ATTEMPTS = 5


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
    at, attempts = max(1, start), 0
    last: int = folder.listing().last if end is None else end
    while at <= last:
        segment = _holding(folder, at, last)
        try:
            for batch in segment_batches(segment, folder.stream, at, last, stored=stored):
                yield batch
                at, attempts = batch[-1].sequence + 1, 0
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
    stored = (await state(bus, stream)).last
    if not follow:
        end = stored if end is None else min(end, stored)
    async with AsyncExitStack() as stack:
        reading = Reading(bus, folder, filters, start, end, follow, window, stack)
        reading.stored = stored
        await reading.open()
        yield reading


class Reading:
    """An open reading, with the ways of `stratum_bus.read.Reader`. Made by `read`.

    `stored` is the stream's last sequence when the reading began.
    """

    def __init__(
        self,
        bus: Bus,
        folder: Folder,
        filters: Sequence[str],
        start: int | datetime,
        end: int | None,
        follow: bool,
        window: int,
        stack: AsyncExitStack,
    ) -> None:
        self._bus = bus
        self._folder = folder
        self._filters = filters
        self._start = start
        self._end = end
        self._follow = follow
        self._window = window
        self._stack = stack
        self._lake: Iterator[list[Message]] | None = None
        self._held: list[Message] = []
        self._tail: Reader | None = None
        self.stored = 0

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
            await self._from_lake()
        if self._held:
            taken, self._held = self._held[:max_messages], self._held[max_messages:]
            return taken
        assert self._tail is not None
        return await self._tail.batch(max_messages, wait_seconds, gather=gather)

    async def _from_lake(self) -> None:
        batch = None
        if self._lake:
            batch = await anyio.to_thread.run_sync(next, self._lake, None)
        if batch is None:
            self._lake = None
            await self._open_again()
            return
        self._held = [message for message in batch if self._wanted(message)]

    async def open(self) -> None:
        """Open the stream where the lake ended, or the lake for what the stream has not."""
        stack = await self._stack.enter_async_context(AsyncExitStack())
        start = self._start
        tail = await stack.enter_async_context(
            self._bus.read(
                self._folder.stream,
                filters=self._filters,
                start=start,
                end=self._end,
                follow=self._follow,
                window=self._window,
            )
        )
        # Asked only now: what the stream held at this time, the reading will be given.
        first = (await state(self._bus, self._folder.stream)).first
        if isinstance(start, datetime) or start >= first:
            self._tail = tail
            return
        await stack.aclose()
        await plan(self._bus, self._folder)  # it is the same stream's lake
        last = first - 1 if self._end is None else min(self._end, first - 1)
        self._lake = lake_batches(self._folder, start, last, stored=self._end or self.stored)
        self._start = first

    async def _open_again(self) -> None:
        """As `open`; a reading that follows waits for a lost server, as `bus.read` does."""
        while True:
            try:
                return await self.open()
            except (ConnectionLost, NoAnswer, NoStream):
                if not self._follow or self._bus.connection.closed:
                    raise
                await anyio.sleep(RETRY_SECONDS)

    def _wanted(self, message: Message) -> bool:
        filters = self._filters
        return not filters or any(subject.matches(each, message.subject) for each in filters)


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
    with opened(segment.path) as file:
        facts_of(segment, stream, file.metadata)
        groups = [i for i in range(file.num_row_groups) if _within(file, i, start, end)]
        try:
            for batch in file.iter_batches(BATCH_EVENTS, row_groups=groups, columns=list(RAW)):
                messages = messages_of(batch, stream, max(end, stored))
                if messages[0].sequence < start or messages[-1].sequence > end:
                    messages = [m for m in messages if start <= m.sequence <= end]
                if messages:
                    yield messages
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
