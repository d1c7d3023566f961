"""The envelope: written as CloudEvents, and read from whatever a client may have stored."""

from __future__ import annotations

import math
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_structured
from cloudevents.core.formats.json import JSONFormat

from stratum_bus.errors import EncodeError, InvalidEvent, InvalidName
from stratum_bus.event import (
    CONTENT_TYPE,
    REASONS,
    Event,
    RawEvent,
    encode,
    encode_value,
    headers_of,
    new,
    read,
    typed,
    uuid7,
)

STORED_AT = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
ENVELOPE = {"specversion": "1.0", "id": "1", "source": "/t", "type": "task"}


class Paper(msgspec.Struct):
    title: str
    seen: datetime | None = None


def read_stored(
    payload: bytes,
    headers: dict[str, str] | None = None,
    subject: str = "inbox.bob.alice.paper.published",
) -> RawEvent:
    return read(payload, headers, subject=subject, stream="LOG", sequence=7, time=STORED_AT)


def envelope(**attributes: Any) -> bytes:
    return msgspec.json.encode({**ENVELOPE, **attributes})


def data_of(event: RawEvent) -> Any:
    return typed(event, Any).data


# Written


def test_an_event_survives_being_written_and_read() -> None:
    cause = new("start", None, source="/t", id="cause")
    event = new(
        "paper.published",
        Paper("On logs", STORED_AT),
        source="/agents/alice",
        time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2))),
        subject="arxiv:1",
        cause=cause,
        runid="r1",
        step="s1",
    )
    again = read_stored(encode(event), headers_of(event))
    assert typed(again, Paper) == event
    assert again.correlationid == again.causationid == "cause"


def test_what_follows_keeps_conversation_and_trace() -> None:
    first: Event[Any] = Event(id="1", source="/t", type="a", traceparent="00-ab-cd-01")
    second = new("b", None, source="/t", cause=first)
    third = new("c", None, source="/t", cause=second)
    assert (third.correlationid, third.causationid) == ("1", second.id)
    assert third.traceparent == first.traceparent


def test_the_official_library_reads_what_we_write() -> None:
    event = new("paper.published", Paper("Ünïcode"), source="/agents/alice", subject="a", runid="r")
    body = encode(event)
    official = from_structured(
        KafkaMessage(headers={"content-type": CONTENT_TYPE.encode()}, key=None, value=body),
        JSONFormat(),
    )
    assert official.get_id() == event.id
    assert official.get_type() == "paper.published"
    assert official.get_source() == "/agents/alice"
    assert official.get_subject() == "a"
    assert official.get_time() == event.time
    assert official.get_data() == {"title": "Ünïcode", "seen": None}
    assert official.get_extension("runid") == "r"


def test_we_read_what_the_official_library_writes() -> None:
    from cloudevents.core.v1.event import CloudEvent

    official = CloudEvent(
        {"type": "paper.published", "source": "/elsewhere", "id": "9", "time": STORED_AT},
        {"title": "On logs"},
    )
    event = read_stored(JSONFormat().write(official), {"Content-Type": CONTENT_TYPE})
    assert (event.id, event.source, event.time) == ("9", "/elsewhere", STORED_AT)
    assert typed(event, Paper).data == Paper("On logs")


def test_nothing_that_is_unset_is_written() -> None:
    body = msgspec.json.decode(encode(new("task", None, source="/t")))
    assert set(body) == {"specversion", "id", "source", "type", "time"}


def test_the_headers_carry_the_id_and_the_content_type() -> None:
    assert headers_of(new("task", 1, source="/t", id="x")) == {
        "Nats-Msg-Id": "x",
        "Content-Type": "application/cloudevents+json",
    }


def test_a_type_outside_the_grammar_is_refused() -> None:
    with pytest.raises(InvalidName, match="joined by single dots"):
        new("no good", None, source="/t")


class Unwritable:
    pass


