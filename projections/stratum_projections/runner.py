"""The projector: follows the log from where its file stands, folds it in batches, answers queries.

It reads without acknowledging; the position is in the file, in the same transaction as the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec.structs import replace

from stratum_bus import event
from stratum_bus.blob import PREFIX
from stratum_bus.bus import Bus
from stratum_bus.config import LakeConfig, ProjectorConfig
from stratum_bus.errors import (
    BlobError,
    ConnectionLost,
    InvalidEvent,
    NoAnswer,
    NoStream,
    NotFound,
    ProjectorError,
)
from stratum_bus.heartbeat import Vitals
from stratum_bus.message import Message
from stratum_bus.read import Reader
from stratum_bus.tasks import task_group
from stratum_projections import snapshot
from stratum_projections.answering import serve
from stratum_projections.checkpoint import STREAM, Checkpoint, install
from stratum_projections.fold import Applied, Fold
from stratum_projections.lake import keep
from stratum_projections.lake import read as lake_read
from stratum_projections.position import Position
from stratum_projections.projection import Projection
from stratum_projections.store import Store
from stratum_projections.views import SHIPPED

log = logging.getLogger("stratum.projector")

CATCH_UP_FACTOR = 4
"""How much larger the batches are while more than one of them waits."""

IDLE_SECONDS = 2.0
_RETRY_SECONDS = 0.2
_LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)
_REFERENCE = f'"dataref":"{PREFIX}'.encode()


async def run(
    bus: Bus,
    path: Path | str,
    *,
    stop: anyio.Event,
    projector: str = "main",
    config: ProjectorConfig | None = None,
    projections: Sequence[Projection] = SHIPPED,
    vitals: Vitals | None = None,
    lake: LakeConfig | None = None,
) -> None:
    """Keep the projections in the file at `path` until `stop` is set, and answer queries on them.

    `vitals` is told how far it is. With `lake` that is kept too, and what the log holds no more is
    read from it. Waits for a lost server. Raises ProjectorError where file, fence or stream does
    not let it go on, LakeError where the lake lacks what is needed, and NotFound where there is no
    stream.
    """
    config = config or ProjectorConfig()
    lake_path = lake.path if lake else ""
    directories = [Path(lake_path)] if lake_path else []
    opening = partial(Store.open, path, directories=directories)
    store = await anyio.to_thread.run_sync(opening)
    try:
        checkpoint, fresh = await anyio.to_thread.run_sync(install, store, projections)
        if fresh:
            log.info("%s: building %s from the log's beginning", store.path, ", ".join(fresh))
        fold = await anyio.to_thread.run_sync(Fold, store, checkpoint, projections)
        follower = _Follower(bus, store, checkpoint, fold, config, lake_path)
        if vitals is not None:
            _tell(vitals, follower.position)
        async with task_group() as tasks:
            tasks.start_soon(_cancel_at, stop, tasks.cancel_scope)
            await follower.identify()
            await tasks.start(serve, bus.connection, store, follower.position, projector, config)
            await tasks.start(snapshot.serve, bus.connection, store, projector)
            if lake and lake_path:
                tasks.start_soon(keep.keep, bus, store, lake, follower.position)
            await follower.follow()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.close)
    log.info("stopped at %s %d", STREAM, checkpoint.position)


def _tell(vitals: Vitals, position: Position) -> None:
    def refresh() -> None:
        vitals.progress, vitals.pending = position.sequence, position.left

    vitals.refresh = refresh
    vitals.set_ready()


async def _cancel_at(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()


class _Follower:
    """Reads batches and folds them."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        checkpoint: Checkpoint,
        fold: Fold,
        config: ProjectorConfig,
        lake: str,
    ) -> None:
        self._bus = bus
        self._store = store
        self._checkpoint = checkpoint
        self._fold = fold
        self._lake = lake
        self._small = config.batch_events
        self._seconds = config.batch_milliseconds / 1000
        self._began = 0.0
        self._unflushed = False
        self.position = Position(checkpoint.position)

    async def identify(self) -> None:
        """Make sure that the stream is the one the file was built from.

        Raises ProjectorError `stream`, NotFound.
        """
        api = self._bus.connection.api
        while True:
            try:
                info = await api(f"STREAM.INFO.{STREAM}")
                break
            except _LOST_SERVER as error:
                if self._bus.connection.closed:
                    raise
                log.debug("waiting for the server: %s", error)
                await anyio.sleep(_RETRY_SECONDS)
            except NotFound:
                if self._checkpoint.created:
                    raise self._foreign("was deleted") from None
                raise
        created, state = info["created"], info["state"]
        if not self._checkpoint.created:
            await anyio.to_thread.run_sync(self._checkpoint.bind, created)
        position = self._checkpoint.position
        if created != self._checkpoint.created:
            raise self._foreign(f"was made anew at {created}")
        if position > state["last_seq"]:
            raise self._foreign(f"ends at {state['last_seq']}, before what was read, {position}")
        if not self._lake and 0 < position < state["first_seq"] - 1:
            raise self._foreign(f"begins at {state['first_seq']}, and {position} was read last")

    def _foreign(self, what: str) -> ProjectorError:
        return ProjectorError(
            "stream",
            f"stream {STREAM} {what}: {self._store.path} was built from another one; "
            "remove that file, and it is built anew",
        )

    async def follow(self) -> None:
        """Fold batch after batch, for ever."""
        start = self._checkpoint.position + 1
        largest = self._small * CATCH_UP_FACTOR
        size = self._small
        try:
            async with self._reading(start, 2 * largest) as reader:
                log.info("at %s %d of %d", STREAM, start - 1, reader.stored)
                while True:
                    if messages := await self._next(reader, size):
                        size = largest if messages[-1].pending > self._small else self._small
                        self.position.left = len(messages) + messages[-1].pending
                        await self._apply(messages)
                        self.position.left = messages[-1].pending
                    else:
                        await self._rest()
        except NotFound:
            raise self._foreign("was deleted") from None

    def _reading(
        self, start: int, window: int
    ) -> AbstractAsyncContextManager[Reader | lake_read.Reading]:
        if not self._lake:
            return self._bus.read(STREAM, start=start, follow=True, window=window)
        return lake_read.read(
            self._bus, self._lake, STREAM, start=start, follow=True, window=window
        )

    async def _next(self, reader: Reader | lake_read.Reading, size: int) -> list[Message]:
        """The first events after a pause at once, then at most one batch each `_seconds`."""
        messages = await reader.batch(size, IDLE_SECONDS, gather=False)
        left = self._began + self._seconds - anyio.current_time()
        if messages and left > 0 and len(messages) + messages[-1].pending < size:
            await self.position.linger(left)
            messages += await reader.batch(size - len(messages), 0, gather=False)
        return messages

    async def _apply(self, messages: list[Message]) -> None:
        self._began = anyio.current_time()
        messages = [await self._whole(m) if _refers(m) else m for m in messages]
        await self.identify()  # after reading: what was read is of the stream that it was before
        applied: Applied = await anyio.to_thread.run_sync(self._fold.apply, messages)
        self._unflushed = True
        self.position.advance(self._checkpoint.position)
        if applied.quarantined:
            log.warning("%d of %d events quarantined", applied.quarantined, applied.events)

    async def _whole(self, message: Message) -> Message:
        """A note or a dead letter with its data, where that was kept as a blob."""
        while True:
            try:
                found = await self._bus.event(message)
                return replace(message, payload=event.encode(found))
            except (InvalidEvent, BlobError) as error:
                log.warning("%s %d: %s", message.stream, message.sequence, error)
                return message
            except _LOST_SERVER as error:
                log.debug("waiting for a blob: %s", error)
                await anyio.sleep(_RETRY_SECONDS)

    async def _rest(self) -> None:
        """Nothing comes: move the write-ahead log into the file, so that a start is fast."""
        if self._unflushed:
            self._unflushed = False
            await anyio.to_thread.run_sync(self._store.flush)
        await self.identify()


def _refers(message: Message) -> bool:
    """Whether tables are made of data that is not in the message."""
    return message.subject.startswith(("memory.", "dead.")) and _REFERENCE in message.payload
