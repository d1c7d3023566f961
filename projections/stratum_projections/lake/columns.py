"""Rows of a segment as the tables of a reading in bulk."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus.bulk import SCHEMA


def columns_of(rows: pa.RecordBatch, start: int, end: int) -> pa.Table:
    """Those with a sequence from `start` to `end`, of rows in order that have the columns RAW."""
    sequences: Any = rows.column("seq")
    if sequences[0].as_py() < start or sequences[-1].as_py() > end:
        rows = rows.filter((pc.field("seq") >= start) & (pc.field("seq") <= end))
    column: Any = rows.column
    arrays: list[Any] = [
        column("seq"),
        column("subject").dictionary_encode(),
        column("stored_ns"),
        blocks(column("headers")),
        column("payload"),
    ]
    return pa.table(arrays, schema=SCHEMA)


def blocks(objects: pa.StringArray) -> pa.Array[Any]:
    """Headers as they are sent, from JSON objects of strings.

    Where nothing is escaped, the only quotes are those of the JSON itself, and so replacing from
    left to right finds a colon or a comma between two of them only where JSON has put it.
    """
    if pc.any(pc.match_substring(objects, "\\")).as_py():
        return pa.array([_block(each) for each in objects.to_pylist()], pa.binary())
    lines = pc.replace_substring(objects, '":"', ": ")
    lines = pc.replace_substring(lines, '","', "\r\n")
    lines = pc.replace_substring(lines, '{"', "NATS/1.0\r\n", max_replacements=1)
    lines = pc.replace_substring(lines, '"}', "\r\n\r\n", max_replacements=1)
    return lines.cast(pa.binary())


def _block(text: str | None) -> bytes | None:
    if text is None:
        return None
    lines = [f"{name}: {value}\r\n" for name, value in json.loads(text).items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode(errors="surrogatepass")