@pytest.mark.parametrize(
    ("data", "path", "kind"),
    [
        (Unwritable(), "$.data", "Unwritable"),
        ({"a": [0, {"b": Unwritable()}]}, "$.data.a[1].b", "Unwritable"),
        ({"a": (1, Unwritable())}, "$.data.a[1]", "Unwritable"),
        (Paper(Unwritable()), "$.data.title", "Unwritable"),  # type: ignore[arg-type]
        ({"a": {(1, 2): 3}}, "$.data.a.(1, 2)", "key of type tuple"),
        ({"a": lambda: None}, "$.data.a", "function"),
        ({"a": "\udc80"}, "$.data.a", "string with a character that UTF-8 does not have"),
    ],
)
def test_what_cannot_be_written_is_named_by_its_path(data: Any, path: str, kind: str) -> None:
    with pytest.raises(EncodeError) as refused:
        encode(new("task", data, source="/t"))
    assert (refused.value.path, refused.value.kind) == (path, kind)
    assert str(refused.value).startswith(f"{path} is a {kind}, which cannot be written as JSON")


def test_a_value_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="nested more than 200 deep"):
        encode_value(endless)


def test_what_json_has_no_word_for_becomes_null() -> None:
    assert encode_value([math.nan, math.inf]) == b"[null,null]"


def test_ids_are_uuids_of_version_7_in_the_order_they_were_made() -> None:
    before = datetime.now(UTC)
    ids = [uuid7() for _ in range(5000)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(id).version for id in ids} == {7}
    assert {uuid.UUID(id).variant for id in ids} == {uuid.RFC_4122}
    milliseconds = int(ids[0].replace("-", "")[:12], 16)
    assert abs(milliseconds - before.timestamp() * 1000) < 60_000


def test_threads_never_make_the_same_id() -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = [
            id
            for made in pool.map(lambda _: [uuid7() for _ in range(500)], range(8))
            for id in made
        ]
    assert len(set(ids)) == 4000


# Read: completion


@pytest.mark.parametrize(
    ("subject", "source", "type"),
    [
        ("inbox.bob.alice.paper.published", "/agents/alice", "paper.published"),
        ("topic.alice.paper.published", "/agents/alice", "paper.published"),
        ("memory.bob.note", "/agents/bob", "stratum.memory.noted"),
        ("control.bob.restart", "/agents/bob", "stratum.control.restart"),
        ("run.bob.r1", "/agents/bob", "stratum.run"),
        ("inbox.bob.short", "/subjects/inbox.bob.short", "message"),
        ("elsewhere.x", "/subjects/elsewhere.x", "message"),
    ],
)
def test_bare_json_is_completed_from_its_place(subject: str, source: str, type: str) -> None:
    event = read_stored(b'{"q": 1}', subject=subject)
    assert (event.id, event.source, event.type) == ("LOG-7", source, type)
    assert event.time == STORED_AT
    assert data_of(event) == {"q": 1}


def test_the_id_of_bare_json_is_its_message_id_where_it_has_one() -> None:
    assert read_stored(b"1", {"Nats-Msg-Id": "mine"}).id == "mine"
    assert read_stored(b"1", {"Nats-Msg-Id": ""}).id == "LOG-7"


@pytest.mark.parametrize(
    "payload",
    [b"[1,2]", b'"text"', b"3", b"null", b" {}", b'{"id":"1","type":"t"}', b'{"a":"\xc3\xa9"}'],
)
def test_any_json_is_an_event(payload: bytes) -> None:
    assert data_of(read_stored(payload)) == msgspec.json.decode(payload)


def test_an_envelope_without_a_time_gets_the_streams() -> None:
    assert read_stored(envelope()).time == STORED_AT


def test_an_envelope_is_known_by_its_specversion_without_any_header() -> None:
    event = read_stored(b"\n " + envelope(data={"q": 1}, unknownextension="x"))
    assert (event.id, data_of(event)) == ("1", {"q": 1})


