"""Messages of the log, decoded into the rows of `batch`.

There is one set of rules for what an event is, `event.read`. Nearly all messages are envelopes in
structured mode; these are decoded by the same decoder, without what `event.read` does for each
message to find out which kind it is. All others (bare JSON, binary mode, garbage) go through
`event.read` one by one, and are completed there, or refused with the reason.

Decoding in Python rather than by SQL is deliberate: one core decodes an event in 2 us, while
DuckDB's `from_json` with the checks that make it as strict takes 4 us of both cores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from operator import attrgetter
from typing import Annotated, Any, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Meta

from stratum_bus import subject as subjects
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.event import Event, Raw, RawEvent, encode_value
from stratum_bus.message import Message

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
    "torun",
    "replyto",
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
"""The columns of a decoded event: where it stands, and its attributes.

`subject` is the message's; the event's own `subject` attribute is `about`. `role`, `agent`,
`sender`, `kind` and `run` are parsed from the subject (`agent` is whose inbox, memory, journal, …
it is; NULL for a topic). `stored` is when the stream stored it, `time` when it happened.
"""

Column: TypeAlias = Any
"""An Arrow array. The types of pyarrow's stubs tell apart more than can be known here."""

_ATTRIBUTE = {"about": "subject"}
_ENVELOPE = '{"specversion":"1.0",'
_JSON = pa.json_(pa.string())
_TIME = pa.timestamp("us", "UTC")
_SUBJECT = pa.dictionary(pa.int32(), pa.string())


class _Envelope(Event[Raw], frozen=True, gc=False, tag_field="specversion", tag="1.0"):
    """What `event.read` takes as it is: its checks are part of the decoding."""

    id: Annotated[str, Meta(min_length=1)]
    source: Annotated[str, Meta(min_length=1)]
    type: Annotated[str, Meta(min_length=1)]
    time: Annotated[datetime, Meta(tz=True)] | None = None


_decode = msgspec.json.Decoder(_Envelope).decode


class Stored(msgspec.Struct, frozen=True):
    """Messages of one stream in order, as columns. `message(row)` is one of them as a whole.

    `binary` are the rows whose headers may hold attributes.
    """

    stream: str
    seq: Column
    subject: Column
    stored_ns: Column
    payload: Column
    binary: set[int]
    message: Callable[[int], Message]

    def __len__(self) -> int:
        return len(self.seq)


class Unreadable(msgspec.Struct, frozen=True):
    """A message that is no event, or that a projection does not take: which one, and why."""

    message: Message
    reason: str
    detail: str


class Decoded(msgspec.Struct, frozen=True):
    """A batch: its events as rows of COLUMNS in order, and the messages that are none.

    `blobs` is data that was kept apart, by the sequence of the event that refers to it.
    """

    stored: Stored
    rows: pa.Table
    unreadable: list[Unreadable]
    blobs: dict[int, str] = {}

    @property
    def first(self) -> int:
        sequence: int = self.stored.seq[0].as_py()
        return sequence

    @property
    def last(self) -> int:
        sequence: int = self.stored.seq[-1].as_py()
        return sequence

    def message(self, sequence: int) -> Message:
        """The message of a sequence in the batch."""
        return self.stored.message(pc.index(self.stored.seq, sequence).as_py())


def of_messages(messages: Sequence[Message]) -> Stored:
    """Messages (of one stream) as columns."""
    return Stored(
        messages[0].stream if messages else "",
        pa.array([message.sequence for message in messages], pa.int64()),
        pa.array([message.subject for message in messages], pa.string()).dictionary_encode(),
        pa.array([message.time_ns for message in messages], pa.int64()),
        pa.array([message.payload for message in messages], pa.binary()),
        {n for n, m in enumerate(messages) if m.headers and _attributes(tuple(m.headers))},
        messages.__getitem__,
    )


