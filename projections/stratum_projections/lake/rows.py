"""Messages as rows of a segment: the columns of `events`, and the message as it was stored.

`events`' columns are for those who ask the files; `stored_ns`, `headers` and `payload` are what a
message is made of again, byte for byte. A message that is no event has a row too, with the reason
in `unreadable` and no attributes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from stratum_bus.message import Message
from stratum_projections.batch import COLUMNS, decode, of_messages, places

_ARROW: dict[str, pa.DataType] = {
    "bigint": pa.int64(),
    "varchar": pa.string(),
    "json": pa.string(),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_EVENT = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS.items()])

RAW = ("subject", "seq", "stored_ns", "headers", "payload")
"""The columns that a message is made of again."""

SCHEMA = pa.schema(
    [
        *_EVENT,
        ("unreadable", pa.string()),
        ("stored_ns", pa.int64()),
        ("headers", pa.string()),
        ("payload", pa.binary()),
    ]
)
"""The columns of a segment. `headers` is a JSON object, or NULL for a message without headers."""


def rows(messages: Sequence[Message]) -> pa.Table:
    """The messages (of one stream, in order) as rows of SCHEMA."""
    decoded = decode(of_messages(messages))
    events = conform(decoded.rows, _EVENT)
    reasons = {each.message.sequence: each.reason for each in decoded.unreadable}
    if reasons:
        others = pa.table(places(of_messages([each.message for each in decoded.unreadable])))
        events = pa.concat_tables([events, conform(others, _EVENT)]).sort_by("seq")
    return pa.table(
        [
            *events.columns,
            pa.array([reasons.get(m.sequence) for m in messages], pa.string()),
            pa.array([m.time_ns for m in messages], pa.int64()),
            pa.array([_headers(m.headers) for m in messages], pa.string()),
            pa.array([m.payload for m in messages], pa.binary()),
        ],
        schema=SCHEMA,
    )


def messages_of(batch: pa.RecordBatch, stream: str, end: int) -> list[Message]:
    """The messages of rows with the columns RAW; `pending` is how many are left up to `end`."""
    columns = [batch.column(name).to_pylist() for name in RAW]
    return [
        Message(stream, sequence, subject, time_ns, payload, _headers_of(headers), end - sequence)
        for subject, sequence, time_ns, headers, payload in zip(*columns, strict=True)
    ]


def conform(table: pa.Table, schema: pa.Schema = SCHEMA) -> pa.Table:
    """The table with the columns of `schema`; those that it does not have are NULL."""
    if table.schema.equals(schema):
        return table
    return pa.table(
        [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _headers(headers: dict[str, str] | None) -> str | None:
    if headers is None:
        return None
    try:
        return msgspec.json.encode(headers).decode()
    except UnicodeEncodeError:
        return json.dumps(headers)  # bytes that are no text stand in it as lone surrogates


def _headers_of(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError:
        found: dict[str, str] = json.loads(text)
        return found
