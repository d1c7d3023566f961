"""What the file of a projector holds, for whoever finds it closed: a copy, or one of a moment."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from stratum_projections.checkpoint import STREAM
from stratum_projections.lake import hot
from stratum_projections.projection import quoted
from stratum_projections.query import query_file


class Standing(Struct, frozen=True):
    """`versions` and `positions` are by projection, the core among them.

    `created` is when the log was that it was made from, "" where it has read nothing. Of `events` up
    to `watermark` only the lake has the rows.
    """

    created: str
    versions: dict[str, int]
    positions: dict[str, int]
    watermark: int


def standing(path: Path) -> Standing:
    """Blocking. Raises QueryError, also for a file that no projector made."""
    rows = query_file(
        path,
        f"""select name, version, sequence, created from projections
            left join checkpoint on projection = name and stream = {quoted(STREAM)}""",
    ).table.to_pylist()
    return Standing(
        created=next((row["created"] for row in rows if row["created"]), ""),
        versions={row["name"]: row["version"] for row in rows},
        positions={row["name"]: row["sequence"] for row in rows if row["sequence"] is not None},
        watermark=_watermark(path),
    )


def _watermark(path: Path) -> int:
    name, stream = quoted(hot.WATERMARK), quoted(STREAM)
    sql = f"select table_name from duckdb_tables() where table_name = {name}"
    if not query_file(path, sql).table.num_rows:
        return 0
    sql = f"select max(watermark) as w from {hot.WATERMARK} where stream = {stream}"
    return int(query_file(path, sql).table["w"][0].as_py() or 0)
