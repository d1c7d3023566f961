"""A fold of the log from its beginning up to a chosen sequence, for questions about a moment.

What the stream holds no more is read from the lake. Nothing is left out silently: where neither of
them has the beginning, there is an error and no file to be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread

from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import LakeError, ProjectorError
from stratum_projections.catalog import install
from stratum_projections.checkpoint import CORE, STREAM, Checkpoint
from stratum_projections.fold import Fold
from stratum_projections.ingest import batches
from stratum_projections.lake.export import Stream, state
from stratum_projections.projection import Projection
from stratum_projections.store import Store

PATIENCE_SECONDS = 30.0
"""How long a lost server is waited for."""

_READING = ProjectorConfig(batch_events=1_500)
"""Larger batches are hardly faster, and this may be a process beside the projector: it stays below
400 MB.
"""

Progress = Callable[[int, int], None]
"""Is told the sequence that is reached, and the one to reach."""


async def build(
    bus: Bus,
    path: Path | str,
    projections: Sequence[Projection],
    *,
    end: int,
    lake: str = "",
    progress: Progress | None = None,
) -> None:
    """Bring the projections in the DuckDB file at `path` to exactly the sequence `end`.

    A file that is there is gone on with, from where its projections stand. Raises as `fold_to`,
    and ProjectorError `locked` where another process has the file.
    """
    store = await anyio.to_thread.run_sync(Store.open, path)
    try:
        await fold_to(bus, store, projections, end=end, lake=lake, progress=progress)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.close)


async def fold_to(
    bus: Bus,
    store: Store,
    projections: Sequence[Projection],
    *,
    end: int,
    lake: str = "",
    progress: Progress | None = None,
) -> None:
    """As `build`, in an open file.

    Raises ProjectorError: `stream` where the log is not the one that the file was built from, or
    ends before `end`, `file` where a projection is behind `end` already, or the disk is full,
    `projection`; LakeError: `missing` where log and lake do not have it all; NotFound,
    ConnectionLost.
    """
    checkpoint, _ = await anyio.to_thread.run_sync(install, store, projections)
    stream = await state(bus, STREAM)
    if not checkpoint.created:
        await anyio.to_thread.run_sync(checkpoint.bind, stream.created)
    _must_be(store, checkpoint, stream)
    if stream.last < end:
        raise ProjectorError("stream", f"{STREAM} ends at {stream.last:,}, before {end:,}")
    names = [CORE, *(projection.name for projection in projections)]  # a paused one too

    def standing() -> list[int]:
        return [checkpoint.positions[name] for name in names]

    if (furthest := max(standing())) > end:
        text = f"{store.path} reflects {STREAM} {furthest:,} already, behind {end:,}: a fold only goes on"
        raise ProjectorError("file", text)
    start = min(standing()) + 1
    if start > end:
        return
    if not lake and start < stream.first:
        raise LakeError(
            "missing",
            f"{STREAM} begins at {stream.first:,} and what was before it is needed, from {start:,} "
            "on: only a lake would have it ([lake] path in stratum.toml)",
        )
    fold = await anyio.to_thread.run_sync(Fold, store, checkpoint, projections)
    reading = batches(
        bus, STREAM, start=start, end=end, lake=lake, config=_READING,
        projections=projections,
        patience_seconds=PATIENCE_SECONDS,
    )  # fmt: skip
    async with reading as found:
        async for batch in found:
            if batch.decoded is None:
                continue
            # After reading: what was read is of the stream that it was before.
            _must_be(store, checkpoint, await state(bus, STREAM))
            await anyio.to_thread.run_sync(fold.fold, batch.decoded)
            if progress:
                progress(min(standing()), end)


def _must_be(store: Store, checkpoint: Checkpoint, stream: Stream) -> None:
    if checkpoint.created != stream.created:
        raise ProjectorError(
            "stream", f"{STREAM} was made anew at {stream.created}: {store.path} is of another one"
        )
