"""The DuckDB file's `events` as the hot end of the lake, and the view `all_events` over both.

The watermark is the sequence up to which the view takes the lake's rows, and behind which those of
`events`. It moves in the transaction that removes rows from `events`, so that no crash doubles or
loses one in the view.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from stratum_bus.errors import LakeError
from stratum_projections.batch import COLUMNS
from stratum_projections.lake.segment import Folder, Listing, Segment
from stratum_projections.projection import quoted
from stratum_projections.store import Store

TABLE = "events"
VIEW = "all_events"
WATERMARK = "lake"
"""The table that holds the watermark, a row a stream."""

_COLUMNS = ", ".join(COLUMNS)
_FROM_LAKE = ", ".join(f"{n}::json as {n}" if kind == "json" else n for n, kind in COLUMNS.items())


class Hot:
    """Keeps the view and the watermark. All methods block, and raise ProjectorError `file`."""

    def __init__(self, store: Store, folder: Folder, keep_days: int | None) -> None:
        self._store = store
        self._folder = folder
        self._keep_days = keep_days
        self._shown: tuple[int, list[Path]] | None = None

    def refresh(self) -> int:
        """Let the view show the lake as it is now, and remove rows of `events` that are too old.

        Returns how many. Raises LakeError `damaged`, and removes nothing more, where the lake lacks
        one of them.
        """
        if TABLE not in self._tables():
            return 0
        listing = self._folder.listing()
        self._show(self._watermark(), listing)
        removed = 0
        for segment in due(listing, self._watermark(), self._keep_days):
            with self._store.transaction():
                removed += self._remove(segment)
                self._store.execute(
                    f"insert or replace into {WATERMARK} values (?, ?, ?)",
                    [self._folder.stream, segment.last, self._home()],
                )
                self._define(segment.last, listing)
            self._shown = None
        self._show(self._watermark(), listing)
        return removed

    def _tables(self) -> set[str]:
        names = self._store.execute("select table_name from duckdb_tables()")
        return {name for (name,) in names}

    def _watermark(self) -> int:
        self._store.execute(
            f"create table if not exists {WATERMARK}"
            "(stream varchar primary key, watermark bigint, home varchar)"
        )
        rows = self._store.execute(
            f"select watermark from {WATERMARK} where stream = ? and home = ?",
            [self._folder.stream, self._home()],
        )
        return int(rows[0][0]) if rows else 0

    def _home(self) -> str:
        """The schema of the table. One that was built anew has all rows again."""
        [(home,)] = self._store.execute("select home from projections where name = ?", [TABLE])
        return str(home)

    def _show(self, watermark: int, listing: Listing) -> None:
        shown = (watermark, [each.path for each in below(listing, watermark)])
        if shown != self._shown:
            with self._store.transaction():
                self._define(watermark, listing)
            self._shown = shown

    def _define(self, watermark: int, listing: Listing) -> None:
        cold = ""
        if segments := below(listing, watermark):
            cold = f""" union all select {_FROM_LAKE} from {files(segments)}
                where seq <= {watermark} and unreadable is null"""
        self._store.execute(
            f"""create or replace view {VIEW} as
                select {_COLUMNS} from {TABLE} where seq > {watermark}{cold}"""
        )

    def _remove(self, segment: Segment) -> int:
        rows = f"seq <= {segment.last} and stream = {quoted(self._folder.stream)}"
        [(lacking,)] = self._store.execute(
            f"""select count(*) from {TABLE} where {rows} and seq >= {segment.first}
                and (seq, id) not in (select (seq, id) from {files([segment])}
                    where unreadable is null)"""
        )
        if lacking:
            raise LakeError(
                "damaged",
                f"{segment.path} lacks {lacking} of the events from {segment.first} to "
                f"{segment.last}: `stratum lake verify` says more; they stay in the DuckDB file",
            )
        [(removed,)] = self._store.execute(f"delete from {self._home()}.{TABLE} where {rows}")
        return int(removed)


def files(segments: list[Segment]) -> str:
    """The segments as a relation of SQL. Only these: the folder may hold what they replaced."""
    paths = ", ".join(quoted(str(segment.path)) for segment in segments)
    return f"read_parquet([{paths}], hive_partitioning = false, union_by_name = true)"


def below(listing: Listing, watermark: int) -> list[Segment]:
    """The segments that hold something up to the watermark."""
    return [segment for segment in listing.segments if segment.first <= watermark]


def due(listing: Listing, watermark: int, keep_days: int | None) -> list[Segment]:
    """The segments behind the watermark that are old enough, in order, without a hole before them.

    Days count back from the day of the newest segment: the clock has no say.
    """
    if keep_days is None or not listing.segments:
        return []
    found: list[Segment] = []
    oldest_kept = max(segment.day for segment in listing.segments) - timedelta(days=keep_days)
    at = listing.segments[0].first
    for segment in listing.segments:
        if segment.first != at or segment.day >= oldest_kept:
            break
        at = segment.last + 1
        if segment.last > watermark:
            found.append(segment)
    return found
