"""kill -9 of a gateway, and of its server, while it is posted to and read from: every 202 is in
the log, once."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import anyio
import pytest

from stratum_bus.bus import Bus
from stratum_bus.event import Event
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

KILLS = 3
BETWEEN_KILLS = 100
POSTERS = 8
SETTINGS = token("till", 'may = ["topic.>"]\nreads = ["topic.>"]')


class Posting:
    """Clients that post the same event until it is answered, as good ones do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.answered: dict[str, int] = {}
        self.broken = 0

    def run(self) -> None:
        client = Client(self._port, secret("till"))
        while not self._stop.is_set():
            for size in (1, 1, 3):
                self._post(client, [str(uuid4()) for _ in range(size)])
        client.close()

    def _post(self, client: Client, ids: list[str]) -> None:
        about = {"specversion": "1.0", "source": "/tills/1", "type": "sale.made"}
        events = [{**about, "id": id} for id in ids]
        while True:
            try:
                if len(ids) == 1:
                    answer = client.post("/topic", events[0])
                else:
                    answer = client.post("/topic", events, BATCH)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                time.sleep(0.02)
                continue
            if answer.status == 503:  # it is just starting
                time.sleep(0.02)
                continue
            first = answer.sequences[0]
            assert answer.sequences == list(range(first, first + len(ids)))
            self.answered.update(zip(ids, answer.sequences, strict=True))
            return

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while len(self.answered) < count:
            assert time.monotonic() < deadline, len(self.answered)
            time.sleep(0.005)

    def stop(self) -> None:
        self._stop.set()


class Reading:
    """A reader that comes back with the last id it has seen, as a browser does."""

    def __init__(self, ours: Gateway) -> None:
        self._ours = ours
        self.found: list[int] = []

    def run(self, done: threading.Event) -> None:
        last: int | None = None
        while not done.is_set():
            try:
                stream = Stream(self._ours.port, "/topic?from=start", secret("till"), last)
            except (OSError, http.client.HTTPException):
                time.sleep(0.02)
                continue
            while told := stream.events(1):
                last = told[0].id
                if told[0].name == "unreadable":
                    break
                self.found.append(last)
            stream.close()


@pytest.fixture(scope="module")
def nats() -> Iterator[Server]:
    with server() as started:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, fresh, started.url).result()
        yield started


@pytest.fixture(scope="module")
def ours(nats: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway(tmp_path_factory.mktemp("crash"), nats.url, SETTINGS) as started:
        yield started


def test_every_202_is_in_the_log_once_and_readers_miss_nothing(nats: Server, ours: Gateway) -> None:
    log = Log(nats.url)
    with ThreadPoolExecutor() as pool:
        posting, reading, done = Posting(ours.port), Reading(ours), threading.Event()
        posters = [pool.submit(posting.run) for _ in range(POSTERS)]
        reader = pool.submit(reading.run, done)
        for _ in range(KILLS):
            posting.wait(len(posting.answered) + BETWEEN_KILLS)
            ours.kill()
            ours.start()
        posting.wait(len(posting.answered) + BETWEEN_KILLS)
        nats.kill()
        nats.restart()
        posting.wait(len(posting.answered) + BETWEEN_KILLS)
        posting.stop()
        for each in posters:
            each.result()
        stored = {message.id: message.sequence for message in log.all()}
        assert stored == posting.answered
        assert len(stored) == log.last() >= KILLS * BETWEEN_KILLS
        assert posting.broken >= KILLS
        done.set()
        log.do(_end)
        reader.result()
        assert reading.found == sorted(stored.values())


async def _end(bus: Bus) -> None:
    """Something that ends the reader."""
    await bus.connection.request("topic.till.sale.made", b"{")


def test_an_id_is_known_beyond_the_dedupe_window_and_after_a_kill(
    nats: Server, ours: Gateway
) -> None:
    def event(id: str) -> dict[str, str]:
        return {"specversion": "1.0", "id": id, "source": "/tills/1", "type": "sale.made"}

    log = Log(nats.url)
    log.do(_forgetful)
    client = Client(ours.port, secret("till"))
    first = client.post("/topic", event("a"))
    log.do(lambda bus: _until_forgotten(bus, "a"))
    last = log.last()
    assert client.post("/topic", event("a")).body == first.body
    ours.kill()
    client.close()
    ours.start()
    assert client.post("/topic", event("a")).body == first.body
    assert client.post("/topic", {**event("a"), "source": "/x"}).status == 409
    assert log.last() == last
    # what somebody else posted as the same sender, while this one ran
    other = log.do(_by_another)
    log.do(lambda bus: _until_forgotten(bus, "behind it"))
    deadline = time.monotonic() + ANSWER_SECONDS
    while ours.metric("known_sequence") < other:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    last = log.last()
    assert client.post("/topic", event("b")).sequences == [other]
    assert log.last() == last
    client.close()


async def _forgetful(bus: Bus) -> None:
    """From now on the server forgets ids after a tenth of a second."""
    info = await bus.connection.api("STREAM.INFO.LOG")
    config = {**info["config"], "duplicate_window": 100_000_000}
    await bus.connection.api("STREAM.UPDATE.LOG", config)


async def _until_forgotten(bus: Bus, id: str) -> None:
    """Until the server would store another message of this id (which it does)."""
    last = (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"]
    while (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"] == last:
        await bus.connection.request("topic.somebody.else", b"1", {"Nats-Msg-Id": id})
        await anyio.sleep(0.05)


async def _by_another(bus: Bus) -> int:
    event: Event[None] = Event(id="b", source="/tills/1", type="sale.made")
    ack = await bus.publish("topic.till.sale.made", event)
    await bus.connection.request("topic.somebody.else", b"1", {"Nats-Msg-Id": "behind it"})
    return ack.sequence
