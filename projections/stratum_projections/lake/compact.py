"""Few large segments instead of many small ones, day by day.

The new segment gets a name that covers those it is made of. From then on readers leave these out;
they are removed when whoever listed them before has had time to read them. Nothing is lost or
doubled wherever it stops.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pyarrow as pa
from msgspec import Struct

from stratum_projections.lake.rows import conform
from stratum_projections.lake.segment import (
    Folder,
    Listing,
    Segment,
    damaged,
    facts_of,
    opened,
    usable,
)
from stratum_projections.lake.write import ROW_GROUP, Draft, remove

GRACE_SECONDS = 60.0
"""How long a segment that was replaced stays, for who is just reading it."""

TARGET_EVENTS = 1_000_000
TARGET_BYTES = 512 << 20
FEWEST = 2
FEWEST_OF_LATEST_DAY = 60
"""How many segments are worth a compaction. On the day that still grows, an hour's are."""

_KIND = "compact"
_ROWS_AT_ONCE = 10_000
_GROUP_BYTES = 48 << 20


class Compacted(Struct, frozen=True):
    """What became of some segments: the one they were put into, or would be."""

    parts: list[Segment]
    whole: Segment


def compactable(
    folder: Folder, listing: Listing, *, of_latest_day: int = FEWEST_OF_LATEST_DAY
) -> list[list[Segment]]:
    """The groups of neighbours that are worth a compaction, each of one day."""
    latest = max((segment.day for segment in listing.segments), default=None)
    groups: list[list[Segment]] = []
    events = size = 0
    for segment in listing.segments:
        with usable(folder.root, "read"):
            bytes_ = segment.path.stat().st_size
        rows = segment.last - segment.first + 1
        group = groups[-1] if groups else []
        if (
            not group
            or group[-1].day != segment.day
            or group[-1].last + 1 != segment.first
            or events + rows > TARGET_EVENTS
            or size + bytes_ > TARGET_BYTES
        ):
            groups.append([])
            events = size = 0
        groups[-1].append(segment)
        events, size = events + rows, size + bytes_
    fewest = {latest: of_latest_day}
    return [group for group in groups if len(group) >= fewest.get(group[0].day, FEWEST)]


def compact(
    folder: Folder,
    *,
    of_latest_day: int = FEWEST_OF_LATEST_DAY,
    grace_seconds: float = GRACE_SECONDS,
) -> list[Compacted]:
    """Compact what is worth it, and remove what has been replaced long enough. Blocking.

    Raises LakeError: `locked` where another process compacts it, `damaged`, `folder`.
    """
    with folder.locked(_KIND):
        remove(folder.strays(_KIND), folder)
        done = [
            Compacted(group, _merge(folder, group))
            for group in compactable(folder, folder.listing(), of_latest_day=of_latest_day)
        ]
        tidy(folder, grace_seconds)
    return done


def tidy(folder: Folder, grace_seconds: float) -> None:
    """Remove the segments that were replaced more than `grace_seconds` ago.

    Raises LakeError `damaged`, and removes nothing, where what covers them is not what they held:
    a name alone is no reason to remove anything.
    """
    listing = folder.listing()
    for whole in listing.segments:
        parts = [each for each in listing.replaced if whole.covers(each)]
        if not parts:
            continue
        with usable(folder.root, "read"):
            age = time.time() - whole.path.stat().st_mtime
        # A clock that was set back makes nothing younger than new.
        if not 0 <= age < grace_seconds:
            if _rows(whole, folder.stream) < sum(_rows(part, folder.stream) for part in parts):
                raise damaged(whole.path, "it has fewer rows than those it stands for")
            remove([part.path for part in parts], folder)


def _rows(segment: Segment, stream: str) -> int:
    with opened(segment.path) as file:
        facts_of(segment, stream, file.metadata)
        return file.metadata.num_rows


def _merge(folder: Folder, parts: Sequence[Segment]) -> Segment:
    draft = Draft(folder, _KIND, parts[0].day, parts[0].first)
    try:
        held = _Rows(draft)
        created = [_copy(part, folder.stream, held) for part in parts]
        held.flush()
        if len(set(created)) > 1:
            raise damaged(parts[-1].path, "it is of another stream than those before it")
        return draft.publish(parts[-1].last, created[0])
    finally:
        draft.discard()


class _Rows:
    """Collects rows for a row group: many small ones are slow to read."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._tables: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        rows = sum(each.num_rows for each in self._tables)
        if rows >= ROW_GROUP or sum(each.nbytes for each in self._tables) >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._tables:
            self._draft.write(pa.concat_tables(self._tables))
            self._tables = []


def _copy(part: Segment, stream: str, into: _Rows) -> str:
    """Copy the rows of a segment, every page checked; returns when its stream was created."""
    with opened(part.path) as file:
        created = facts_of(part, stream, file.metadata).created
        copied = 0
        try:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                into.add(conform(pa.Table.from_batches([batch])))
                copied += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise damaged(part.path, str(error)) from error
        if copied != file.metadata.num_rows:
            raise damaged(part.path, f"it has not the {file.metadata.num_rows} rows it says")
    return created
