"""The projector: follows the log from where its file stands, folds it in batches, answers queries.

It reads without acknowledging; the position is in the file, in the same transaction as the rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from stratum_bus.bus import Bus
from stratum_bus.config import LakeConfig, ProjectorConfig
from stratum_bus.heartbeat import Vitals
from stratum_bus.tasks import task_group
from stratum_projections import manage, snapshot
from stratum_projections.answering import serve
from stratum_projections.checkpoint import STREAM
from stratum_projections.lake import keep
from stratum_projections.live import Live
from stratum_projections.position import Position
from stratum_projections.projection import Projection
from stratum_projections.rebuild import Builder
from stratum_projections.store import Store
from stratum_projections.views import SHIPPED

log = logging.getLogger("stratum.projector")


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

    A projection that is new or changed is built beside the others, which go on meanwhile. `vitals`
    is told how far it is. With `lake` that is kept too, and what the log holds no more is read from
    it. Waits for a lost server. Raises ProjectorError where file, fence or stream does not let it
    go on, LakeError where the lake lacks what is needed, and NotFound where there is no stream.
    """
    config = config or ProjectorConfig()
    lake_path = lake.path if lake else ""
    directories = [Path(lake_path)] if lake_path else []
    opening = partial(Store.open, path, directories=directories)
    store = await anyio.to_thread.run_sync(opening)
    try:
        live = await anyio.to_thread.run_sync(Live, bus, store, config, projections, lake_path)
        if vitals is not None:
            _tell(vitals, live.position)
        async with task_group() as tasks:
            tasks.start_soon(_cancel_at, stop, tasks.cancel_scope)
            await live.identify()
            builder = Builder(live, tasks)
            builder.start(live.waiting)
            await tasks.start(serve, bus.connection, store, live.position, projector, config)
            await tasks.start(snapshot.serve, bus.connection, store, projector)
            await tasks.start(manage.serve, bus.connection, live, builder, projector)
            if lake and lake_path:
                tasks.start_soon(keep.keep, bus, store, lake, live.position)
            await live.follow()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.close)
    log.info("stopped at %s %d", STREAM, live.checkpoint.position)


def _tell(vitals: Vitals, position: Position) -> None:
    def refresh() -> None:
        vitals.progress, vitals.pending = position.sequence, position.left

    vitals.refresh = refresh
    vitals.set_ready()


async def _cancel_at(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    await stop.wait()
    scope.cancel()
