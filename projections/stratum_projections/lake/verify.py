"""Is the lake what the stream was? Every file and every row is looked at.

The pages' checksums show what a disk changed; names and rows must agree; and whatever the stream
still holds is compared with the lake, message by message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import anyio.to_thread
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError
from stratum_bus.message import Message, utc
from stratum_bus.read import Reader
from stratum_projections.lake.export import Stream, state
from stratum_projections.lake.read import segment_batches
from stratum_projections.lake.segment import Folder, Listing, Segment, facts

_KIND = "compact"
_BATCH = 5_000
_WINDOW = 10_000


class Finding(Struct, frozen=True):
    """Something that is not as it should be. `kind` is a stable word.

    Kinds: `missing` (a range that the lake lacks although it goes on behind it), `damaged` (a file
    that is none of ours or cannot be read), `rows` (rows that contradict the file's name), `differs`
    (a message that is another in the stream), `stream` (it is another stream's lake).
    """

    kind: str
    where: str
    what: str


class Verified(Struct):
    """What was looked at. `compared` messages were also in the stream."""

    segments: int = 0
    events: int = 0
    compared: int = 0
    findings: list[Finding] = []


async def verify(
    bus: Bus, folder: Folder, *, said: Callable[[Segment], None] | None = None
) -> Verified:
    """Look at all of it; `said` is called with each segment that was.

    Takes as long as reading the stream does. Raises LakeError: `missing` where there is no lake,
    `locked` while it is compacted, `folder`; and what `bus.read` raises.
    """
    if not folder.root.is_dir():
        raise LakeError("missing", f"there is no lake of {folder.stream} in {folder.lake}")
    with folder.locked(_KIND):  # what is being read must not be replaced
        listing = await anyio.to_thread.run_sync(folder.listing)
        stream = await state(bus, folder.stream)
        found = Verified(segments=len(listing.segments))
        found.findings += _ranges(folder, listing, stream)
        first = max(stream.first, listing.segments[0].first) if listing.segments else 1
        async with _compared(bus, folder, stream, first, listing.last) as tail:
            for segment in listing.segments:
                await _segment(found, folder, stream, segment, tail)
                if said:
                    said(segment)
    return found


def _ranges(folder: Folder, listing: Listing, stream: Stream) -> Iterator[Finding]:
    if not listing.segments:
        return
    for first, last in listing.missing(listing.segments[0].first, listing.last):
        place = f"{folder.stream} {first} to {last}"
        if last >= stream.first:
            yield Finding("missing", place, "not in the lake; `stratum lake export` adds it")
        else:
            yield Finding("missing", place, "neither in the lake nor in the stream any more")
    if listing.last > stream.last:
        what = f"the lake goes on to {listing.last}: the stream was cut short, or is another one"
        yield Finding("stream", f"{folder.stream} {stream.last}", what)


async def _segment(
    found: Verified, folder: Folder, stream: Stream, segment: Segment, tail: _Tail
) -> None:
    where = str(segment.path.relative_to(folder.lake))
    last = segment.first - 1
    await tail.skip(last)
    try:
        said = await _blocking(facts, segment, folder.stream)
        if said.created != stream.created:
            what = f"of a stream created at {said.created}, this one was at {stream.created}"
            found.findings.append(Finding("stream", where, what))
            return
        batches = segment_batches(segment, folder.stream, 1, 2**63 - 1)
        while batch := await _blocking(next, batches, None):
            found.events += len(batch)
            if what := _contradiction(segment, last, batch):
                found.findings.append(Finding("rows", where, what))
                return
            last = batch[-1].sequence
            found.compared += await tail.compare(batch, last, where, found.findings)
        await tail.compare([], segment.last, where, found.findings)
    except LakeError as error:
        found.findings.append(Finding("damaged", where, str(error)))
    finally:
        await tail.skip(segment.last)


def _contradiction(segment: Segment, before: int, batch: list[Message]) -> str:
    for message in batch:
        if not before < message.sequence <= segment.last:
            return f"sequence {message.sequence} does not belong behind {before} here"
        if utc(message.time_ns).date() != segment.day:
            return f"sequence {message.sequence} was stored on {message.time.date()}"
        before = message.sequence
    return ""


@asynccontextmanager
async def _compared(
    bus: Bus, folder: Folder, stream: Stream, first: int, last: int
) -> AsyncIterator[_Tail]:
    if first > last:
        yield _Tail(None)
        return
    async with bus.read(folder.stream, start=first, end=last, window=_WINDOW) as reader:
        yield _Tail(reader)


class _Tail:
    """What the stream still holds, read along with the lake."""

    def __init__(self, reader: Reader | None) -> None:
        self._reader = reader
        self._held: list[Message] = []

    async def compare(
        self, batch: list[Message], last: int, where: str, findings: list[Finding]
    ) -> int:
        """Compare the lake's messages up to `last` with the stream's; returns how many it held.

        What only the lake holds was removed from the stream since. Says the first difference.
        """
        there = {message.sequence: message for message in batch}
        ours = await self._up_to(last)
        for message in ours:
            other = there.get(message.sequence)
            if other is None:
                what = f"{message.stream} {message.sequence} is in the stream, and not in it"
            elif field := _difference(message, other):
                what = f"{message.stream} {message.sequence} has another {field} in the stream"
            else:
                continue
            if not any(each.where == where for each in findings):
                findings.append(Finding("differs", where, what))
            break
        return len(ours)

    async def skip(self, last: int) -> None:
        await self._up_to(last)

    async def _up_to(self, last: int) -> list[Message]:
        while self._reader and not (self._held and self._held[-1].sequence >= last):
            more = await self._reader.batch(_BATCH, None, gather=False)
            if not more:
                self._reader = None
            self._held += more
        taken = [message for message in self._held if message.sequence <= last]
        self._held = self._held[len(taken) :]
        return taken


def _difference(one: Message, other: Message) -> str:
    for field in ("subject", "time_ns", "headers", "payload"):
        if getattr(one, field) != getattr(other, field):
            return field
    return ""


_blocking = anyio.to_thread.run_sync
