"""What the file of a projector holds, for whoever finds it closed: a copy, or one of a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import Struct

from stratum_projections.checkpoint import STREAM
from stratum_projections.lake import hot
from stratum_projections.projection import quoted
from stratum_projections.query import MAX_ROWS, TIMEOUT_SECONDS
from stratum_projections.select import Reader, open_read_only, renew, select


class Standing(Struct, frozen=True):
    """`versions` and `positions` are by projection, the core among them, and by `Projection.beside`
    what is being built.

    `created` is when the log was that it was made from, "" where it has read nothing. `together` are
    those that move on in one transaction. Of `events` up to `watermark` only the lake has the rows.
    """

    created: str
    versions: dict[str, int]
    positions: dict[str, int]
    together: set[str]
    watermark: int


def standing(path: Path) -> Standing:
    """Blocking. Raises QueryError, also for a file that no projector made."""
    stream = quoted(STREAM)
    with open_read_only(path) as reader:
        rows = _rows(
            reader,
            f"""select name, version, sequence, created, active from projections
                left join checkpoint on projection = name and stream = {stream}""",
        )
        mark = f"table_name = {quoted(hot.WATERMARK)}"
        watermark = 0
        if _rows(reader, f"select 1 as there from duckdb_tables() where {mark}"):
            sql = f"""select watermark from {hot.WATERMARK} join projections using (home)
                where stream = {stream} and name = {quoted(hot.TABLE)}"""
            watermark = sum(int(row["watermark"]) for row in _rows(reader, sql))
    return Standing(
        created=next((row["created"] for row in rows if row["created"]), ""),
        versions={row["name"]: row["version"] for row in rows},
        positions={row["name"]: row["sequence"] for row in rows if row["sequence"] is not None},
        together={row["name"] for row in rows if row["active"]},
        watermark=watermark,
    )


def _rows(reader: Reader, sql: str) -> list[dict[str, Any]]:
    with select(reader, sql, timeout_seconds=TIMEOUT_SECONDS, max_rows=MAX_ROWS) as found:
        _, schema, batches = found
        rows: list[dict[str, Any]] = pa.Table.from_batches(batches, schema).to_pylist()
    renew(reader)
    return rows
