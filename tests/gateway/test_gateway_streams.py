"""The log as Server-Sent Events: in order, once each, from where it was left."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
from cloudevents.core.formats.json import JSONFormat

from stratum_bus.bus import Bus
from stratum_bus.event import Event, new
from stratum_bus.publish import Append
from stratum_bus.server import Server
from stratum_bus.testing import fresh, server
from tests.gateway.conftest import Log
from tests.gateway.process import (
    ANSWER_SECONDS,
    BATCH,
    Client,
    Gateway,
    Stream,
    gateway,
    secret,
    token,
)

READER = token("reader", 'reads = ["topic.>"]\nmay = ["topic.>"]')


def event(**changes: Any) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": str(uuid4()), "source": "/tills/7", "type": "sale.made"}
    return {**made, **changes}


def post(client: Client, *numbers: int, type: str = "sale.made") -> list[int]:
    return client.post("/topic", [event(data=n, type=type) for n in numbers], BATCH).sequences


def test_a_stream_begins_where_it_was_left_and_goes_on(shared: Gateway, shop: Client) -> None:
    first, second, third = post(shop, 1, 2, 3)
    for path, last in [
        (f"/topic?from={second}", None),
        (f"/topic?last_event_id={first}", None),
        ("/topic", first),
        ("/topic?from=start", first),
    ]:
        stream = Stream(shared.port, path, secret("shop"), last)
        assert [told.id for told in stream.events(2)] == [second, third]
        [after] = post(shop, 4)
        while (told := stream.events(1)[0]).id < after:  # those of the rounds before
            pass
        assert (told.id, told.data["data"], told.name) == (after, 4, "message")
        stream.close()


def test_without_a_place_it_begins_with_what_comes(shared: Gateway, shop: Client) -> None:
    post(shop, 1)
    stream = Stream(shared.port, "/topic/sale.made", secret("shop"))
    [after] = post(shop, 2)
    assert stream.events(1)[0].id == after
    stream.close()


def test_only_what_was_asked_for_is_sent(shared: Gateway, shop: Client) -> None:
    kind = f"kind-{uuid4()}"
    [first] = post(shop, 1, type=kind)
    post(shop, 2, type="another")
    [mail] = shop.post(f"/inbox/research/{kind}", 3, "application/json").sequences
    [second] = post(shop, 4, type=kind)
    for path, wanted in [
        (f"/topic/{kind}", [first, second]),
        (f"/inbox/research/{kind}", [mail]),
        (f"/events?subject=topic.*.{kind}&subject=inbox.*.*.{kind}", None),
        (
            f"/events?subject=topic.*.{kind}&subject=inbox.research.shop.{kind}",
            [first, mail, second],
        ),
    ]:
        separator = "&" if "?" in path else "?"
        address = f"{path}{separator}from={first}"
        if wanted is None:
            answer = shop.ask("GET", address)
            assert answer.status == 403
            assert f"may not read inbox.*.*.{kind}" in answer.json["detail"]
            continue
        stream = Stream(shared.port, address, secret("shop"))
        assert [told.id for told in stream.events(len(wanted))] == wanted
        stream.close()


def test_what_cannot_be_read_is_refused_before_it_begins(shared: Gateway, shop: Client) -> None:
    for path, headers, status, detail in [
        ("/events?subject=run.>", {}, 403, "may not read run.>"),
        ("/events?subject=>", {}, 403, "may not read >"),
        ("/inbox/*", {}, 403, "may not read inbox.*.>"),
        ("/events?subject=topic.a..b", {}, 400, "empty token"),
        ("/events?subject=topic.a.>&subject=topic.*.b", {}, 400, "overlap"),
        ("/topic?from=yesterday", {}, 400, "is no position"),
        ("/topic", {"Last-Event-ID": "x"}, 400, "is no sequence"),
        ("/topic", {"Last-Event-ID": "99999999"}, 400, "behind the log's last"),
    ]:
        answer = shop.ask("GET", path, None, headers)
        assert (answer.status, detail in answer.json["detail"]) == (status, True), answer
    client = Client(shared.port, secret("hook"))
    assert client.ask("GET", "/topic").status == 403
    client.close()
    assert shared.get("/topic").status == 401


def test_events_come_completed_and_what_is_none_under_another_name(
    shared: Gateway, shop: Client, log: Log
) -> None:
    payloads = [
        (b'{"q": 1}', {}),
        (b'{"specversion":"1.0",\n"id":"x1","source":"/s","type":"sale.made",\n"tenant":"blue"}', {}),
        (b"hello", {"ce-id": "x2", "ce-source": "/s", "ce-type": "t", "Content-Type": "text/plain"}),
        (b"{", {}),
    ]  # fmt: skip

    async def store(bus: Bus) -> int:
        for payload, headers in payloads:
            await bus.connection.request("topic.till.sale.made", payload, headers)
        large: Event[Any] = new("sale.made", "x" * 20_000, source="/agents/till", id=str(uuid4()))
        return (await bus.publish("topic.till.sale.made", large)).sequence

    last = log.do(store)
    stream = Stream(shared.port, f"/topic?from={last - 4}", secret("shop"))
    found = stream.events(5)
    stream.close()
    assert [told.id for told in found] == list(range(last - 4, last + 1))
    assert [told.name for told in found] == ["message"] * 3 + ["unreadable", "message"]
    bare, envelope, binary, unreadable, large = (told.data for told in found)
    assert (bare["id"], bare["source"], bare["data"]) == (
        f"LOG-{last - 4}",
        "/agents/till",
        {"q": 1},
    )
    assert envelope["tenant"] == "blue" and envelope["time"]
    assert (binary["id"], binary["data"]) == ("x2", "hello")
    assert unreadable["subject"] == "topic.till.sale.made" and "json" in unreadable["reason"]
    assert large["data"] == "x" * 20_000 and "dataref" not in large
    for told in (bare, envelope, binary, large):
        assert JSONFormat().read(None, json.dumps(told).encode()).get_id() == told["id"]


def test_streams_that_are_left_are_let_go(shared: Gateway, shop: Client) -> None:
    def wait_for(count: int) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while shared.metric("streams") != count:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    wait_for(0)  # those of the tests before
    streams = [Stream(shared.port, "/topic?from=start", secret("shop")) for _ in range(5)]
    assert shared.metric("streams") == 5
    for stream in streams:
        stream.close()
    wait_for(0)


def test_who_does_not_read_costs_no_memory_and_misses_nothing(tmp_path: Path) -> None:
    size, count = 15_000, 2_000

    async def fill(bus: Bus) -> None:
        made = (new("sale.made", "x" * size, source="/agents/till") for _ in range(count))
        await bus.publish_many(Append("topic.till.sale.made", each) for each in made)

    settings = "remember = 0\n" + READER
    with server() as nats, _provisioned(nats), gateway(tmp_path, nats.url, settings) as ours:
        slow = [_unread(ours.port) for _ in range(3)]
        Log(nats.url).do(fill)
        fast = Stream(ours.port, "/topic?from=start", secret("reader"))
        before = ours.resident_bytes
        assert [told.id for told in fast.events(count)] == list(range(1, count + 1))
        assert ours.resident_bytes - before < size * count / 2  # three of them read nothing
        fast.close()
        rest = slow[0].makefile("rb")
        slow[0].settimeout(ANSWER_SECONDS)
        found: list[int] = []
        while len(found) < count:
            line = rest.readline()
            if line.startswith(b"id: "):
                found.append(int(line[4:]))
        assert found == list(range(1, count + 1))
        rest.close()
        for connection in slow:
            connection.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Gateway]]:
    """A server and a gateway that are killed and stopped, by the last tests here."""
    folder = tmp_path_factory.mktemp("own")
    with server() as nats, _provisioned(nats), gateway(folder, nats.url, READER) as ours:
        yield nats, ours


def test_a_restart_of_the_server_makes_no_gap_and_doubles_nothing(
    own: tuple[Server, Gateway],
) -> None:
    nats, ours = own
    client = Client(ours.port, secret("reader"))
    stream = Stream(ours.port, "/topic", secret("reader"))
    sequences = post(client, *range(10))
    found = stream.events(10)
    for outage in range(2):
        nats.kill()
        refused = client.post("/topic", event())
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "may be sent again" in refused.json["detail"]
        assert ours.get("/healthz").status == 200
        assert ours.get("/readyz").status == 503
        assert client.ask("GET", "/topic").status == 503
        nats.restart()
        ours.wait_ready()
        while (answer := client.post("/topic", [event(data=outage)], BATCH)).status == 503:
            time.sleep(0.05)
        sequences += answer.sequences + post(client, *range(10))
        found += stream.events(len(sequences) - len(found))
    assert [told.id for told in found] == sequences
    stream.close()
    client.close()


def test_it_ends_its_streams_and_finishes_its_posts_when_it_is_stopped(
    own: tuple[Server, Gateway],
) -> None:
    nats, ours = own
    before = Log(nats.url).last()
    stream = Stream(ours.port, "/topic", secret("reader"))
    answered: list[int] = []

    def keep_posting() -> None:
        client = Client(ours.port, secret("reader"))
        try:
            while True:
                answered.extend(client.post("/topic", event()).sequences)
        except OSError:
            client.close()

    with ThreadPoolExecutor(4) as pool:
        posting = [pool.submit(keep_posting) for _ in range(4)]
        first = stream.events(20)
        code = ours.terminate()
        for each in posting:
            each.result()
    told = [*first, *stream.events(1_000_000)]
    stream.close()
    assert code == 0, ours.log
    assert [each.id for each in told] == list(range(before + 1, before + len(told) + 1))
    stored = [message.sequence for message in Log(nats.url).all(start=before + 1)]
    assert sorted(answered) == stored


class _provisioned:
    """A server with the streams."""

    def __init__(self, nats: Server) -> None:
        self._nats = nats

    def __enter__(self) -> None:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, fresh, self._nats.url).result()

    def __exit__(self, *_: object) -> None:
        pass


def _unread(port: int) -> socket.socket:
    """A connection that asks for everything and takes nothing of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    head = f"GET /topic?from=start HTTP/1.0\r\nAuthorization: Bearer {secret('reader')}\r\n\r\n"
    connection.sendall(head.encode())
    return connection
