"""The projections that are kept up to date together, batch after batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
import anyio.to_thread

from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import NotFound, ProjectorError
from stratum_projections.batch import Decoded
from stratum_projections.catalog import install, paused
from stratum_projections.checkpoint import STREAM
from stratum_projections.fold import Applied, Fold
from stratum_projections.ingest import batches
from stratum_projections.position import Position
from stratum_projections.projection import Projection
from stratum_projections.store import Store
from stratum_projections.whole import LOST_SERVER, RETRY_SECONDS

log = logging.getLogger("stratum.projector")


class Live:
    """The projections that are kept up to date together, and the reading that does it.

    `projections` are all that are asked for; `waiting` those of them that are not where the others
    are, under the names by which they are built. `turn` is held while a batch is folded.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        config: ProjectorConfig,
        projections: Sequence[Projection],
        lake: str,
    ) -> None:
        self.bus = bus
        self.store = store
        self.config = config
        self.lake = lake
        self.projections = {projection.name: projection for projection in projections}
        self.checkpoint, fresh = install(store, projections, beside=True)
        if fresh:
            log.info("%s: building %s from the log's beginning", store.path, ", ".join(fresh))
        self.waiting = self._behind()
        together = [p for p in projections if p.name in self.checkpoint.active]
        self.fold = Fold(store, self.checkpoint, together)
        self.position = Position(self.checkpoint.position)
        self.turn = anyio.Lock()
        self._unflushed = False

    def slot(self, projection: Projection) -> Projection:
        """The projection under the name by which it is built, if it has to be."""
        beside = projection.beside()
        return beside if beside.name in self.checkpoint.homes else projection

    def _behind(self) -> list[Projection]:
        """Those that are to be built: what is not where the core is, or is being made anew.

        What is where the core is goes on until it is replaced; the others are not active.
        """
        checkpoint, found = self.checkpoint, []
        held = paused(self.store)
        for projection in self.projections.values():
            name, slot = projection.name, self.slot(projection)
            goes_on = name in checkpoint.active and checkpoint.positions[name] == checkpoint.core
            if name in held or (slot is projection and goes_on):
                continue
            if not goes_on:
                checkpoint.leave(name)
            found.append(slot)
        return found

    async def identify(self) -> None:
        """Make sure that the stream is the one the file was built from, and the file still there.

        Raises ProjectorError `stream` or `file`, NotFound.
        """
        checkpoint, bus = self.checkpoint, self.bus
        self.store.check_is_there()
        while True:
            try:
                info = await bus.connection.api(f"STREAM.INFO.{STREAM}")
                break
            except LOST_SERVER as error:
                if bus.connection.closed:
                    raise
                log.debug("waiting for the server: %s", error)
                await anyio.sleep(RETRY_SECONDS)
            except NotFound:
                if checkpoint.created:
                    raise self._foreign("was deleted") from None
                raise
        created, state = info["created"], info["state"]
        if not checkpoint.created:
            await anyio.to_thread.run_sync(checkpoint.bind, created)
        position = checkpoint.position
        if created != checkpoint.created:
            raise self._foreign(f"was made anew at {created}")
        if position > state["last_seq"]:
            raise self._foreign(f"ends at {state['last_seq']}, before what was read, {position}")
        if not self.lake and 0 < position < state["first_seq"] - 1:
            raise self._foreign(f"begins at {state['first_seq']}, and {position} was read last")

    def _foreign(self, what: str) -> ProjectorError:
        return ProjectorError(
            "stream",
            f"stream {STREAM} {what}: {self.store.path} was built from another one; "
            "remove that file, and it is built anew",
        )

    async def follow(self) -> None:
        """Fold batch after batch, for ever."""
        start = self.checkpoint.position + 1
        reading = batches(
            self.bus, STREAM, start=start, config=self.config,
            projections=self.projections.values(), lake=self.lake, position=self.position,
        )  # fmt: skip
        try:
            async with reading as found:
                log.info("at %s %d", STREAM, start - 1)
                async for batch in found:
                    if batch.decoded is None:
                        await self._rest()
                    else:
                        self.position.left = batch.pending + len(batch.decoded.stored)
                        await self._apply(batch.decoded)
                        self.position.left = batch.pending
        except NotFound:
            raise self._foreign("was deleted") from None

    async def _apply(self, batch: Decoded) -> None:
        await self.identify()  # after reading: what was read is of the stream that it was before
        async with self.turn:
            applied: Applied = await anyio.to_thread.run_sync(self.fold.fold, batch)
        self._unflushed = True
        self.position.advance(self.checkpoint.position)
        if applied.quarantined:
            log.warning("%d of %d events quarantined", applied.quarantined, applied.events)

    async def _rest(self) -> None:
        """Nothing comes: move the write-ahead log into the file, so that a start is fast."""
        if self._unflushed:
            self._unflushed = False
            await anyio.to_thread.run_sync(self.store.flush)
        await self.identify()
