"""One batch of messages into all tables: rows, quarantine and positions in one transaction.

An event that makes a statement fail is found by halving the batch, and is left out of the
projection that failed at it, and only of that one; the quarantine says so.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from stratum_bus.errors import ProjectorError
from stratum_bus.message import Message, utc
from stratum_projections.batch import COLUMNS, DECODE, Unreadable, complete, incoming
from stratum_projections.checkpoint import CORE, Checkpoint
from stratum_projections.projection import Projection
from stratum_projections.store import StatementFailed, Store

log = logging.getLogger("stratum.projector")

_REFUSED = "data"
_FAILED = "statement"
"""Reasons of the quarantine, beside those of `event.REASONS`: a statement failed at the event."""

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


class Fold:
    """Applies batches of one stream, in order. Blocking: for one thread at a time.

    Raises ProjectorError at once where the SQL of a projection does not fit its tables.
    """

    def __init__(
        self, store: Store, checkpoint: Checkpoint, projections: Sequence[Projection]
    ) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self._projections = projections
        self._unreadable: list[Unreadable] = []
        self._present: tuple[set[str], set[str]] = set(), set()
        self._check()

    def apply(self, messages: Sequence[Message]) -> Applied:
        """Fold messages of the stream, all behind the position, in order of their sequence.

        Raises ProjectorError: `fenced`, `file`.
        """
        applied = Applied(events=len(messages))
        try:
            self._decode(messages)
            self._divide(messages, applied)
        except StatementFailed as error:
            raise ProjectorError("file", f"cannot write {self._store.path}: {error}") from error
        return applied

    def _decode(self, messages: Sequence[Message]) -> None:
        store = self._store
        store.register("incoming", incoming(messages))
        try:
            store.execute(DECODE)
        except StatementFailed as error:
            log.warning("a batch was not decoded in SQL, but one by one: %s", error)
            store.register("incoming", incoming(messages, structured=False))
            store.execute(DECODE)
        [(types, roles, rows)] = store.execute(
            """select list(distinct type) filter (recognised), list(distinct role),
                list(row order by row) filter (not recognised) from decoded"""
        )
        self._present, self._unreadable = (set(types or ()), set(roles or ())), []
        if rows:
            completed, self._unreadable = complete([messages[row] for row in rows])
            self._present[0].update(type or "" for type in completed["type"].to_pylist())
            store.register("completed", completed)
            store.execute("delete from decoded where not recognised")
            store.execute("insert into decoded by name select *, true as recognised from completed")

    def _divide(self, messages: Sequence[Message], applied: Applied) -> None:
        left_out: dict[str, str] = {}
        while True:
            try:
                applied.quarantined += self._commit(messages, left_out)
                return
            except _Failed as failure:
                if len(messages) > 1:
                    break
                if failure.memory:
                    raise StatementFailed(str(failure)) from failure
                log.warning(
                    "%s %d is kept from %s: %s",
                    messages[0].stream, messages[0].sequence, failure.projection, failure,
                )  # fmt: skip
                left_out[failure.projection] = str(failure)
        half = len(messages) // 2
        self._divide(messages[:half], applied)
        self._divide(messages[half:], applied)

    def _commit(self, messages: Sequence[Message], left_out: dict[str, str]) -> int:
        """One transaction; returns how many rows it quarantined."""
        first, last = messages[0].sequence, messages[-1].sequence
        positions = self._checkpoint.positions
        behind = [p for p in self._projections if positions[p.name] < last]
        names = [p.name for p in behind] + ([CORE] if positions[CORE] < last else [])
        parked: list[tuple[str | None, Unreadable]] = []
        with self._store.transaction():
            for projection in behind:
                name = projection.name
                if name in left_out:
                    parked.append((name, Unreadable(first, _FAILED, left_out[name])))
                else:
                    found = self._project(projection, max(first, positions[name] + 1), last)
                    parked.extend((name, row) for row in found)
            if CORE in names:
                after = max(first - 1, positions[CORE])
                rows = (row for row in self._unreadable if after < row.sequence <= last)
                parked.extend((None, row) for row in rows)
            self._quarantine(messages, parked)
            self._checkpoint.advance(names, last)
        self._checkpoint.moved(names, last)
        return len(parked)

    def _project(self, projection: Projection, first: int, last: int) -> list[Unreadable]:
        """Run the statements of a projection; returns what it refuses."""
        types, roles = self._present
        if not projection.reads(types, roles):
            return []
        try:
            refused = self._offer(projection, first, last)
            for step in projection.steps():
                if not step.types or not types.isdisjoint(step.types):
                    self._store.execute(step.sql)
        except StatementFailed as error:
            raise _Failed(projection.name, error) from error
        return refused

    def _offer(self, projection: Projection, first: int, last: int) -> list[Unreadable]:
        """Make `batch` what the projection is to see; returns what it refuses."""
        self._store.execute(
            f"create or replace temp view batch as select {', '.join(COLUMNS)} from decoded "
            f"where seq between {first} and {last} and {projection.condition()}"
        )
        if projection.prepare is None:
            return []
        prepared = projection.prepare(self._store.arrow("select * from batch order by seq"))
        self._store.register("prepared", prepared)
        self._store.execute(
            "create or replace temp view batch as "
            "select * exclude (refused) from prepared where refused is null"
        )
        refused = self._store.execute("select seq, refused from prepared where refused is not null")
        return [Unreadable(sequence, _REFUSED, detail) for sequence, detail in refused]

    def _quarantine(
        self, messages: Sequence[Message], parked: list[tuple[str | None, Unreadable]]
    ) -> None:
        if not parked:
            return
        at = {message.sequence: message for message in messages}
        rows = [
            (
                at[why.sequence].stream,
                why.sequence,
                at[why.sequence].subject,
                projection,
                why.reason,
                why.detail[:1000],
                at[why.sequence].payload,
                utc(at[why.sequence].time_ns),
            )
            for projection, why in parked
        ]
        columns = zip(*rows, strict=True)
        arrays = [
            pa.array(values, kind)
            for values, kind in zip(columns, _QUARANTINE.values(), strict=True)
        ]
        self._store.register("parked", pa.table(arrays, names=list(_QUARANTINE)))
        self._store.execute("insert into quarantine by name select * from parked")

    def _check(self) -> None:
        """Bind every statement once, to an empty batch."""
        self._decode([])
        for projection in self._projections:
            try:
                self._offer(projection, 0, 0)
                for step in projection.steps():
                    self._store.execute(f"explain {step.sql}")
            except (ProjectorError, StatementFailed) as error:
                raise ProjectorError(
                    "projection", f"projection {projection.name}: {error}"
                ) from error
