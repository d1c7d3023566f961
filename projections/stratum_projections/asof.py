"""The answer of a query as if the projections had read the log exactly up to a moment.

The tables of that moment are made by folding the log anew, from the newest snapshot before it where
one fits, in a file of its own: the projector's file is not touched, and none has to run. The newest
few such files are kept, so that the next question about the same moment is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from stratum_bus.bus import Bus
from stratum_projections.batch import COLUMNS
from stratum_projections.build import Progress, fold_to
from stratum_projections.catalog import install
from stratum_projections.kept import Files
from stratum_projections.lake import hot
from stratum_projections.moment import find
from stratum_projections.projection import Projection
from stratum_projections.query import MAX_ROWS, TIMEOUT_SECONDS, Answer, query_file
from stratum_projections.scratch import scratch
from stratum_projections.select import connect, select
from stratum_projections.store import Store
from stratum_projections.views import SHIPPED

_DYNAMIC = {
    "query",
    "query_table",
    "read_duckdb",
    "checkpoint",
    "projections",
    "quarantine",
}
"""What may read any table, or is made by every projection."""


async def as_of(
    bus: Bus,
    sql: str,
    at: int | datetime,
    *,
    folder: Path | str,
    projections: Sequence[Projection] = SHIPPED,
    lake: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
    progress: Progress | None = None,
) -> Answer:
    """The rows of one SELECT at a moment, and its sequence. `folder` is that of the projector's file.

    The time limit is the query's alone: before it the log is folded, which `progress` is told of;
    a wrong query is refused before that. Files are kept in `asof/` in the folder.

    Raises QueryError: `moment` where the log has no such moment (any longer, or yet), the reasons
    of `select`; and as `build` does: LakeError `missing`, ProjectorError, NotFound, ConnectionLost.
    """
    async with file_as_of(
        bus, sql, at, folder=folder, projections=projections, lake=lake, progress=progress
    ) as (path, sequence):
        asking = partial(query_file, timeout_seconds=timeout_seconds, max_rows=max_rows)
        answer = await anyio.to_thread.run_sync(asking, path, sql)
        return Answer(answer.table, sequence)


@asynccontextmanager
async def file_as_of(
    bus: Bus,
    sql: str,
    at: int | datetime,
    *,
    folder: Path | str,
    projections: Sequence[Projection] = SHIPPED,
    lake: str = "",
    progress: Progress | None = None,
) -> AsyncIterator[tuple[Path, int]]:
    """A file that has what a query reads as of a moment, and its sequence; to be read, and as long
    as the context lasts. For answers that memory need not hold; else as `as_of`, and raises as that.
    """
    moment = await find(bus, at, lake)
    wanted = reads(sql, projections)
    files = Files(Path(folder), moment, wanted)
    async with scratch(files.folder) as own:
        path = own / "log.duckdb"
        if not await anyio.to_thread.run_sync(files.ready, path):
            await anyio.to_thread.run_sync(_check, sql, projections)
            await _make(bus, path, files, lake, progress)
        yield path, moment.sequence


def reads(sql: str, projections: Sequence[Projection]) -> list[Projection]:
    """The projections whose tables a query may read.

    Every word counts that is the name of a table: one too many costs time, one too few a wrong
    answer. A query that names no table, or may find its tables otherwise, gets all.
    """
    words = set(re.findall(r"[a-z0-9_]+", sql.lower()))
    if hot.VIEW in words:
        words.add(hot.TABLE)
    found = [each for each in projections if not words.isdisjoint(each.tables)]
    if not found or not words.isdisjoint(_DYNAMIC):
        return list(projections)
    return found


def _check(sql: str, projections: Sequence[Projection]) -> None:
    """Raise QueryError for what could not be answered from any tables: these are empty."""
    path = Path(":memory:")
    store = Store(path, connect(path, ()))
    try:
        install(store, projections)
        _one_view(store, projections)
        reader = store.reader()
        try:
            with select(reader, sql, timeout_seconds=TIMEOUT_SECONDS, max_rows=MAX_ROWS):
                pass
        finally:
            reader.close()
    finally:
        store.close()


def _one_view(store: Store, projections: Sequence[Projection]) -> None:
    """All events are in the table here, also those that the projector has in the lake alone."""
    if any(hot.TABLE in each.tables for each in projections):
        store.execute(
            f"create or replace view {hot.VIEW} as select {', '.join(COLUMNS)} from {hot.TABLE}"
        )


async def _make(bus: Bus, path: Path, files: Files, lake: str, progress: Progress | None) -> None:
    """Build the file of the moment, and put it among those that are kept."""
    await anyio.to_thread.run_sync(files.begin, path)
    store = await anyio.to_thread.run_sync(Store.open, path)
    try:
        end = files.moment.sequence
        await fold_to(bus, store, files.wanted, end=end, lake=lake, progress=progress)
        await anyio.to_thread.run_sync(_one_view, store, files.wanted)
        await anyio.to_thread.run_sync(store.flush)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(store.close)
    await anyio.to_thread.run_sync(files.keep, path)
