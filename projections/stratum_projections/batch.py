"""Messages of the log, decoded into the relation `batch`.

Events as our own writer writes them are decoded set-wise by DuckDB. A row counts as decoded only
where printing it back gives the stored bytes: that one comparison rules out duplicate keys, other
types, trailing commas, escapes and all else on which two JSON readers may disagree. Every other
row (bare JSON, binary mode, another writer's spacing, garbage) goes through `event.read`, the one
place of rules, at a third of the speed; it is completed there, or quarantined with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa

from stratum_bus import subject as subjects
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.event import RawEvent, encode_value
from stratum_bus.message import Message, utc

TEXT_ATTRIBUTES = (
    "id",
    "source",
    "type",
    "about",
    "datacontenttype",
    "dataschema",
    "dataref",
    "runid",
    "step",
    "correlationid",
    "causationid",
    "traceparent",
)
PLACE = ("role", "agent", "sender", "kind", "run")
COLUMNS = {
    "stream": "varchar",
    "seq": "bigint",
    "subject": "varchar",
    **dict.fromkeys(PLACE, "varchar"),
    "stored": "timestamptz",
    "time": "timestamptz",
    **dict.fromkeys(TEXT_ATTRIBUTES, "varchar"),
    "data": "json",
    "data_base64": "varchar",
}
"""The columns of `batch`: where the event stands, and its attributes.

