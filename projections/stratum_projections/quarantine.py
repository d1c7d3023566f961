"""What projections could not take in: the messages, why, and trying them again.

A message in the middle of the log cannot be put into tables that depend on its order. Trying it
again is therefore building anew, beside the live tables, the projections that refused it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_projections.projection import quoted
from stratum_projections.query import ask, query_file

LIMIT = 100
_COLUMNS = "seq as sequence, stream, subject, projection, reason, detail, payload, time"


class Parked(Struct, frozen=True):
    """A message that was kept from a projection, or, with None, is no event and kept from all.

    `reason` is one of `event.REASONS`, `data` (the projection refused its data) or `statement` (its
    SQL failed at it); `detail` says what was found. `time` is when the message was stored.
    """

    sequence: int
    stream: str
    subject: str
    projection: str | None
    reason: str
    detail: str
    payload: bytes
    time: datetime

    @property
    def text(self) -> str | None:
        """The payload where it is text, else None."""
        try:
            return self.payload.decode()
        except UnicodeDecodeError:
            return None


async def parked(
    bus: Bus,
    *,
    projector: str = "main",
    sequence: int | None = None,
    projections: Sequence[str] = (),
    limit: int = LIMIT,
) -> list[Parked]:
    """The rows of the quarantine in the order of the log: all, of one message, of some projections.

    Raises as `ask` does.
    """
    sql = _select(sequence, projections, limit)
    return _rows((await ask(bus, sql, projector=projector, max_rows=limit)).table)


def parked_of_file(
    path: Path | str,
    *,
    sequence: int | None = None,
    projections: Sequence[str] = (),
    limit: int = LIMIT,
) -> list[Parked]:
    """As `parked`, from the file of a projector that does not run. Blocking. Raises QueryError."""
    return _rows(query_file(path, _select(sequence, projections, limit), max_rows=limit).table)


def _select(sequence: int | None, projections: Sequence[str], limit: int) -> str:
    conditions = ["true"]
    if sequence is not None:
        conditions.append(f"seq = {int(sequence)}")
    if projections:
        conditions.append(f"projection in ({', '.join(map(quoted, projections))})")
    return (
        f"select {_COLUMNS} from quarantine where {' and '.join(conditions)} "
        f"order by seq, projection nulls first limit {int(limit)}"
    )


def _rows(table: pa.Table) -> list[Parked]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return [Parked(**row) for row in rows]
