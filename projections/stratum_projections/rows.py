"""Rows of an answer as Python objects, as JSON lines and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from stratum_projections.select import JSON_FIELD

Rows = pa.Table | pa.RecordBatch


def names(schema: pa.Schema) -> list[str]:
    """The names of the columns; one that recurs gets a number."""
    found: list[str] = []
    for name in schema.names:
        n = sum(name == each or each.startswith(f"{name}_") for each in found)
        found.append(f"{name}_{n + 1}" if name in found else name)
    return found


def objects(rows: Rows, *, raw: bool = False) -> Iterator[dict[str, Any]]:
    """The rows by the names of their columns; with `raw` columns of JSON are JSON, else text."""
    keys = names(rows.schema)
    for values in _values(rows, raw=raw):
        yield dict(zip(keys, values, strict=True))


def json_lines(rows: Rows) -> bytes:
    """An object a line. Times are ISO 8601 in UTC, decimals and huge integers text, bytes base64,
    NaN is null."""
    encode = msgspec.json.encode
    return b"".join(encode(row) + b"\n" for row in objects(rows, raw=True))


def csv_heading(schema: pa.Schema) -> str:
    return _csv([schema.names])


def csv_lines(rows: Rows) -> str:
    """A line a row, as RFC 4180 has it; NULL is empty."""
    return _csv([[_csv_cell(value) for value in values] for values in _values(rows)])


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _values(rows: Rows, *, raw: bool = False) -> Iterator[tuple[Any, ...]]:
    columns = []
    for field, column in zip(rows.schema, rows.columns, strict=True):
        values = _listed(column)
        if pa.types.is_interval(field.type):
            values = [value and value._asdict() for value in values]
        elif raw and field.metadata == JSON_FIELD:
            values = [value if value is None else _json(value) for value in values]
        columns.append(values)
    return zip(*columns, strict=True) if columns else iter(())


def _listed(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):  # a time that Python's types do not reach
        values = column.cast(pa.string()).to_pylist()
    return values


def _json(text: str) -> msgspec.Raw | str:
    """One line of JSON; the text itself where it is none: DuckDB takes NaN for a number."""
    try:
        if "\n" in text or "\r" in text:
            text = msgspec.json.format(text, indent=-1)
        return msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return text


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    text = msgspec.json.encode(value).decode()
    return text[1:-1] if text.startswith('"') else text