`subject` is the message's; the event's own `subject` attribute is `about`. `role`, `agent`,
`sender`, `kind` and `run` are parsed from the subject (`agent` is whose inbox, memory, journal, …
it is; NULL for a topic). `stored` is when the stream stored it, `time` when it happened.
"""

_ATTRIBUTE = {"about": "subject"}
# Our writer's order: the fields of `event.Event`, `specversion` first, absent ones left out.
_WRITTEN = ("id", "source", "type", "time", "subject", *TEXT_ATTRIBUTES[4:])
_SHAPE = msgspec.json.encode(
    {"specversion": "VARCHAR", **dict.fromkeys(_WRITTEN, "VARCHAR"), "data": "JSON"}
).decode()
_PRINTED = ", ".join(f"""',"{name}":"' || e."{name}" || '"'""" for name in _WRITTEN)
# To microseconds, in UTC; what DuckDB reads more loosely than RFC 3339 is left to `event.read`.
_TIME = r"[12]\d{3}-[01]\d-[0-3]\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?Z"
# DuckDB takes NaN and infinities for numbers, in any spelling, and prints them as they stand
_NUMBERS = r"""case when contains(lower(s), 'nan') or contains(lower(s), 'inf')
    then not regexp_matches(s, '(?i)[:,\[\s-](?:nan|inf|infinity)\s*[,\]}]') else true end"""
# `event.read` takes no value nested deeper than the interpreter's stack; count only where it could
_FLAT = "(strlen(s) <= 800 or strlen(s) - strlen(replace(replace(s, '[', ''), '{', '')) <= 400)"

DECODE = f"""
create or replace temp table decoded as
with texts as (
    select * exclude (payload), case when structured then try(decode(payload)) end as s
    from incoming
), parsed as (
    select *, try(from_json(s, '{_SHAPE}')) as e from texts
), cast_time as (
    select *, try_cast(e.time as timestamptz) as happened from parsed
)
select row, {", ".join(COLUMNS)}, coalesce(recognised, false) as recognised
from (
    select *,
        case when e.time is null then stored else happened end as time,
        {", ".join(f'e."{_ATTRIBUTE.get(a, a)}" as {a}' for a in TEXT_ATTRIBUTES)},
        e.data as data,
        null::varchar as data_base64,
        concat('{{"specversion":"1.0"', {_PRINTED}, ',"data":' || e.data, '}}') = s
            and e.id <> '' and e.source <> '' and e.type <> ''
            and (e.time is null
                or (happened is not null and regexp_full_match(e.time, '{_TIME}')))
            and {_NUMBERS} and {_FLAT} as recognised
    from cast_time
)
"""
"""From `incoming` (see `incoming`) to `decoded`: `COLUMNS`, `row` and `recognised`."""


class Unreadable(msgspec.Struct, frozen=True):
    """A message that is no event: where it stands, and why."""

    sequence: int
    reason: str
    detail: str


def incoming(messages: Sequence[Message], *, structured: bool = True) -> pa.Table:
    """The messages (of one stream) as Arrow, their subjects parsed.

    With `structured` false no row is tried in SQL.
    """
    numbers: dict[str, int] = {}
    index = pa.array([numbers.setdefault(m.subject, len(numbers)) for m in messages], pa.int32())
    places = [_place(subject) for subject in numbers]
    texts: dict[str, Sequence[str | None]] = {
        "stream": [message.stream for message in messages[:1]] * len(numbers),
        "subject": list(numbers),
        **{name: [place[i] for place in places] for i, name in enumerate(PLACE)},
    }
    placed = {
        name: pa.DictionaryArray.from_arrays(index, pa.array(values, pa.string()))
        for name, values in texts.items()
    }
    return pa.table(
        {
            **placed,
            "row": pa.array(list(range(len(messages))), pa.int32()),
            "seq": pa.array([m.sequence for m in messages], pa.int64()),
            "stored": _times([m.time_ns // 1000 for m in messages]),
            "payload": pa.array([m.payload for m in messages], pa.binary()),
            "structured": pa.array(
                [structured and not (m.headers and _binary(tuple(m.headers))) for m in messages]
            ),
        }
    )


def complete(messages: Sequence[Message]) -> tuple[pa.Table, list[Unreadable]]:
    """The messages as rows of `COLUMNS`, each by `event.read`; and those that are no events."""
    read: list[Message] = []
    events: list[RawEvent] = []
    unreadable: list[Unreadable] = []
    for message in messages:
        try:
            event = message.event()
            _check_text(event)
        except InvalidEvent as error:
            unreadable.append(Unreadable(message.sequence, error.reason, error.detail))
        else:
            read.append(message)
            events.append(event)
    places = [_place(message.subject) for message in read]
    columns: dict[str, list[Any]] = {
        "stream": [message.stream for message in read],
        "seq": [message.sequence for message in read],
        "subject": [message.subject for message in read],
        **{name: [place[i] for place in places] for i, name in enumerate(PLACE)},
        "stored": [message.time_ns // 1000 for message in read],
        "time": [_microseconds(event.time) for event in events],
        **{a: list(map(attrgetter(_ATTRIBUTE.get(a, a)), events)) for a in TEXT_ATTRIBUTES},
        "data": [_data(event) for event in events],
        "data_base64": [event.data_base64 for event in events],
    }
    arrays = {
        name: _times(columns[name])
        if kind == "timestamptz"
        else pa.array(columns[name], _ARROW[kind])
        for name, kind in COLUMNS.items()
    }
    return pa.table(arrays), unreadable


_ARROW = {"bigint": pa.int64(), "varchar": pa.string(), "json": pa.string()}
_EPOCH = utc(0)


_texts = attrgetter(*(_ATTRIBUTE.get(name, name) for name in TEXT_ATTRIBUTES))


def _check_text(event: RawEvent) -> None:
    """Raise InvalidEvent for an attribute that is no text: a header may smuggle bytes in."""
    try:
        "".join(filter(None, _texts(event))).encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent("utf8", f"an attribute of the event is no text: {error}") from None


def _data(event: RawEvent) -> str | None:
    data: object = event.data
    if data is None:
        return None
    return bytes(data).decode() if isinstance(data, msgspec.Raw) else encode_value(data).decode()


def _microseconds(time: datetime | None) -> int:
    assert time is not None  # `event.read` completes it
    return (time - _EPOCH) // timedelta(microseconds=1)


def _times(microseconds: list[int]) -> pa.Array[Any]:
    return pa.array(microseconds, pa.int64()).cast(pa.timestamp("us", "UTC"))


@lru_cache(maxsize=65_536)
def _place(subject: str) -> tuple[str | None, ...]:
    """The values of `PLACE`; a subject outside the grammar (another stream's) has none."""
    try:
        place = subjects.parse(subject)
    except InvalidName:
        return (None,) * len(PLACE)
    owner = place.agent or place.to
    values = (place.role, owner, place.sender, place.kind, place.run)
    return tuple(value or None for value in values)


@lru_cache(maxsize=4_096)
def _binary(names: tuple[str, ...]) -> bool:
    """Whether headers of these names are CloudEvents attributes."""
    return any(name[:3].lower() == "ce-" for name in names)
