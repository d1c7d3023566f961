"""The bus: what a user holds. A connection, its publisher, and the ways to read."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from stratum_bus import blob, jetstream, subject
from stratum_bus import read as reading
from stratum_bus.batch import PubAck
from stratum_bus.event import Event, Raw, RawEvent
from stratum_bus.jetstream import Connection
from stratum_bus.message import Message
from stratum_bus.publish import INLINE_MAX, Append, Publisher
from stratum_bus.tasks import task_group


class Bus:
    """Publish, commit and read. Made by `connect`; safe to use from any number of tasks."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._publisher = Publisher(connection, self._inline_or_blob)

    async def publish(
        self, to: str, event: Event[Any], *, expected_sequence: int | None = None
    ) -> PubAck:
        """Store an event under the subject `to` and return when it is stored.

        Errors as in `Publisher.commit`. The same event published again is not stored twice.
        """
        return await self._publisher.publish(Append(to, event, expected_sequence))

    async def commit(self, appends: Sequence[Append]) -> list[PubAck]:
        """Store several events of the log, all or nothing; see `Publisher.commit`."""
        return await self._publisher.commit(appends)

    async def publish_many(self, appends: Iterable[Append] | AsyncIterable[Append]) -> int:
        """Store many events fast, each on its own: see `Publisher.publish_many`."""
        return await self._publisher.publish_many(appends)

    def read(
        self,
        stream: str = "LOG",
        *,
        filters: Sequence[str] = (),
        start: int | datetime | None = 1,
        end: int | None = None,
        follow: bool = False,
        window: int = reading.WINDOW_MESSAGES,
    ) -> AbstractAsyncContextManager[reading.Reader]:
        """Open a reading; see `read.read`."""
        return reading.read(
            self.connection,
            stream,
            filters=filters,
            start=start,
            end=end,
            follow=follow,
            window=window,
        )

    async def last(self, of: str) -> Message | None:
        """The last message of a subject (no wildcards), or None."""
        return await reading.last(self.connection, subject.stream_of(of), of)

    async def get(self, stream: str, sequence: int) -> Message:
        """The message of a sequence; raises NotFound."""
        return await reading.get(self.connection, stream, sequence)

    async def event(self, message: Message) -> RawEvent:
        """The event in a message, with data that was kept as a blob brought in.

        Raises InvalidEvent, BlobError.
        """
        return await self.with_data(message.event())

    async def with_data(self, found: RawEvent) -> RawEvent:
        """An event with data that was kept as a blob brought in. Raises BlobError."""
        if found.data is not None or not (found.dataref or "").startswith(blob.PREFIX):
            return found
        content = await blob.get(self.connection, blob.digest_of(found.dataref or ""))
        return replace(found, data=Raw(content))

    async def _inline_or_blob(self, append: Append) -> Append:
        event = append.event
        if event.data is None or not (data := blob.if_large(event.data, INLINE_MAX)):
            return append
        reference = blob.reference(await blob.put(self.connection, data))
        return replace(append, event=replace(event, data=None, dataref=reference))


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str = "stratum",
    patience_seconds: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[Bus]:
    """A bus on the server at `url`, open as long as the context.

    `patience_seconds` is how long publishing waits for a server that went away; within it a
    publish whose answer was lost is settled by its id (keep it below the streams' dedupe window,
    120 s). `options` goes to the client library as it is. Raises ConnectionLost.
    """
    async with jetstream.connect(
        url, name=name, patience_seconds=patience_seconds, options=options
    ) as connection:
        bus = Bus(connection)
        async with task_group() as tasks:
            tasks.start_soon(bus._publisher.run)
            yield bus
            tasks.cancel_scope.cancel()
