"""What projections could not take in: the messages, why, and trying them again.

A message in the middle of the log cannot be put into tables that depend on its order. Trying it
again is therefore building anew, beside the live tables, the projections that refused it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import QueryError
from stratum_projections import manage
from stratum_projections.projection import quoted
from stratum_projections.query import ask, query_file

LIMIT = 100
MOST = 100_000
"""How many rows `retry` answers for."""

_PLACE = "seq as sequence, stream, subject, projection, reason, detail"
_LOOK_SECONDS = 0.2
_NO_EVENT = "it is no event for any projection ({}): its bytes stay what they are"


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


class Retried(Struct, frozen=True):
    """What became of a message that was parked: `released`, or why it still is. Without payload."""

    parked: Parked
    released: bool
    detail: str


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
    sql = _select(sequence, projections, limit, f"{_PLACE}, payload, time")
    return _rows((await ask(bus, sql, projector=projector, max_rows=limit)).table)


def parked_of_file(
    path: Path | str,
    *,
    sequence: int | None = None,
    projections: Sequence[str] = (),
    limit: int = LIMIT,
) -> list[Parked]:
    """As `parked`, from the file of a projector that does not run. Blocking. Raises QueryError."""
    sql = _select(sequence, projections, limit, f"{_PLACE}, payload, time")
    return _rows(query_file(path, sql, max_rows=limit).table)


async def retry(bus: Bus, names: Sequence[str] = (), projector: str = "main") -> list[Retried]:
    """Build anew the projections that refused messages (of all, or of `names`), and return when
    they are live: what became of each row.

    What is no event for any projection is not tried again, and said so where no names are given.
    Raises QueryError: `no_projector` where none runs, or no longer, `unknown`; and as `ask` does.
    """
    known = {state.name for state in await manage.states(bus, projector)}
    if unknown := [name for name in names if name not in known]:
        text = f"no projection {unknown[0]!r} here; there are {', '.join(sorted(known))}"
        raise QueryError("unknown", text)
    before = await _places(bus, names, projector)
    refusing = sorted({each.projection or "" for each in before} & known)
    if refusing:
        await manage.rebuild(bus, refusing, projector)
        await _until_built(bus, projector, refusing)
    now = {_key(each): each for each in await _places(bus, names, projector)}
    return [_retried(each, now.get(_key(each))) for each in before]


async def _places(bus: Bus, names: Sequence[str], projector: str) -> list[Parked]:
    sql = _select(None, names, MOST, f"{_PLACE}, ''::blob as payload, time")
    return _rows((await ask(bus, sql, projector=projector, max_rows=MOST)).table)


async def _until_built(bus: Bus, projector: str, names: Sequence[str]) -> None:
    while True:
        states = await manage.states(bus, projector)
        if not any(state.building for state in states if state.name in names):
            return
        await anyio.sleep(_LOOK_SECONDS)


def _key(row: Parked) -> tuple[str, int, str | None]:
    return row.stream, row.sequence, row.projection


def _retried(before: Parked, now: Parked | None) -> Retried:
    if before.projection is None:
        return Retried(before, False, _NO_EVENT.format(before.detail))
    return Retried(before, now is None, now.detail if now else "")


def _select(sequence: int | None, projections: Sequence[str], limit: int, columns: str) -> str:
    conditions = ["true"]
    if sequence is not None:
        conditions.append(f"seq = {int(sequence)}")
    if projections:
        conditions.append(f"projection in ({', '.join(map(quoted, projections))})")
    return (
        f"select {columns} from quarantine where {' and '.join(conditions)} "
        f"order by seq, projection nulls first limit {int(limit)}"
    )


def _rows(table: pa.Table) -> list[Parked]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return [Parked(**row) for row in rows]
