"""How messages of a stream are shown, and the newest of them found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, InvalidName, NotFound
from stratum_bus.event import RawEvent
from stratum_bus.message import Message
from stratum_cli.failure import Usage
from stratum_cli.output import Columns, Row, one_line, time_text

_FIRST_SPAN = 5_000
_WIDER = 20


def row(message: Message) -> dict[str, Any]:
    """A message as an object: its place, and the event in it or why there is none."""
    place = {
        "stream": message.stream,
        "sequence": message.sequence,
        "time": message.time,
        "subject": message.subject,
    }
    try:
        return {**place, "event": message.event()}
    except InvalidEvent as error:
        unreadable = {"reason": error.reason, "detail": error.detail}
        return {**place, "unreadable": unreadable, "payload_base64": message.payload}


def line(message: Message) -> str:
    """A message as a line: sequence, time, subject, type where the subject does not say it, data."""
    parts = [f"{message.sequence:>7}", time_text(message.time), message.subject]
    try:
        event = message.event()
    except InvalidEvent as error:
        parts.append(f"unreadable ({error.reason}): {error.detail}")
    else:
        if not message.subject.endswith(f".{event.type}"):
            parts.append(event.type)
        parts.append(content(event))
    return "  ".join(parts)


def content(event: RawEvent) -> str:
    """The data of an event in one line, or where it is."""
    if event.data is not None:
        return one_line(bytes(event.data))
    if event.data_base64 is not None:
        return f"base64:{event.data_base64}"
    return event.dataref or ""


def _type(row: Row) -> str:
    if event := row.get("event"):
        return str(event.type)
    return f"unreadable ({row['unreadable']['reason']})"


def _content(row: Row) -> str:
    if event := row.get("event"):
        return content(event)
    return str(row["unreadable"]["detail"])


COLUMNS: Columns = {"type": _type, "data": _content}
"""What is in a `row`, for a table."""


def check_filters(filters: Sequence[str]) -> list[str]:
    """The filters; raises InvalidName, and Usage for two that a message could match both."""
    for i, one in enumerate(filters):
        subject.pattern(one)
        for other in filters[:i]:
            if subject.overlap(one, other):
                raise Usage(
                    f"--filter {other} and --filter {one} overlap: give the wider one only, "
                    "or two that share no subject"
                )
    return list(filters)


def stream_name(name: str) -> str:
    """A name that can be a stream's; raises InvalidName."""
    return subject.token(name, "stream name")


async def no_stream(bus: Bus, error: NotFound) -> NotFound:
    """The same error, saying which streams there are."""
    if error.what != "stream":
        return error
    names = (await bus.connection.api("STREAM.NAMES")).get("streams") or []
    if not names:
        return NotFound("stream", f"{error.name}: create them with `stratum stream provision`")
    return NotFound("stream", f"{error.name}; there are {', '.join(sorted(names))}")


async def newest(
    bus: Bus, filters: Sequence[str], count: int, *, stream: str = "LOG"
) -> list[Message]:
    """The last `count` messages that match (0: all), oldest first.

    The end of the stream is looked through in ever wider spans: no server call finds them.
    """
    info = await bus.connection.api(f"STREAM.INFO.{stream}")
    first, last = info["state"]["first_seq"], info["state"]["last_seq"]
    span = _FIRST_SPAN if count else last
    while True:
        start = max(first, last - span + 1, 1)
        async with bus.read(stream, filters=filters, start=start, end=last) as reader:
            found = [message async for message in reader]
        if start <= max(first, 1) or (count and len(found) >= count):
            return found[-count:] if count else found
        span *= _WIDER


def sender(message: Message) -> str:
    """Who sent a message, by its subject; "" where that does not say."""
    try:
        return subject.parse(message.subject).sender
    except InvalidName:
        return ""
