"""The event: a CloudEvents 1.0 envelope, how it is written, and how any stored bytes are read as one.

Written: structured mode, JSON. Read: structured mode, binary mode (`ce-*` headers), and plain JSON
that is no envelope at all; what is missing is completed from the message (`read`). What cannot be
read raises InvalidEvent with one of REASONS, and it is the reader who parks it.
"""

from __future__ import annotations

import os
import threading
import time as clock
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

import msgspec
from msgspec.structs import replace

from stratum_bus import subject as subjects
from stratum_bus.errors import EncodeError, InvalidEvent, InvalidName
from stratum_bus.schema import TYPES, upcast

CONTENT_TYPE = "application/cloudevents+json"
HEADER_ID = "Nats-Msg-Id"
HEADER_CONTENT_TYPE = "Content-Type"

REASONS = {
    "utf8": "the payload, or a string in it, is not UTF-8",
    "json": "the payload is not JSON",
    "shape": "an attribute of the envelope is missing or has the wrong type",
    "data": "the data does not fit the type that the handler asked for",
}
"""Why bytes could not be read as an event."""

D = TypeVar("D")
Raw = msgspec.Raw


class Event(
    msgspec.Struct,
    Generic[D],
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    tag_field="specversion",
    tag="1.0",
):
    """One immutable record.

    `id` is unique everywhere and is what duplicates are known by. `source` is `/agents/<name>` or
    any URI reference. `time` is when it happened (UTC), not when it was stored. `data` is the
    payload: `msgspec.Raw` as read from the log, a Struct or plain values otherwise. `dataref` is
    `blob:<sha256>` where the data was too large to stand in the event. `torun` is the run that an
    event is addressed to, `replyto` (`<agent>/<run>`) the run that waits for what comes of it.
    """

    id: str
    source: str
    type: str
    time: datetime | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    dataref: str | None = None
    runid: str | None = None
    step: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    torun: str | None = None
    replyto: str | None = None
    data: D = None  # type: ignore[assignment]
    data_base64: str | None = None


RawEvent = Event[Raw]

_encode = msgspec.json.Encoder().encode
_decode_raw = msgspec.json.Decoder(Event[Raw]).decode
_decode_any = msgspec.json.Decoder(Raw).decode
_ENVELOPE = {"specversion", "id", "source", "type"}


class _Probe(msgspec.Struct):
    specversion: Any = msgspec.UNSET


_probe = msgspec.json.Decoder(_Probe).decode

_uuid_lock = threading.Lock()
_uuid_last = 0


def uuid7() -> str:
    """A UUIDv7 (RFC 9562), ordered within this process even within one millisecond."""
    global _uuid_last
    with _uuid_lock:
        # 48 bits of milliseconds and 12 of the fraction, never going back
        now = clock.time_ns() * 4096 // 1_000_000
        _uuid_last = now = max(now, _uuid_last + 1)
    high = (now >> 12) << 16 | 0x7000 | (now & 0xFFF)
    low = int.from_bytes(os.urandom(8), "big") & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
    digits = f"{high:016x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def new(
    type: str,
    data: D,
    *,
    source: str,
    id: str | None = None,
    time: datetime | None = None,
    subject: str | None = None,
    cause: Event[Any] | None = None,
    runid: str | None = None,
    step: str | None = None,
) -> Event[D]:
    """A new event. `cause` is the event it follows from: conversation and trace go on from it.

    Defaults: a UUIDv7 id, the present time. Raises InvalidName for a type outside the grammar.
    """
    subjects.event_type(type)
    known = TYPES.get(type)
    return Event(
        id=id or uuid7(),
        source=source,
        type=type,
        time=time or datetime.now(UTC),
        subject=subject,
        dataschema=known.schema_uri() if known else None,
        runid=runid,
        step=step,
        correlationid=(cause.correlationid or cause.id) if cause else None,
        causationid=cause.id if cause else None,
        traceparent=cause.traceparent if cause else None,
        data=data,
    )


def agent_source(agent: str) -> str:
    """The `source` of what an agent writes."""
    return f"/agents/{agent}"


def encode(event: Event[Any]) -> bytes:
    """The event as bytes; raises EncodeError that names the path of what cannot be written."""
    return encode_value(event)


def encode_value(value: Any, root: str = "$") -> bytes:
    """Any value as JSON; raises EncodeError with the path from `root`."""
    try:
        return _encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        path, kind = _first_unwritable(value, root) or (root, f"value ({error})")
        raise EncodeError(path, kind) from error


def headers_of(event: Event[Any]) -> dict[str, str]:
    """The headers that go with an encoded event."""
    return {HEADER_ID: event.id, HEADER_CONTENT_TYPE: CONTENT_TYPE}


