"""One gateway for all tests that do nothing to it, on a server of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio
import pytest

from stratum_bus.bus import Bus, connect
from stratum_bus.message import Message
from stratum_bus.server import Server
from stratum_bus.testing import fresh, server
from tests.gateway.process import Client, Gateway, gateway, secret, token

T = TypeVar("T")

SETTINGS = (
    'max_bytes = 20000\norigins = ["https://shop.example"]\n'
    + token(
        "shop", 'may = ["inbox.research.>", "topic.>"]\nreads = ["topic.>", "inbox.research.>"]'
    )
    + token("hook", 'agent = "hooks"\nmay = ["topic.>"]\nid_header = "X-Delivery"')
    + token("slow", 'may = ["topic.>"]\nper_second = 0.01')
)


class Log:
    """What is done to the log beside HTTP."""

    def __init__(self, url: str) -> None:
        self.url = url

    def do(self, what: Callable[[Bus], Awaitable[T]]) -> T:
        async def run() -> T:
            async with connect(self.url) as bus:
                return await what(bus)

        with ThreadPoolExecutor(1) as pool:  # this thread may already have an event loop
            return pool.submit(anyio.run, run).result()

    def last(self) -> int:
        """The log's last sequence."""

        async def ask(bus: Bus) -> int:
            info = await bus.connection.api("STREAM.INFO.LOG")
            return int(info["state"]["last_seq"])

        return self.do(ask)

    def get(self, sequence: int) -> Message:
        return self.do(lambda bus: bus.get("LOG", sequence))

    def all(self, *filters: str, start: int = 1) -> list[Message]:
        async def read(bus: Bus) -> list[Message]:
            async with bus.read(filters=filters, start=start) as reader:
                return [message async for message in reader]

        return self.do(read)


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    with server() as started:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(anyio.run, fresh, started.url).result()
        yield started


@pytest.fixture(scope="session")
def shared(shared_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("gateway")
    with gateway(folder, shared_server.url, SETTINGS) as started:
        yield started


@pytest.fixture
def log(shared_server: Server) -> Log:
    return Log(shared_server.url)


@pytest.fixture
def shop(shared: Gateway) -> Iterator[Client]:
    """Whoever has the token `shop`."""
    client = Client(shared.port, secret("shop"))
    yield client
    client.close()
