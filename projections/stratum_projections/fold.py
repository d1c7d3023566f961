"""One batch of messages into all tables: rows, quarantine and positions in one transaction.

An event that makes a statement fail is found by halving the batch, and is left out of the
projection that failed at it, and only of that one; the quarantine says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus.errors import ProjectorError
from stratum_bus.message import Message, utc
from stratum_projections import ids
from stratum_projections.batch import COLUMNS, Decoded, Unreadable, decode, of_messages, with_data
from stratum_projections.checkpoint import CORE, Checkpoint
from stratum_projections.projection import Projection
from stratum_projections.store import StatementFailed, Store

log = logging.getLogger("stratum.projector")

_REFUSED = "data"
_FAILED = "statement"
"""Reasons of the quarantine, beside those of `event.REASONS`: a statement failed at the event."""

_OFFERED = [*COLUMNS, "cause"]
_QUARANTINE = {
    "stream": pa.string(),
    "seq": pa.int64(),
    "subject": pa.string(),
    "projection": pa.string(),
    "reason": pa.string(),
    "detail": pa.string(),
    "payload": pa.binary(),
    "time": pa.timestamp("us", "UTC"),
}


class _Failed(Exception):
    """A projection's statement failed."""

    def __init__(self, projection: str, cause: StatementFailed) -> None:
        self.projection = projection
        self.memory = cause.memory
        super().__init__(str(cause))


class Applied(msgspec.Struct):
    """What became of a batch."""

    events: int = 0
    quarantined: int = 0


class Work(msgspec.Struct):
    """What a projection has done since its Fold was made. `seconds` are those of its statements."""

    events: int = 0
    batches: int = 0
    seconds: float = 0.0


