"""The test kit: a real server on a free port, clean streams for each test, and waiting.

In a project's `conftest.py`:

    pytest_plugins = ["stratum_bus.testing"]

Then a test asks for `bus` (connected, clean streams), `bus_url` (clean streams) or `nats_server`
(the server of the run; do not kill it). A test that kills and restarts one starts its own with
`server()`. `bus` is an async fixture: run such tests with anyio's pytest plugin on asyncio.
"""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, overload

import anyio
import pytest

from stratum_bus import jetstream
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import Refused
from stratum_bus.server import Server, free_port
from stratum_bus.stream import load_streams, provision

__all__ = ("bus", "bus_url", "eventually", "fresh", "nats_server", "server")

T = TypeVar("T")

_NO_STORE = 10049
_ATTEMPTS = 5


@contextmanager
def server(data_dir: Path | str | None = None, *, sync: str = "2m") -> Iterator[Server]:
    """A real server on a free port, started in some 30 ms; its streams are not yet created.

    Without `data_dir` its data is in a temporary folder. `sync` is fast by default: it bears
    `.kill()` (kill -9) and `.restart()`, which keeps port and data, but no power cut.
    """
    with tempfile.TemporaryDirectory(prefix="stratum-") as temporary:
        started = Server(data_dir or temporary, port=free_port(), sync=sync)
        try:
            started.start_blocking()
            yield started
        finally:
            started.stop()


async def fresh(url: str) -> None:
    """Delete every stream of the server with its consumers, and create the declared ones.

    LOG forbids to purge it, so this is the way; it takes some 15 ms.
    """
    async with jetstream.connect(url, name="fresh-streams") as connection:
        while names := (await connection.api("STREAM.NAMES")).get("streams"):
            for name in names:
                await connection.api(f"STREAM.DELETE.{name}")
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await provision(connection, load_streams())
                return
            except Refused as error:
                # Rarely the folder of a stream that was deleted is still being removed.
                if error.code != _NO_STORE or attempt == _ATTEMPTS:
                    raise
            await anyio.sleep(0.05 * attempt)


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, within_seconds: float = 5.0) -> T: ...
@overload
async def eventually(check: Callable[[], T], *, within_seconds: float = 5.0) -> T: ...
async def eventually(check: Callable[[], Awaitable[T] | T], *, within_seconds: float = 5.0) -> T:
    """Ask again and again until the answer is true, and return it; AssertionError after the time.

    Exceptions of `check` pass through.
    """
    deadline = time.monotonic() + within_seconds
    while True:
        answer = check()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_seconds:g} s; the last answer was {value!r}")
        await anyio.sleep(0.01)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[Server]:
    """One server for the whole run."""
    with server() as started:
        yield started


@pytest.fixture
def bus_url(nats_server: Server) -> str:
    """The server's URL, with clean streams."""
    with ThreadPoolExecutor(1) as pool:  # this thread may already have an event loop
        pool.submit(anyio.run, fresh, nats_server.url).result()
    return nats_server.url


@pytest.fixture
async def bus(bus_url: str) -> AsyncIterator[Bus]:
    """A connected bus on clean streams."""
    async with connect(bus_url, name="test") as connected:
        yield connected