def decode(stored: Stored) -> Decoded:
    """The messages as rows; those that are no events beside them."""
    slow = stored.binary | _no_envelopes(stored.payload)
    events: list[RawEvent | None]
    try:
        events = [
            None if row in slow else _decode(payload)
            for row, payload in enumerate(stored.payload.to_pylist())
        ]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        events = [
            None if row in slow else _tried(payload)
            for row, payload in enumerate(stored.payload.to_pylist())
        ]
        slow = {row for row, event in enumerate(events) if event is None}
    unreadable: list[Unreadable] = []
    for row in sorted(slow):
        message = stored.message(row)
        try:
            event = message.event()
            _check_text(event)
            events[row] = event
        except InvalidEvent as error:
            unreadable.append(Unreadable(message, error.reason, error.detail))
    rows = {**places(stored), **_attributes_of(events, stored)}
    table = pa.table({name: rows[name] for name in COLUMNS})
    if unreadable:
        table = table.filter(pa.array([event is not None for event in events]))
    return Decoded(stored, table, unreadable)


def places(stored: Stored) -> dict[str, Column]:
    """The columns that say where a message stands, which those that are no events have too."""
    subjects = stored.subject.dictionary.to_pylist()
    found = zip(*map(_place, subjects), strict=True) if subjects else [()] * len(PLACE)
    texts = {
        "stream": [stored.stream] * len(subjects),
        "subject": subjects,
        **dict(zip(PLACE, found, strict=True)),
    }
    columns: dict[str, Column] = {
        name: pa.DictionaryArray.from_arrays(stored.subject.indices, pa.array(values, pa.string()))
        for name, values in texts.items()
    }
    columns["seq"] = stored.seq
    columns["stored"] = pc.divide(stored.stored_ns, 1000).cast(_TIME)
    return columns


def _no_envelopes(payloads: Column) -> set[int]:
    """The rows that do not begin as our writer's events do, or are no UTF-8."""
    found = set(rows_where(pc.invert(pc.starts_with(payloads, pattern=_ENVELOPE))))
    try:
        payloads.cast(pa.string())  # the decoder does not look into what it skips
    except pa.ArrowInvalid:
        found |= {row for row, payload in enumerate(payloads.to_pylist()) if not _is_text(payload)}
    return found


def rows_where(mask: Column) -> list[int]:
    """The rows for which a column is true."""
    rows: Column = pc.indices_nonzero(pc.fill_null(mask, pa.scalar(value=False)))
    found: list[int] = rows.to_pylist()
    return found


def one_piece(column: pa.ChunkedArray[Any]) -> Column:
    """A column of a table without a copy, where it is one piece already."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _tried(payload: bytes) -> RawEvent | None:
    try:
        return _decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _attributes_of(events: list[RawEvent | None], stored: Stored) -> dict[str, Column]:
    """The attributes as columns; NULL where there is no event."""
    blank: RawEvent = Event(id="", source="", type="")
    read = [event if event is not None else blank for event in events]
    columns: dict[str, Column] = {
        name: pa.array(list(map(attrgetter(_ATTRIBUTE.get(name, name)), read)), pa.string())
        for name in TEXT_ATTRIBUTES
    }
    time: Column = pa.array([event.time for event in read], _TIME)
    columns["time"] = pc.coalesce(time, pc.divide(stored.stored_ns, 1000).cast(_TIME))
    data = pa.array(
        [bytes(d) if type(d := event.data) is Raw else _other(d) for event in read], pa.binary()
    )
    columns["data"] = pa.ExtensionArray.from_storage(_JSON, data.cast(pa.string()))
    columns["data_base64"] = pa.array([event.data_base64 for event in read], pa.string())
    return columns


def with_data(rows: pa.Table, blobs: dict[Any, str]) -> pa.Table:
    """The rows with the data of some events, by their sequences."""
    data: list[Any] = rows["data"].cast(pa.string()).to_pylist()
    found = [blobs.get(at, text) for at, text in zip(rows["seq"].to_pylist(), data, strict=True)]
    column = pa.ExtensionArray.from_storage(_JSON, pa.array(found, pa.string()))
    return rows.set_column(rows.schema.get_field_index("data"), "data", column)


def _other(data: object) -> bytes | None:
    return None if data is None else encode_value(data)


_texts = attrgetter(*(_ATTRIBUTE.get(name, name) for name in TEXT_ATTRIBUTES))


def _check_text(event: RawEvent) -> None:
    """Raise InvalidEvent for an attribute that is no text: a header may smuggle bytes in."""
    try:
        "".join(filter(None, _texts(event))).encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent("utf8", f"an attribute of the event is no text: {error}") from None


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
def _attributes(names: tuple[str, ...]) -> bool:
    """Whether headers of these names are CloudEvents attributes."""
    return any(name[:3].lower() == "ce-" for name in names)