class Fold:
    """Applies batches of one stream, in order. Blocking: for one thread at a time.

    Raises ProjectorError at once where the SQL of a projection does not fit its tables.
    """

    def __init__(
        self, store: Store, checkpoint: Checkpoint, projections: Sequence[Projection]
    ) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self.projections = {projection.name: projection for projection in projections}
        self.work = {projection.name: Work() for projection in projections}
        self._check()

    def take_in(self, projection: Projection, work: Work) -> None:
        """Fold a projection too, from the next batch on; it is where the others are."""
        self.projections[projection.name] = projection
        self.work[projection.name] = work

    def leave_out(self, name: str) -> None:
        """Fold a projection no more."""
        self.projections.pop(name, None)

    def apply(self, messages: Sequence[Message]) -> Applied:
        """Fold messages of the stream, all behind the position, in order of their sequence.

        Raises ProjectorError: `fenced`, `file`.
        """
        return self.fold(decode(of_messages(messages)))

    def fold(self, batch: Decoded) -> Applied:
        """The same for a decoded batch, of one message at least."""
        applied = Applied(events=len(batch.stored))
        try:
            rows = ids.look(self._store, batch.rows)
            self._divide(batch, rows, batch.first, batch.last, applied)
        except StatementFailed as error:
            raise ProjectorError("file", f"cannot write {self._store.path}: {error}") from error
        return applied

    def _divide(
        self, batch: Decoded, rows: pa.Table, first: int, last: int, applied: Applied
    ) -> None:
        left_out: dict[str, str] = {}
        while True:
            try:
                applied.quarantined += self._commit(batch, rows, first, last, left_out)
                return
            except _Failed as failure:
                if rows.num_rows > 1:
                    break
                if failure.memory:
                    raise StatementFailed(str(failure)) from failure
                log.warning("%d is kept from %s: %s", last, failure.projection, failure)
                left_out[failure.projection] = str(failure)
        half = rows.num_rows // 2
        middle: int = rows["seq"][half].as_py()
        self._divide(batch, rows.slice(0, half), first, middle - 1, applied)
        self._divide(batch, rows.slice(half), middle, last, applied)

    def _commit(
        self, batch: Decoded, rows: pa.Table, first: int, last: int, left_out: dict[str, str]
    ) -> int:
        """One transaction of the events from `first` to `last`; returns how many it quarantined."""
        positions = self._checkpoint.positions
        behind = [p for p in self.projections.values() if positions[p.name] < last]
        names = [p.name for p in behind]
        types, roles = _texts(rows["type"]), _texts(rows["role"].cast(pa.string()))
        parked: list[tuple[str | None, Unreadable]] = []
        with self._store.transaction():
            for projection in behind:
                name, after = projection.name, positions[projection.name]
                seen = _behind(rows, after)
                if name in left_out:
                    at = batch.message(rows["seq"][0].as_py())
                    parked.append((name, Unreadable(at, _FAILED, left_out[name])))
                elif projection.concerns(types, roles):
                    parked.extend((name, row) for row in self._project(batch, projection, seen))
            if CORE in self._checkpoint.active and positions[CORE] < last:
                names.append(CORE)
                after = max(first - 1, positions[CORE])
                ids.keep(self._store, _behind(rows, after))
                found = (row for row in batch.unreadable if after < row.message.sequence <= last)
                parked.extend((None, row) for row in found)
            self._quarantine(parked)
            self._checkpoint.advance(self._store, names, last)
        self._checkpoint.moved(names, last)
        return len(parked)

    def _project(self, batch: Decoded, projection: Projection, rows: pa.Table) -> list[Unreadable]:
        """Run the statements of a projection; returns what it refuses."""
        work, start = self.work[projection.name], perf_counter()
        rows = projection.reads(rows)
        if not rows.num_rows:
            return []
        work.events += rows.num_rows
        work.batches += 1
        types = _texts(rows["type"])
        try:
            with self._store.within(self._checkpoint.homes[projection.name]):
                if batch.blobs:
                    ours: set[Any] = set(projection.whole(rows)["seq"].to_pylist())
                    rows = with_data(rows, {at: batch.blobs[at] for at in ours & set(batch.blobs)})
                count, refused = self._offer(projection, rows)
                for step in projection.steps() if count else ():
                    if step.types and types.isdisjoint(step.types):
                        continue
                    if projection.only_adds(step):
                        self._store.repeat_planned(step.sql, reads="batch")
                    else:
                        self._store.repeat(step.sql)
        except StatementFailed as error:
            raise _Failed(projection.name, error) from error
        finally:
            work.seconds += perf_counter() - start
        return [Unreadable(batch.message(at), _REFUSED, detail) for at, detail in refused]

    def _offer(self, projection: Projection, rows: pa.Table) -> tuple[int, list[tuple[int, str]]]:
        """Make `batch` what the projection is to see; returns how many rows, and what it refuses."""
        rows = rows.select(_OFFERED)
        refused: list[tuple[int, str]] = []
        if projection.prepare is not None:
            try:
                prepared = projection.prepare(rows)
                taken = pc.is_null(prepared["refused"])
                rows = prepared.filter(taken).drop_columns("refused")
                left = prepared.filter(pc.invert(taken))
                columns = (left[name].to_pylist() for name in ("seq", "refused"))
                refused = list(zip(*columns, strict=True))
            except Exception as error:  # its own code, with data that it did not expect
                raise StatementFailed(f"prepare: {type(error).__name__}: {error}") from error
        self._store.register("batch", rows)
        return rows.num_rows, refused

    def _quarantine(self, parked: list[tuple[str | None, Unreadable]]) -> None:
        if not parked:
            return
        rows = [
            (
                why.message.stream,
                why.message.sequence,
                why.message.subject,
                projection,
                why.reason,
                why.detail[:1000],
                why.message.payload,
                utc(why.message.time_ns),
            )
            for projection, why in parked
        ]
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(values, kind)
            for values, kind in zip(columns, _QUARANTINE.values(), strict=True)
        ]
        self._store.register("parked", pa.table(arrays, names=list(_QUARANTINE)))
        self._store.execute("insert into main.quarantine by name select * from parked")

    def _check(self) -> None:
        """Bind every statement once, to an empty batch."""
        rows = ids.look(self._store, decode(of_messages([])).rows)
        for projection in self.projections.values():
            try:
                with self._store.within(self._checkpoint.homes[projection.name]):
                    self._offer(projection, rows)
                    for step in projection.steps():
                        self._store.check(step.sql)
            except (ProjectorError, StatementFailed) as error:
                raise ProjectorError(
                    "projection", f"projection {projection.name}: {error}"
                ) from error


def _behind(rows: pa.Table, sequence: int) -> pa.Table:
    """Those of the rows, which are in order, that stand behind a sequence."""
    seq = rows["seq"]
    if not rows.num_rows or seq[0].as_py() > sequence:
        return rows
    return rows.filter(pc.greater(seq, pa.scalar(sequence)))


def _texts(column: Any) -> set[str]:
    """The values of a column; NULL is none."""
    return set(column.unique().drop_null().to_pylist())
