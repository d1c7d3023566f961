"""From the stream into segments: each stored message is in the lake once, wherever it crashes.

There is no record of a position but the files' names. What no name covers is read from the stream
and written; a crash leaves at most one unfinished file, which the next start removes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import date
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError, NotFound
from stratum_bus.message import Message, utc
from stratum_bus.read import Reader
from stratum_projections.lake.rows import rows
from stratum_projections.lake.segment import Folder, Listing, Segment, facts
from stratum_projections.lake.write import Draft, remove

log = logging.getLogger("stratum.lake")

SEGMENT_EVENTS = 100_000
SEGMENT_BYTES = 256 << 20
"""A segment is closed behind so much data too: a message may have a megabyte."""

BATCH_EVENTS = 5_000
BATCH_BYTES = 8 << 20

_KIND = "export"
_DAY_NS = 86_400_000_000_000

T = TypeVar("T")


class Stream(Struct, frozen=True):
    """A stream as the server describes it. `last` is the newest sequence that it gave out."""

    created: str
    first: int
    last: int
    messages: int


class Plan(Struct, frozen=True):
    """What the lake lacks: `ranges` the stream can still give, `lost` are in neither of them."""

    stream: Stream
    ranges: list[tuple[int, int]]
    lost: list[tuple[int, int]]


async def state(bus: Bus, stream: str) -> Stream:
    """Ask the server. Raises NotFound, ConnectionLost, NoAnswer."""
    info: dict[str, Any] = await bus.connection.api(f"STREAM.INFO.{stream}")
    at = info["state"]
    return Stream(info["created"], at["first_seq"], at["last_seq"], at["messages"])


async def plan(bus: Bus, folder: Folder) -> Plan:
    """What there is to export.

    Raises LakeError: `stream` where the lake holds another stream of that name, `damaged`,
    `folder`; and what `state` raises.
    """
    listing = await anyio.to_thread.run_sync(folder.listing)
    stream = await state(bus, folder.stream)
    if listing.segments:
        newest = listing.segments[-1]
        said = await anyio.to_thread.run_sync(facts, newest, folder.stream)
        if said.created != stream.created:
            raise _foreign(folder, f"was made anew at {stream.created}")
        if newest.last > stream.last:
            raise _foreign(folder, f"ends at {stream.last}, before what the lake holds")
    return _planned(stream, listing)


@asynccontextmanager
async def exporter(
    bus: Bus, folder: Folder, *, segment_events: int = SEGMENT_EVENTS
) -> AsyncIterator[Exporter]:
    """Be the one that adds segments. Raises LakeError `locked`, `folder`."""
    with folder.locked(_KIND):
        await _blocking(_tidy, folder)
        yield Exporter(bus, folder, segment_events)


class Exporter:
    """Adds segments. Made by `exporter`."""

    def __init__(self, bus: Bus, folder: Folder, segment_events: int) -> None:
        self._bus = bus
        self._folder = folder
        self._segment_events = segment_events

    async def export(
        self, said: Callable[[Segment], None] | None = None, *, end: int | None = None
    ) -> list[Segment]:
        """Write what the lake lacks of what the stream holds now; returns the new segments.

        With `end` only up to that sequence. `said` is called with each as soon as it is there.
        Raises as `plan`, LakeError `folder` on a full disk. What was written until then stays, and
        the next call goes on behind it.
        """
        todo = await plan(self._bus, self._folder)
        for first, last in todo.lost:
            name = self._folder.stream
            log.warning("%s %d to %d are gone, and not in the lake", name, first, last)
        written: list[Segment] = []

        def closed(segment: Segment) -> None:
            written.append(segment)
            if said:
                said(segment)

        for first, last in todo.ranges:
            last = last if end is None else min(last, end)
            if first > last:
                break
            await self._range(first, last, todo.stream.created, closed)
        return written

    async def _range(
        self, first: int, last: int, created: str, closed: Callable[[Segment], None]
    ) -> None:
        writing = Writing(self, first, created, closed)
        try:
            async with self._bus.read(
                self._folder.stream, start=first, end=last, window=2 * BATCH_EVENTS
            ) as reader:
                while messages := await self._next(reader):
                    for _, run in groupby(messages, lambda message: message.time_ns // _DAY_NS):
                        await writing.add(list(run))
            await writing.finish(last)
        finally:
            await writing.discard()

    async def _next(self, reader: Reader) -> list[Message]:
        """The next messages, as many as are good to handle at once; none at the end."""
        held: list[Message] = []
        most, size = min(BATCH_EVENTS, self._segment_events), 0
        while len(held) < most and size < BATCH_BYTES:
            more = await reader.batch(min(most - len(held), 500), None, gather=False)
            if not more:
                break
            held += more
            size += sum(len(message.payload) for message in more)
        return held

    def is_full(self, draft: Draft, more: list[Message]) -> bool:
        return (
            draft.day != _day(more[0])
            or draft.rows + len(more) > self._segment_events
            or draft.bytes > SEGMENT_BYTES
        )

    def begin(self, day: date, first: int) -> Draft:
        return Draft(self._folder, _KIND, day, first)

    async def check(self, created: str) -> None:
        """Raise LakeError `stream` unless what was read until now is of that stream."""
        try:
            now = await state(self._bus, self._folder.stream)
        except NotFound:
            raise _foreign(self._folder, "was deleted") from None
        if now.created != created:
            raise _foreign(self._folder, f"was made anew at {now.created}")


class Writing:
    """One range of a stream on its way into segments."""

    def __init__(
        self, exporter: Exporter, first: int, created: str, closed: Callable[[Segment], None]
    ) -> None:
        self._exporter = exporter
        self._first = first
        self._created = created
        self._closed = closed
        self._draft: Draft | None = None

    async def add(self, run: list[Message]) -> None:
        """Write messages of one day, behind those before in the same segment if they fit."""
        if self._draft and self._exporter.is_full(self._draft, run):
            await self.finish(run[0].sequence - 1)
        if self._draft is None:
            self._draft = await _blocking(self._exporter.begin, _day(run[0]), self._first)
        await _blocking(_write, self._draft, run)

    async def finish(self, last: int) -> None:
        """Close the segment, if one is open: all up to `last` has been read."""
        if self._draft is None:
            return
        await self._exporter.check(self._created)
        segment = await _blocking(self._draft.publish, last, self._created)
        self._draft, self._first = None, last + 1
        self._closed(segment)

    async def discard(self) -> None:
        if self._draft is not None:
            with anyio.CancelScope(shield=True):
                await _blocking(self._draft.discard)


def _tidy(folder: Folder) -> None:
    remove(folder.strays(_KIND), folder)


def _write(draft: Draft, run: list[Message]) -> None:
    draft.write(rows(run))


def _day(message: Message) -> date:
    return utc(message.time_ns).date()


def _planned(stream: Stream, listing: Listing) -> Plan:
    ranges = listing.missing(max(1, stream.first), stream.last)
    lost = []
    if listing.segments:
        lost = listing.missing(listing.segments[0].first, stream.first - 1)
    return Plan(stream, ranges, lost)


def _foreign(folder: Folder, what: str) -> LakeError:
    return LakeError(
        "stream",
        f"stream {folder.stream} {what}: {folder.root} holds another one; move that folder away, "
        "or give this stream a lake of its own",
    )


async def _blocking(function: Callable[..., T], *arguments: Any) -> T:
    return await anyio.to_thread.run_sync(partial(function, *arguments))
