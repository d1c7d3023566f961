"""The lake's rows once more, as a Delta table for Spark, Trino, ClickHouse and others.

Only with the extra `stratum-bus[delta]`. The table follows the lake: segments are appended in
order, and each commit carries the last sequence in it as the version of the application
`stratum:<stream>`. What was committed is known from the table itself, so nothing is in it twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus.errors import LakeError
from stratum_projections.lake.rows import SCHEMA, conform
from stratum_projections.lake.segment import Folder, Segment, damaged, facts, facts_of, opened

CHECKPOINT_COMMITS = 100
"""How often the table's log is summed up, so that opening it stays cheap."""

DELTA_SCHEMA = SCHEMA.append(pa.field("date", pa.date32()))
"""A segment's columns and the day of storage. `seq` is signed: Delta has no unsigned integers."""

_PARTITIONS = ["stream", "date"]
_ROWS_AT_ONCE = 10_000
_HISTORY = 200
_RETRIES = 3


class Delta:
    """The Delta table at `path`, which need not exist yet, of the lake in `folder`.

    All methods block, and raise LakeError: `extra` where deltalake is not installed, `folder`,
    `stream` where the table holds another stream of that name, `missing` where the lake lacks what
    comes next, `locked` where another writer committed at the same time.
    """

    def __init__(self, path: Path | str, folder: Folder) -> None:
        self.path = Path(path).absolute()
        self._folder = folder
        self._application = f"stratum:{folder.stream}"
        self._library = _library()
        self._table: Any = None
        self._checked = False

    @property
    def position(self) -> int:
        """The last sequence in the table, 0 for none."""
        table = self._open()
        return 0 if table is None else table.transaction_version(self._application) or 0

    def follow(self) -> int:
        """Append what the lake holds and the table does not; returns how many commits it took."""
        listing = self._folder.listing()
        commits = 0
        for segment in listing.segments:
            if segment.last > (done := self.position):
                if done and segment.first > done + 1:
                    raise self._missing(done, segment)
                self._check(segment)
                self._append(segment, done)
                commits += 1
        if self.position > listing.last:
            what = f"it goes on to {self.position}, the lake to {listing.last}"
            raise self._foreign(what)
        return commits

    def compact(self) -> None:
        """Put the table's small files together, and remove those that nothing needs any more.

        Readers of older versions have a week, as Delta's own default is.
        """
        if (table := self._open()) is not None:
            with self._translated():
                table.optimize.compact(commit_properties=self._commit(None))
                table.vacuum(dry_run=False)
                table.create_checkpoint()

    def _open(self) -> Any:
        """The table as it is now, None where there is none. Kept: opening it anew takes longer
        with each commit."""
        with self._translated():
            if self._table is not None:
                self._table.update_incremental()
            elif self._library.DeltaTable.is_deltatable(str(self.path)):
                self._table = self._library.DeltaTable(str(self.path))
        return self._table

    def _append(self, segment: Segment, done: int) -> None:
        with opened(segment.path) as file, self._translated():
            created = facts_of(segment, self._folder.stream, file.metadata).created
            rows = _Rows(segment, file, done)
            try:
                self._library.write_deltalake(
                    self.path if self._table is None else self._table,
                    pa.RecordBatchReader.from_batches(DELTA_SCHEMA, rows),
                    mode="append",
                    schema_mode="merge",
                    partition_by=_PARTITIONS,
                    commit_properties=self._commit(segment.last, created),
                )
            except Exception as error:
                if rows.failed:  # the library would make its own error of it
                    raise rows.failed from error
                raise
            if (table := self._open()) is not None and table.version() % CHECKPOINT_COMMITS == 99:
                table.create_checkpoint()

    def _commit(self, last: int | None, created: str = "") -> Any:
        transactions = [] if last is None else [self._library.Transaction(self._application, last)]
        return self._library.CommitProperties(
            custom_metadata={self._application: created} if created else None,
            app_transactions=transactions,
            max_commit_retries=_RETRIES,
        )

    def _check(self, segment: Segment) -> None:
        """Once: the table was made from this lake's stream."""
        if self._checked or (table := self._open()) is None:
            return
        created = facts(segment, self._folder.stream).created
        with self._translated():
            said = (entry.get(self._application) for entry in table.history(_HISTORY))
            known = next((each for each in said if each), created)
        if known != created:
            raise self._foreign(f"its stream was created at {known}")
        self._checked = True

    def _foreign(self, what: str) -> LakeError:
        return LakeError(
            "stream",
            f"the Delta table in {self.path} is not of this lake ({what}): move it away, or name "
            "another folder as lake.delta",
        )

    def _missing(self, done: int, segment: Segment) -> LakeError:
        return LakeError(
            "missing",
            f"the Delta table in {self.path} has {self._folder.stream} up to {done}, and the lake "
            f"goes on at {segment.first}: `stratum lake export` adds what the stream still holds",
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._library.exceptions.CommitFailedError as error:
            text = f"another writer committed to the Delta table in {self.path} at the same time"
            raise LakeError("locked", text) from error
        except (self._library.exceptions.DeltaError, OSError, ValueError) as error:
            text = " ".join(str(error).split())[:300]
            raise LakeError("folder", f"the Delta table in {self.path}: {text}") from error


class _Rows:
    """The rows of a segment behind a sequence, with their day. `failed` says why they ended."""

    def __init__(self, segment: Segment, file: Any, done: int) -> None:
        self._segment = segment
        self._file = file
        self._done = done
        self.failed: LakeError | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._file.iter_batches(_ROWS_AT_ONCE):
                table = conform(pa.Table.from_batches([batch]))
                if self._segment.first <= self._done:
                    table = table.filter(pc.field("seq") > self._done)
                day = pa.array([self._segment.day] * table.num_rows, pa.date32())
                yield from table.append_column(DELTA_SCHEMA.field("date"), day).to_batches()
        except (pa.ArrowException, OSError) as error:
            self.failed = damaged(self._segment.path, str(error))
            raise


def _library() -> Any:
    try:
        import deltalake
        import deltalake.exceptions
    except ImportError as error:
        raise LakeError(
            "extra", "lake.delta needs deltalake: pip install 'stratum-bus[delta]'"
        ) from error
    return deltalake