def read(
    payload: bytes,
    headers: Mapping[str, str] | None,
    *,
    subject: str,
    stream: str,
    sequence: int,
    time: datetime,
) -> RawEvent:
    """Read a stored message as an event, completing what its writer left out.

    Without an id the event gets the message's `Nats-Msg-Id` or `<stream>-<sequence>`; source and
    type come from the subject, the time from the stream. Raises InvalidEvent.
    """
    try:
        if headers and (attributes := _binary_attributes(headers)):
            event = _from_binary(attributes, payload)
        else:
            payload.decode()  # the JSON decoder does not look into strings that it skips
            event = _from_json(payload, headers or {}, subject, f"{stream}-{sequence}")
    except UnicodeDecodeError as error:
        raise InvalidEvent("utf8", str(error), stream=stream, sequence=sequence) from None
    except msgspec.ValidationError as error:
        raise InvalidEvent("shape", str(error), stream=stream, sequence=sequence) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidEvent("json", str(error), stream=stream, sequence=sequence) from None
    if event.time is None:
        return replace(event, time=time)
    if event.time.tzinfo is None:
        raise InvalidEvent(
            "shape", "`time` has no time zone - at `$.time`", stream=stream, sequence=sequence
        )
    return event


def typed(event: RawEvent, cls: type[D]) -> Event[D]:
    """The event with its data as `cls`, brought up to the newest version of its type.

    For `msgspec.Raw` the data stays as it was written. Raises InvalidEvent("data") that says where
    the data does not fit.
    """
    raw = event.data
    untyped: Event[Any] = event
    if cls is Raw:
        return untyped
    try:
        data: Any
        if raw is None:
            data = msgspec.convert(None, cls)
        elif (known := TYPES.get(event.type)) and known.version_of(
            event.dataschema
        ) < known.version:
            value = upcast(known, msgspec.json.decode(raw), known.version_of(event.dataschema))
            data = msgspec.convert(value, cls)
        else:
            data = msgspec.json.decode(raw, type=cls)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidEvent("data", f"{event.type} {event.id}: {error}") from None
    return replace(untyped, data=data)


def _from_json(payload: bytes, headers: Mapping[str, str], subject: str, place: str) -> RawEvent:
    declared = headers.get(HEADER_CONTENT_TYPE, "").startswith(CONTENT_TYPE)
    if declared or _is_envelope(payload):
        event = _decode_raw(payload)
        if not (event.id and event.source and event.type):
            raise msgspec.ValidationError("`id`, `source` and `type` must not be empty")
        return event
    source, type = _origin(subject)
    data = _decode_any(payload)
    return Event(id=headers.get(HEADER_ID) or place, source=source, type=type, data=data)


def _is_envelope(payload: bytes) -> bool:
    if not payload.lstrip().startswith(b"{"):
        return False
    return _probe(payload).specversion is not msgspec.UNSET


def _origin(subject: str) -> tuple[str, str]:
    """Source and type of a message that says neither."""
    try:
        place = subjects.parse(subject)
    except InvalidName:
        return f"/subjects/{subject}", "message"
    source = agent_source(place.sender or place.agent)
    if place.role == "memory":
        return source, "stratum.memory.noted"
    if place.role == "control":
        return source, f"stratum.control.{place.type}"
    return source, place.type or f"stratum.{place.role}"


def _binary_attributes(headers: Mapping[str, str]) -> dict[str, str]:
    found = {k[3:].lower(): unquote(v) for k, v in headers.items() if k[:3].lower() == "ce-"}
    for name in ("data", "data_base64"):
        found.pop(name, None)  # no attributes: the payload is the data
    if not found:
        return found
    for key, value in headers.items():
        if key.lower() == "content-type":
            found["datacontenttype"] = value
    return found


def _from_binary(attributes: dict[str, str], payload: bytes) -> RawEvent:
    """Binary mode of the CloudEvents NATS protocol binding 1.0."""
    body: dict[str, Any] = dict(attributes)
    kind = attributes.get("datacontenttype", "application/json").partition(";")[0].strip()
    event = msgspec.convert(body, Event[Any])
    if missing := [name for name in ("id", "source", "type") if not getattr(event, name)]:
        raise msgspec.ValidationError(f"header `ce-{missing[0]}` must not be empty")
    if not payload:
        return event
    if kind == "application/json" or kind.endswith("+json"):
        payload.decode()
        return replace(event, data=_decode_any(payload))
    if kind.startswith("text/"):
        return replace(event, data=Raw(_encode(payload.decode())))
    encoded: str = msgspec.to_builtins(payload)
    return replace(event, data_base64=encoded)


def _first_unwritable(value: Any, path: str, depth: int = 0) -> tuple[str, str] | None:
    """Where in a value the first thing stands that JSON cannot hold."""
    if depth > 200:
        return path, "value nested more than 200 deep"
    children: list[tuple[str, Any]] = []
    if isinstance(value, msgspec.Struct):
        children = [(f"{path}.{f}", getattr(value, f)) for f in value.__struct_fields__]
    elif isinstance(value, Mapping):
        children = [(f"{path}.{k}", v) for k, v in value.items()]
        for key in value:
            if not isinstance(key, str | int | float):
                return f"{path}.{key}", f"key of type {type(key).__name__}"
    elif isinstance(value, list | tuple | set | frozenset):
        children = [(f"{path}[{i}]", v) for i, v in enumerate(value)]
    else:
        try:
            _encode(value)
        except UnicodeEncodeError:
            return path, "string with a character that UTF-8 does not have"
        except (TypeError, ValueError, OverflowError, RecursionError):
            return path, type(value).__name__
        return None
    for child_path, child in children:
        if found := _first_unwritable(child, child_path, depth + 1):
            return found
    return None
