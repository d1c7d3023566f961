"""What is posted is stored as it was meant, once, and then answered; the rest is refused whole."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from stratum_bus.event import CONTENT_TYPE
from tests.gateway.conftest import Log
from tests.gateway.process import BATCH, CLOUDEVENT, Answer, Client, Gateway, secret


def event(**changes: Any) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": str(uuid4()), "source": "/tills/7", "type": "sale.made"}
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def official(data: Any = None) -> CloudEvent:
    attributes = {
        "specversion": "1.0", "id": str(uuid4()), "source": "https://shop.example/tills/7",
        "type": "sale.made", "subject": "sale 9", "tenant": "blue & grün",
    }  # fmt: skip
    return CloudEvent(attributes, {"cents": 250} if data is None else data)


@pytest.mark.parametrize("mode", [to_structured_event, to_binary_event])
def test_an_event_of_the_official_library_is_stored_with_all_that_it_says(
    shop: Client, log: Log, mode: Any
) -> None:
    given = official()
    message: HTTPMessage = mode(given)
    answer = shop.ask("POST", "/inbox/research", message.body, message.headers)
    [stored] = answer.json["events"]
    assert stored["id"] == given.get_id()
    assert stored["subject"] == "inbox.research.shop.sale.made"
    found = log.get(stored["sequence"])
    assert found.subject == stored["subject"]
    assert (found.headers or {})["Content-Type"] == CONTENT_TYPE
    read = JSONFormat().read(None, found.payload)
    assert read.get_data() == {"cents": 250}
    for name in ("id", "source", "type", "subject", "tenant"):
        assert read.get_attributes()[name] == given.get_attributes()[name]


def test_data_that_is_no_json_stays_what_it_was(shop: Client, log: Log) -> None:
    about = {"ce-specversion": "1.0", "ce-source": "/s", "ce-type": "scan"}
    for kind, body, found in [
        ("text/plain", "grün".encode(), {"data": "grün"}),
        ("application/pdf", b"%PDF\xff", {"data_base64": "JVBERv8="}),
    ]:
        headers = {**about, "ce-id": str(uuid4()), "Content-Type": kind}
        answer = shop.ask("POST", "/topic", body, headers)
        stored = json.loads(log.get(answer.sequences[0]).payload)
        assert found.items() <= stored.items()
        assert stored["datacontenttype"] == kind


def test_a_batch_is_stored_in_order_and_at_once(shop: Client, log: Log) -> None:
    batch = [event(data=number, type=f"sale.{number}") for number in range(5)]
    sequences = shop.post("/topic", batch, BATCH).sequences
    assert sequences == list(range(sequences[0], sequences[0] + 5))
    found = log.all(start=sequences[0])[:5]
    assert [message.event().id for message in found] == [each["id"] for each in batch]
    assert [message.subject for message in found] == [f"topic.shop.sale.{n}" for n in range(5)]
    assert shop.post("/topic", [], BATCH).json == {"events": []}


def test_bare_json_is_completed_from_the_address(shared: Gateway, shop: Client, log: Log) -> None:
    [sequence] = shop.post("/inbox/research/question", {"q": 1}, "application/json").sequences
    found = log.get(sequence).event()
    assert (found.source, found.type) == ("/agents/shop", "question")
    assert found.time and json.loads(bytes(found.data)) == {"q": 1}
    hook = Client(shared.port, secret("hook"))
    delivery = str(uuid4())
    answers = [
        hook.post(
            "/topic/push", [1, 2], "application/json; charset=utf-8", **{"X-Delivery": delivery}
        )
        for _ in range(2)
    ]
    assert answers[0].json == answers[1].json
    assert answers[0].json["events"][0]["id"] == delivery
    found = log.get(answers[0].sequences[0]).event()
    assert (found.source, json.loads(bytes(found.data))) == ("/agents/hooks", [1, 2])
    hook.close()


def test_an_envelope_is_known_as_one_whatever_its_content_type(shop: Client, log: Log) -> None:
    given = event(data=1)
    answer = shop.post("/topic/sale.made", given, "application/json")
    assert answer.json["events"][0]["id"] == given["id"]
    assert log.get(answer.sequences[0]).event().source == "/tills/7"


def test_the_same_id_again_gets_the_same_answer(shop: Client, log: Log) -> None:
    given, other = event(data=1), event(data=2)
    first = shop.post("/topic", given)
    last = log.last()
    assert shop.post("/topic", given) == first._replace(headers=shop_headers(first, shop, given))
    assert log.last() == last
    batch = shop.post("/topic", [other, given], BATCH)
    assert batch.sequences == [last + 1, first.sequences[0]]
    assert shop.post("/topic", [other, given], BATCH).json == batch.json
    assert log.last() == last + 1


def shop_headers(first: Answer, shop: Client, given: dict[str, Any]) -> dict[str, str]:
    """Those of the first answer, with the date of now."""
    return {**first.headers, "date": shop.post("/topic", given).headers["date"]}


def test_an_id_that_another_event_has_is_refused(shop: Client, log: Log) -> None:
    given = event()
    [sequence] = shop.post("/topic", given).sequences
    last = log.last()
    for path, changed in [("/topic", {"source": "/tills/8"}), ("/inbox/research", {})]:
        answer = shop.post(path, {**given, **changed})
        assert answer.status == 409
        assert f"LOG {sequence}" in answer.json["detail"]
    assert shop.post("/topic", [event(), {**given, "source": "/x"}], BATCH).status == 409
    assert log.last() == last


def test_large_data_is_stored_too(shop: Client, log: Log) -> None:
    given = event(data="x" * 17_000, tenant="blue")
    [sequence] = shop.post("/topic", given).sequences
    stored = json.loads(log.get(sequence).payload)
    assert stored["dataref"].startswith("blob:")
    assert stored["tenant"] == "blue"
    message = log.get(sequence)
    assert bytes(log.do(lambda bus: bus.event(message)).data) == b'"%s"' % (b"x" * 17_000)


MALFORMED = [
    ("/topic", CLOUDEVENT, b"{", 400, "json"),
    ("/topic", CLOUDEVENT, b"\xff", 400, "utf8"),
    ("/topic", CLOUDEVENT, b"", 400, "json"),
    ("/topic", CLOUDEVENT, b"[" * 10_000, 400, "Expected"),
    ("/topic", CLOUDEVENT, b'{"a":' * 3_000 + b"1" + b"}" * 3_000, 400, "recursion"),
    ("/topic", CLOUDEVENT, event(id=7), 400, "Expected `str`, got `int` - at `$.id`"),
    ("/topic", CLOUDEVENT, event(id=""), 400, "must not be empty"),
    ("/topic", CLOUDEVENT, event(id="a b"), 400, "`id` must have 1 to 256"),
    ("/topic", CLOUDEVENT, event(id="x" * 257), 400, "`id` must have 1 to 256"),
    ("/topic", CLOUDEVENT, event(id="a\r\nNats-Rollup: all"), 400, "`id` must have"),
    ("/topic", CLOUDEVENT, event(source=None), 400, "missing required field `source`"),
    ("/topic", CLOUDEVENT, event(type="a b"), 400, "event type 'a b' is not allowed"),
    ("/topic", CLOUDEVENT, event(type="a.>"), 400, "event type"),
    ("/topic", CLOUDEVENT, event(specversion="0.3"), 400, "`$.specversion`"),
    ("/topic", CLOUDEVENT, event(time="yesterday"), 400, "`$.time`"),
    ("/topic", CLOUDEVENT, event(time="2026-01-01T00:00:00"), 400, "no time zone"),
    ("/topic", CLOUDEVENT, event(Tenant="x"), 400, "`Tenant` is not allowed"),
    (
        "/topic",
        CLOUDEVENT,
        b'{"specversion":"1.0","id":"1","source":"/s","type":"t","x":"\\ud800"}',
        400,
        "json",
    ),
    ("/topic", CLOUDEVENT, event(tenant={}), 400, "`tenant` must be"),
    ("/topic", CLOUDEVENT, event(data=1, data_base64="eA=="), 400, "both"),
    ("/topic", CLOUDEVENT, event(data_base64="%"), 400, "no Base64"),
    ("/topic/other", CLOUDEVENT, event(), 400, "the address says other"),
    ("/topic", CLOUDEVENT, event(source="/agents/boss"), 403, "posts as shop"),
    ("/topic", BATCH, event(), 400, "Expected `array`"),
    ("/topic", BATCH, [event(), event(id=7)], 400, "at `$[1].id`"),
    ("/topic", BATCH, [event(), event(type=None)], 400, "at `$[1]`"),
    ("/topic", BATCH, [event(), 7], 400, "at `$[1]`"),
    ("/topic", BATCH, [event(id="twice"), event(id="twice")], 400, "another event of the batch"),
    ("/topic", BATCH, [event(), event(source="/agents/x")], 403, "at `$[1]`"),
    ("/topic", BATCH, b"[" + b",".join([b"1"] * 1001) + b"]", 413, "at most 1,000"),
    ("/topic", "application/json", {"q": 1}, 400, "has no type"),
    ("/topic/q", "application/json", b"{q}", 400, "json"),
    ("/topic/q", "application/json; charset=latin-1", b"1", 415, "UTF-8"),
    ("/topic/q", "application/x-www-form-urlencoded", b"q=1", 415, "application/json"),
    ("/topic/q", "application/cloudevents+avro", b"q", 415, "application/json"),
    ("/topic/q", "application/json", b"1" * 20_001, 413, "20,000 bytes"),
    ("/inbox/billing/q", "application/json", b"1", 403, "inbox.billing.shop.q"),
    ("/inbox/a.b/q", "application/json", b"1", 400, "agent name"),
    ("/memory/x", "application/json", b"1", 404, "POST or GET /inbox/<agent>"),
    ("/topic/a/b", "application/json", b"1", 404, "POST or GET /inbox/<agent>"),
    ("/events", "application/json", b"1", 405, "GET"),
]


def test_what_is_malformed_is_refused_with_the_reason_and_nothing_of_it_stored(
    shop: Client, log: Log
) -> None:
    last = log.last()
    for path, kind, body, status, detail in MALFORMED:
        answer = shop.post(path, body, kind)
        assert answer.status == status, (path, body, answer)
        assert detail in answer.json["detail"], (path, body, answer)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["status"] == status and answer.json["title"]
    assert log.last() == last


def test_binary_headers_are_checked_as_members_are(shop: Client, log: Log) -> None:
    last = log.last()
    about = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
    for change, detail in [
        ({"ce-id": ""}, "`ce-id` must not be empty"),
        ({"ce-id": "a%0Ab"}, "`id` must have"),
        ({"ce-specversion": "0.3"}, "specversion"),
        ({"ce-my_own": "x"}, "header `ce-my_own` is not allowed"),
        ({"Content-Type": "application/json", "body": "{"}, "json"),
    ]:
        headers = {**about, "Content-Type": "text/plain", **change}
        body = headers.pop("body", "x").encode()
        answer = shop.ask("POST", "/topic", body, headers)
        assert (answer.status, detail in answer.json["detail"]) == (400, True), answer
    assert log.last() == last


def test_a_body_that_is_longer_than_it_said_is_refused(shop: Client, log: Log) -> None:
    last = log.last()
    chunks = (b"x" * 5_000 for _ in range(10))
    shop._http.request(
        "POST",
        "/topic/q",
        chunks,
        {"Authorization": f"Bearer {secret('shop')}"},
        encode_chunked=True,
    )
    assert shop._http.getresponse().status == 413
    shop.close()
    answer = shop.post("/topic/q", b"1", "application/json", **{"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert log.last() == last


def test_only_who_has_a_token_may_post(shared: Gateway, log: Log) -> None:
    last = log.last()
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic c2hvcDp4"}):
        client = Client(shared.port)
        answer = client.ask("POST", "/topic/q", b"1", headers)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        client.close()
    assert log.last() == last
    client = Client(shared.port)
    answer = client.post(f"/topic/q?access_token={secret('shop')}", b"1", "application/json")
    assert answer.sequences
    client.close()


def test_who_posts_more_than_agreed_is_told_when_to_come_again(shared: Gateway) -> None:
    client = Client(shared.port, secret("slow"))
    assert client.post("/topic/q", b"1", "application/json").sequences
    answer = client.post("/topic/q", b"1", "application/json")
    assert answer.status == 429
    assert 1 <= int(answer.headers["retry-after"]) <= 100
    client.close()


def test_pages_of_the_named_origins_may_ask_and_no_others(shared: Gateway, shop: Client) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "ce-id"}
    client = Client(shared.port)
    ours = client.ask("OPTIONS", "/topic/q", None, {"Origin": "https://shop.example", **asked})
    assert ours.status == 200
    assert ours.headers["access-control-allow-origin"] == "https://shop.example"
    assert "ce-id" in ours.headers["access-control-allow-headers"]
    other = client.ask("OPTIONS", "/topic/q", None, {"Origin": "https://evil.example", **asked})
    assert (other.status, "access-control-allow-origin" in other.headers) == (400, False)
    client.close()
    answer = shop.post("/topic/q", b"1", "application/json", Origin="https://shop.example")
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"


def test_senders_of_webhooks_are_told_that_they_may(shared: Gateway, shop: Client) -> None:
    asked = {"WebHook-Request-Origin": "grid.example"}
    answer = shop.ask("OPTIONS", "/topic/sale.made", None, asked)
    assert (answer.status, answer.headers["webhook-allowed-origin"]) == (200, "grid.example")
    assert answer.headers["webhook-allowed-rate"] == "*"
    assert shared.get("/topic").status == 401
    client = Client(shared.port)
    assert client.ask("OPTIONS", "/topic/sale.made", None, asked).status == 401
    client.close()


def test_many_at_once_are_all_stored_and_each_is_told_its_own_place(
    shared: Gateway, log: Log
) -> None:
    def post(_: int) -> dict[str, int]:
        client = Client(shared.port, secret("shop"))
        given = [event() for _ in range(10)]
        found = {each["id"]: client.post("/topic", each).sequences[0] for each in given}
        client.close()
        return found

    start = log.last() + 1
    with ThreadPoolExecutor(20) as pool:
        told = [each for found in pool.map(post, range(20)) for each in found.items()]
    stored = {message.id: message.sequence for message in log.all("topic.shop.>", start=start)}
    assert stored == dict(told)
    assert len(stored) == 200


def test_it_says_how_it_is(shared: Gateway, shop: Client) -> None:
    assert shared.get("/healthz").body == b"ok\n"
    assert shared.get("/readyz").json["ready"] is True
    shop.post("/topic", event())
    page = shared.get("/metrics").body.decode()
    for name in (
        'requests_total{status="202",token="shop"}', 'events_total{token="shop"}',
        "post_seconds_count", "streams",
    ):  # fmt: skip
        assert f"stratum_gateway_{name} " in page
    for path in ("/healthz", "/topic"):
        assert shop.ask("PUT", path).status == 405
    assert shop.ask("PUT", "/topic").headers["allow"] == "GET, POST, OPTIONS"
    assert shop.ask("HEAD", "/healthz").status == 200