def test_binary_mode_takes_its_attributes_from_the_headers() -> None:
    event = read_stored(
        b'{"title": "On logs"}',
        {
            "Ce-Specversion": "1.0",
            "CE-ID": "9",
            "ce-source": "/else%20where",
            "ce-type": "paper.published",
            "ce-time": "2026-01-02T03:04:05Z",
            "ce-runid": "r1",
            "ce-other": "x",
            "content-type": "application/json; charset=utf-8",
        },
    )
    assert (event.id, event.source, event.runid) == ("9", "/else where", "r1")
    assert event.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert typed(event, Paper).data == Paper("On logs")


BINARY = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/t", "ce-type": "task"}


def test_binary_mode_without_a_time_gets_the_streams() -> None:
    assert read_stored(b"1", BINARY).time == STORED_AT


def test_binary_mode_holds_text_bytes_or_nothing() -> None:
    text = read_stored("grüße".encode(), {**BINARY, "Content-Type": "text/plain"})
    assert data_of(text) == "grüße"
    image = read_stored(b"\xff\xfe", {**BINARY, "Content-Type": "image/png"})
    assert image.data is None
    assert image.data_base64 == "//4="
    assert read_stored(b"", BINARY).data is None


def test_data_of_binary_mode_is_the_payload_and_no_header() -> None:
    event = read_stored(b"", {**BINARY, "ce-data": "x", "ce-data_base64": "eA=="})
    assert event.data is None
    assert event.data_base64 is None


# Read: what is parked


UNREADABLE: list[tuple[str, bytes, dict[str, str] | None]] = [
    ("utf8", b"\xff", None),
    ("utf8", b'{"a": "\xff"}', None),
    ("utf8", envelope(data="#").replace(b"#", b"\xff"), None),
    ("utf8", b'{"a": "\xff"}', BINARY),
    ("utf8", b"\xff", {**BINARY, "Content-Type": "text/plain"}),
    ("json", b"", None),
    ("json", b"hello", None),
    ("json", b'{"a": 1}}', None),
    ("json", b'{"a": NaN}', None),
    ("json", b"[" * 100_000, None),
    ("json", envelope(data="#").replace(b'"#"', b"[" * 5000 + b"]" * 5000), None),
    ("json", b"{", {"Content-Type": CONTENT_TYPE}),
    ("json", b"{", BINARY),
    ("shape", b'{"a": 1}', {"Content-Type": CONTENT_TYPE}),
    ("shape", b'{"specversion": "1.0"}', None),
    ("shape", b'{"specversion": null}', None),
    ("shape", envelope(specversion="0.3"), None),
    ("shape", envelope(id=1), None),
    ("shape", envelope(id=""), None),
    ("shape", envelope(source=""), None),
    ("shape", envelope(type=None), None),
    ("shape", envelope(time="yesterday"), None),
    ("shape", envelope(time="2026-01-02T03:04:05"), None),
    ("shape", envelope(runid=5), None),
    ("shape", b"1", {"ce-type": "task"}),
    ("shape", b"1", {**BINARY, "ce-id": ""}),
    ("shape", b"1", {**BINARY, "ce-specversion": "0.3"}),
    ("shape", b"1", {**BINARY, "ce-time": "yesterday"}),
]


@pytest.mark.parametrize(("reason", "payload", "headers"), UNREADABLE)
def test_what_cannot_be_read_says_why_and_where(
    reason: str, payload: bytes, headers: dict[str, str] | None
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        read_stored(payload, headers)
    assert refused.value.reason == reason
    assert (refused.value.stream, refused.value.sequence) == ("LOG", 7)
    assert str(refused.value).startswith(f"LOG 7: not a readable event ({reason}): ")


def test_every_reason_is_documented() -> None:
    assert {reason for reason, _, _ in UNREADABLE} | {"data"} == set(REASONS)


def test_data_of_another_type_than_asked_for_says_where() -> None:
    event = read_stored(envelope(data={"title": 5}))
    with pytest.raises(InvalidEvent, match=r"task 1: Expected `str`, got `int` - at `\$.title`"):
        typed(event, Paper)
    with pytest.raises(InvalidEvent, match="Expected `object`, got `null`"):
        typed(read_stored(envelope()), Paper)
