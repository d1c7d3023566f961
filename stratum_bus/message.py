"""A message as the log holds it, and where it came from."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from stratum_bus import event
from stratum_bus.event import RawEvent
from stratum_bus.jetstream import Reply

_PLACE = {"Nats-Stream", "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Message(msgspec.Struct, frozen=True, gc=False):
    """One stored message. `time_ns` is when the stream stored it, in nanoseconds since 1970 (UTC).

    `pending` is how many more the reader's filter matched when this one was sent.
    """

    stream: str
    sequence: int
    subject: str
    time_ns: int
    payload: bytes
    headers: dict[str, str] | None = None
    pending: int = 0

    @property
    def time(self) -> datetime:
        return utc(self.time_ns)

    @property
    def id(self) -> str:
        """The `Nats-Msg-Id` it was published with, "" for none."""
        return (self.headers or {}).get(event.HEADER_ID, "")

    def event(self) -> RawEvent:
        """The event in it; raises InvalidEvent."""
        return event.read(
            self.payload,
            self.headers,
            subject=self.subject,
            stream=self.stream,
            sequence=self.sequence,
            time=self.time,
        )


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """What the reply subject of a delivered message says of it (`$JS.ACK.…`)."""

    stream: str
    consumer: str
    deliveries: int
    stream_sequence: int
    consumer_sequence: int
    time_ns: int
    pending: int


def utc(time_ns: int) -> datetime:
    """Nanoseconds since 1970 as a datetime, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def nanoseconds(time: datetime) -> int:
    """The inverse of `utc`, without the rounding of floats."""
    return (time - _EPOCH) // timedelta(microseconds=1) * 1000


def delivered(reply_subject: str) -> Delivered:
    """Parse a reply subject, in the form with or without domain and account."""
    t = reply_subject.split(".")
    if len(t) >= 11:  # $JS.ACK.<domain>.<account>.<stream>…
        t = [*t[:2], *t[4:]]
    return Delivered(t[2], t[3], int(t[4]), int(t[5]), int(t[6]), int(t[7]), int(t[8]))


def from_delivery(reply: Reply, at: Delivered) -> Message:
    return Message(
        at.stream,
        at.stream_sequence,
        reply.subject,
        at.time_ns,
        reply.payload,
        reply.headers,
        at.pending,
    )


def is_direct(reply: Reply) -> bool:
    """Whether a direct get was answered with a message; one may have any header, `Status` too."""
    return reply.headers is not None and "Nats-Time-Stamp" in reply.headers


def from_direct(reply: Reply) -> Message | None:
    """From the answer of a direct get, which carries the place in headers.

    None where it got lost among headers of the writer that are none.
    """
    headers: dict[str, Any] = dict(reply.headers or {})
    if not _PLACE <= headers.keys():
        return None
    time_ns = _time_ns(headers.pop("Nats-Time-Stamp"))
    pending = int(headers.pop("Nats-Num-Pending", 0) or 0)
    headers.pop("Nats-Last-Sequence", None)
    return Message(
        headers.pop("Nats-Stream"),
        int(headers.pop("Nats-Sequence")),
        headers.pop("Nats-Subject"),
        time_ns,
        reply.payload,
        headers or None,
        pending,
    )


def from_api(stream: str, found: dict[str, Any]) -> Message:
    """From the answer of a JetStream API request, without its headers."""
    payload = base64.b64decode(found.get("data", ""))
    time_ns = _time_ns(found["time"])
    return Message(stream, found["seq"], found["subject"], time_ns, payload)


def _time_ns(time: str) -> int:
    """The server's time, `2026-11-21T02:00:00.123456789Z` with up to nine digits."""
    whole, _, fraction = time.removesuffix("Z").partition(".")
    return nanoseconds(datetime.fromisoformat(f"{whole}+00:00")) + int(f"{fraction:0<9}")
