"""Two ways to decode, one result: what is decoded in bulk is what `event.read` says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from stratum_bus import event
from stratum_bus.errors import InvalidEvent
from stratum_bus.event import Event, Raw
from stratum_bus.message import Message, utc
from stratum_projections.batch import TEXT_ATTRIBUTES, decode, of_messages

TIME = datetime(2026, 1, 2, tzinfo=UTC)
HEADERS = {"Nats-Msg-Id": "h1", "Content-Type": "application/cloudevents+json"}


def written(**fields: Any) -> bytes:
    """As our own writer writes it."""
    defaults: dict[str, Any] = {"id": "x", "source": "/a", "type": "t", "time": TIME}
    return event.encode(Event(**(defaults | fields)))


def with_data(data: bytes) -> bytes:
    return written(data={}).replace(b'"data":{}', b'"data":' + data)


def with_attribute(old: bytes, new: bytes) -> bytes:
    payload = written(data={"a": 1}, runid="r", subject="s")
    assert old in payload
    return payload.replace(old, new)


RECOGNISED = {
    "plain": written(data={"n": 1, "f": 0.1, "l": [1, None, True], "s": "x"}),
    "without data": written(),
    "without a time": written(time=None, data=1),
    "all attributes": written(
        subject="s", datacontenttype="application/json", dataschema="urn:s", dataref="blob:0",
        runid="r", step="3", correlationid="c", causationid="k", traceparent="00-1-2-01", data=[],
    ),
    "microseconds": written(time=datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)),
    "unicode": written(id="ünï-😀", data={"k\u2028": "日本語 \U0001f600"}),
    "escapes in the data": with_data(rb'"a\"b\\c\n\u0000"'),
    "huge integers": with_data(b"[123456789012345678901234567890,-9223372036854775809]"),
    "huge floats": with_data(b"[1.7976931348623157e308,5e-324]"),
    "duplicate keys in the data": with_data(b'{"a":1,"a":2}'),
    "null in the data": with_data(b'{"a":null}'),
    "a long text": written(data="x" * 100_000),
}  # fmt: skip
"""The fast path must take these, or it is none."""

OTHERWISE = {
    "NaN": with_data(b"NaN"),
    "minus infinity": with_data(b"[-Infinity]"),
    "NaN in small letters": with_data(b"[nan]"),
    "the text NaN": with_data(b'"NaN"'),
    "bare null": b"null",
    "null as data": with_data(b"null"),
    "empty": b"",
    "only white space": b" \n",
    "an array": b"[1,2]",
    "a text": b'"hello"',
    "a number": b"42",
    "bare JSON": b'{"q": 1}',
    "truncated": written(data={"n": 1})[:-5],
    "truncated in a text": written()[:20],
    "something behind": written() + b"x",
    "two values": written() + written(),
    "white space around": b" " + written() + b"\n",
    "spaces between": with_attribute(b'","', b'", "'),
    "200 kB of [": b"[" * 200_000,
    "200 kB of [ as data": with_data(b"[" * 200_000),
    "deeply nested data": with_data(b"[" * 5_000 + b"]" * 5_000),
    "nested data": with_data(b"[" * 300 + b"]" * 300),
    "numeric id": with_attribute(b'"id":"x"', b'"id":5'),
    "empty id": with_attribute(b'"id":"x"', b'"id":""'),
    "null id": with_attribute(b'"id":"x"', b'"id":null'),
    "no id": with_attribute(b'"id":"x",', b""),
    "no source": with_attribute(b'"source":"/a",', b""),
    "no type": with_attribute(b'"type":"t",', b""),
    "numeric type": with_attribute(b'"type":"t"', b'"type":1'),
    "null runid": with_attribute(b'"runid":"r"', b'"runid":null'),
    "numeric runid": with_attribute(b'"runid":"r"', b'"runid":7'),
    "boolean subject": with_attribute(b'"subject":"s"', b'"subject":true'),
    "object as source": with_attribute(b'"source":"/a"', b'"source":{"a":1}'),
    "duplicate id": with_attribute(b'"id":"x"', b'"id":"x","id":"y"'),
    "duplicate id behind the data": with_attribute(b'"data":{"a":1}', b'"data":{"a":1},"id":"y"'),
    "duplicate data": with_attribute(b'"data":{"a":1}', b'"data":1,"data":2'),
    "escaped quote in the id": with_attribute(b'"id":"x"', rb'"id":"x\"y"'),
    "escaped letter in the id": with_attribute(b'"id":"x"', rb'"id":"\u0041"'),
    "NUL in the id": with_attribute(b'"id":"x"', rb'"id":"x\u0000y"'),
    "raw NUL in the id": with_attribute(b'"id":"x"', b'"id":"x\x00y"'),
    "lone surrogate in the id": with_attribute(b'"id":"x"', rb'"id":"\ud800"'),
    "lone surrogate in the data": with_data(rb'"\ud800"'),
    "bad UTF-8 in the id": with_attribute(b'"id":"x"', b'"id":"\xff"'),
    "bad UTF-8 in the data": with_data(b'"\xff\xfe"'),
    "a surrogate in UTF-8": with_data(b'"\xed\xa0\x80"'),
    "byte order mark": b"\xef\xbb\xbf" + written(),
    "trailing comma": with_attribute(b'"data":{"a":1}', b'"data":{"a":1,}'),
    "trailing comma behind the data": with_attribute(b'"data":{"a":1}', b'"data":{"a":1},'),
    "comment": with_attribute(b'"data":{"a":1}', b'"data":/*x*/1'),
    "no specversion": with_attribute(b'"specversion":"1.0",', b""),
    "old specversion": with_attribute(b'"1.0"', b'"0.3"'),
    "numeric specversion": with_attribute(b'"1.0"', b"1.0"),
    "specversion last": b'{"id":"x","source":"/a","type":"t","data":1,"specversion":"1.0"}',
    "extension attributes": with_attribute(b'"runid":"r"', b'"runid":"r","myext":"e"'),
    "extension object": with_attribute(b'"runid":"r"', b'"runid":"r","ext":{"id":"z","data":1}'),
    "base64 data": written(data_base64="AAEC"),
    "time without a zone": with_attribute(b"T00:00:00Z", b"T00:00:00"),
    "time with an offset": with_attribute(b"T00:00:00Z", b"T00:00:00+02:00"),
    "time with nanoseconds": with_attribute(b"T00:00:00Z", b"T00:00:00.123456789Z"),
    "time with a blank": with_attribute(b"T00:00:00Z", b" 00:00:00Z"),
    "time without seconds": with_attribute(b"T00:00:00Z", b"T00:00Z"),
    "hour 24": with_attribute(b"T00:00:00Z", b"T24:00:00Z"),
    "second 60": with_attribute(b"T00:00:00Z", b"T23:59:60Z"),
    "30 February": with_attribute(b"2026-01-02", b"2026-02-30"),
    "year 0": with_attribute(b"2026-01-02", b"0000-01-02"),
    "year 1 with an offset": with_attribute(b"2026-01-02T00:00:00Z", b"0001-01-01T00:00:00+14:00"),
    "year 9999": with_attribute(b"2026-01-02T00:00:00Z", b"9999-12-31T23:59:59.999999Z"),
    "numeric time": with_attribute(b'"2026-01-02T00:00:00Z"', b"1767225600"),
    "small float": with_data(b"0.00001"),
    "exponent": with_data(b"[1E5,1.50]"),
    "escaped slash": with_data(rb'"a\/b"'),
}

BINARY = {
    "binary mode": (b'{"n":1}', {"ce-specversion": "1.0", "ce-id": "b1", "ce-source": "/b",
                                 "ce-type": "t"}),
    "binary mode with a text": (b"hello", {"ce-specversion": "1.0", "ce-id": "b1",
                                           "ce-source": "/b", "ce-type": "t",
                                           "content-type": "text/plain"}),
    "binary mode without a payload": (b"", {"Ce-Specversion": "1.0", "Ce-Id": "b%20c",
                                            "Ce-Source": "/b", "Ce-Type": "t"}),
    "binary mode with bytes": (b"\xff\x00", {"ce-specversion": "1.0", "ce-id": "b1",
                                             "ce-source": "/b", "ce-type": "t",
                                             "content-type": "image/png"}),
    "binary mode around an envelope": (written(id="inner"), {
        "ce-specversion": "1.0", "ce-id": "outer", "ce-source": "/b", "ce-type": "t"}),
    "binary mode without an id": (b"{}", {"ce-specversion": "1.0", "ce-source": "/b",
                                          "ce-type": "t"}),
    "no text in a header": (b"{}", {"Nats-Msg-Id": "\udcff"}),
    "declared as an envelope, but none": (b'{"q":1}', HEADERS),
    "an id in the header": (b'{"q":1}', {"Nats-Msg-Id": "h1"}),
}  # fmt: skip

CORPUS: dict[str, tuple[bytes, dict[str, str] | None]] = {
    **{name: (payload, HEADERS) for name, payload in RECOGNISED.items()},
    **{f"{name}, undeclared": (payload, None) for name, payload in RECOGNISED.items()},
    **{name: (payload, HEADERS) for name, payload in OTHERWISE.items()},
    **{f"{name}, undeclared": (payload, None) for name, payload in OTHERWISE.items()},
    **BINARY,
}
MESSAGES = [
    Message("LOG", i, "inbox.bob.alice.some.task", 1_767_312_000_123_456_789, payload, headers)
    for i, (payload, headers) in enumerate(CORPUS.values(), 1)
]


def test_what_is_decoded_is_what_event_read_says() -> None:
    decoded = decode(of_messages(MESSAGES))
    rows = decoded.rows.set_column(9, "time", decoded.rows["time"].cast(pa.int64())).to_pylist()
    found = {row["seq"]: row for row in rows}
    assert [row["seq"] for row in rows] == sorted(found)
    refused = {each.message.sequence for each in decoded.unreadable}
    for message in MESSAGES:
        try:
            read = message.event()
        except InvalidEvent:
            assert message.sequence in refused
            continue
        if message.sequence in refused:
            assert names()[message.sequence] == "no text in a header"
            continue
        row = found[message.sequence]
        assert read.time is not None
        assert row["time"] == (read.time - utc(0)) // timedelta(microseconds=1)
        for name in (*TEXT_ATTRIBUTES, "data_base64"):
            attribute = "subject" if name == "about" else name
            assert row[name] == getattr(read, attribute), (name, names()[message.sequence])
        data = read.data if read.data is None or isinstance(read.data, Raw) else None
        if read.data is None or data is not None:
            assert row["data"] == (None if data is None else bytes(data).decode())


def test_the_fast_path_takes_what_our_own_writer_writes() -> None:
    one_by_one: list[str] = []

    def message(row: int) -> Message:
        one_by_one.append(names()[row + 1])
        return MESSAGES[row]

    decode(msgspec.structs.replace(of_messages(MESSAGES), message=message))
    assert not set(RECOGNISED) & set(one_by_one)
    assert set(BINARY) <= set(one_by_one)


def names() -> dict[int, str]:
    return dict(enumerate(CORPUS, 1))


def test_what_is_no_event_has_a_reason(tables: Any) -> None:
    tables.apply(MESSAGES)
    expected = {}
    for message in MESSAGES:
        try:
            message.event()
        except InvalidEvent as error:
            expected[message.sequence] = (error.reason, error.detail[:1000])
    rows = tables.rows("select seq, reason, detail from quarantine where projection is null")
    found = {row["seq"]: (row["reason"], row["detail"]) for row in rows}
    reason, detail = found.pop(list(CORPUS).index("no text in a header") + 1)
    assert reason == "utf8"
    assert detail.startswith("an attribute of the event is no text")
    assert found == expected
    assert len(expected) > 40


@pytest.mark.parametrize("header", ["ce-traceparent", "ce-dataschema", "Content-Type"])
def test_no_header_of_bytes_that_are_no_text_stops_the_projector(header: str, tables: Any) -> None:
    headers = {"ce-id": "1", "ce-source": "/x", "ce-type": "t", header: "a\udc80"}
    tables.apply([Message("LOG", 1, "inbox.bob.x.t", 1_767_312_000_000_000_000, b"{}", headers)])
    assert tables.one("select reason from quarantine") == {"reason": "utf8"}


def test_bare_json_is_completed_from_its_message(tables: Any) -> None:
    message = Message("LOG", 1, "inbox.bob.alice.some.task", 1_767_312_000_123_456_789, b'{"q":1}')
    tables.apply([message])
    row = tables.one("select * from events")
    assert {name: value for name, value in row.items() if value is not None} == {
        "stream": "LOG", "seq": 1, "subject": "inbox.bob.alice.some.task", "role": "inbox",
        "agent": "bob", "sender": "alice", "id": "LOG-1", "source": "/agents/alice",
        "type": "some.task", "data": '{"q":1}', "stored": "2026-01-02T00:00:00.123456+00:00",
        "time": "2026-01-02T00:00:00.123456+00:00",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("subject", "place"),
    [
        ("inbox.bob.alice.a.b", ("inbox", "bob", "alice", None, None)),
        ("topic.alice.news", ("topic", None, "alice", None, None)),
        ("memory.bob.note", ("memory", "bob", None, "note", None)),
        ("run.bob.r1", ("run", "bob", None, None, "r1")),
        ("control.bob.restart", ("control", "bob", None, None, None)),
        ("dead.bob.task", ("dead", "bob", None, None, None)),
        ("inbox.bob", (None, None, None, None, None)),
        ("elsewhere", (None, None, None, None, None)),
    ],
)
def test_the_place_of_an_event_is_parsed_from_its_subject(
    subject: str, place: tuple[str | None, ...], tables: Any
) -> None:
    tables.apply([Message("LOG", 1, subject, 1_767_312_000_000_000_000, written())])
    row = tables.one("select role, agent, sender, kind, run from events")
    assert tuple(row.values()) == place
