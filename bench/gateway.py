"""The gateway: single events posted over HTTP, as many as go and 2,000 a second, and read again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct

from bench.harness import BODY, SYNCS, Line, Series, in_turns, percentile, report, say, server
from stratum_bus.child import Child
from stratum_bus.event import uuid7

CONNECTIONS = 50
TURN_SECONDS = 3.0
OFFERED_PER_SECOND = 2000
OFFERED_SECONDS = 10.0
AGAINST = "Starlette + nats-py publish"

SECRET = "bench-secret-0123456789"
CONFIG = f"""
[gateway]
port = 0
[gateway.tokens.bench]
secret = "{SECRET}"
may = ["inbox.>"]
"""


class Target(Struct, frozen=True):
    """A process that is posted to."""

    port: int
    pid: int

    def processor_seconds(self) -> float:
        """What it has used; 0 where that is not known."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load(Struct):
    """What came of posting: how long each took that was answered with 202, and what it took of the
    target's processor, in seconds."""

    seconds: float
    samples: list[float]
    processor: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.samples) / self.seconds


async def run() -> None:
    for sync in SYNCS:
        say(f"gateway, sync {sync}, load average {os.getloadavg()[0]:.1f}")
        async with server(sync) as url, AsyncExitStack() as stack:
            bare = str(Path(__file__).parent / "peers" / "bare_gateway.py")
            ours = await stack.enter_async_context(_process(["-m", "stratum_cli", "gateway"], url))
            peer = await stack.enter_async_context(_process([bare, url], url))
            for each in (ours, peer):
                await _as_many(each, seconds=1.0)
            await _posts(ours, peer, sync)
            say(f"load average {os.getloadavg()[0]:.1f}")


async def _posts(ours: Target, peer: Target, sync: str) -> None:
    mine, bare = await in_turns(partial(_as_many, ours), partial(_as_many, peer))
    series = Series("gateway", sync, AGAINST)
    rates = [[load.rate for load in side] for side in (mine, bare)]
    series.rates(f"posts, {CONNECTIONS} at once", rates[0], rates[1], "posts/s")
    samples = [[load.samples for load in side] for side in (mine, bare)]
    series.latencies(f"post, {CONNECTIONS} at once", samples[0], samples[1])
    if bare_cost := _cost(bare):
        cost = _cost(mine)
        ratio = round(cost / bare_cost, 2)
        report(Line("gateway", "processor time of a post", cost, "us", sync, AGAINST, ratio))
    load = await _paced(ours)
    metric = f"posts, {OFFERED_PER_SECOND} offered"
    report(Line("gateway", metric, round(load.rate), "posts/s", sync))
    for percent in (50, 99):
        value = round(percentile(load.samples, percent) * 1e3, 3)
        report(Line("gateway", f"{metric} p{percent}", value, "ms", sync))


def _cost(loads: Sequence[Load]) -> float:
    """Microseconds of a processor; unlike the rates it does not move with what else runs."""
    posts = sum(len(load.samples) for load in loads)
    return round(sum(load.processor for load in loads) / posts * 1e6, 1)


async def _as_many(target: Target, seconds: float = TURN_SECONDS) -> Load:
    """Each connection posts the next event when the one before is answered."""
    load = Load(seconds, [])
    end = perf_counter() + seconds

    async def post(connection: Connection) -> None:
        while (start := perf_counter()) < end:
            await connection.post()
            load.samples.append(perf_counter() - start)

    used = target.processor_seconds()
    await _on_connections(target.port, post)
    load.processor = target.processor_seconds() - used
    return load


async def _paced(target: Target) -> Load:
    """So many a second from all together; who is late is measured from when it was due."""
    load = Load(OFFERED_SECONDS, [])
    begin = perf_counter()
    due = iter(range(int(OFFERED_PER_SECOND * OFFERED_SECONDS)))

    async def post(connection: Connection) -> None:
        for number in due:
            at = begin + number / OFFERED_PER_SECOND
            if (left := at - perf_counter()) > 0:
                await asyncio.sleep(left)
            elif -left > OFFERED_SECONDS - number / OFFERED_PER_SECOND:
                return  # the time is over, and there are more than could be posted
            await connection.post()
            load.samples.append(perf_counter() - at)

    await _on_connections(target.port, post)
    load.seconds = max(OFFERED_SECONDS, perf_counter() - begin)
    return load


async def _on_connections(
    port: int, post: Callable[[Connection], Coroutine[Any, Any, None]]
) -> None:
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(CONNECTIONS)
    ]
    async with anyio.create_task_group() as tasks:
        for connection in connections:
            tasks.start_soon(post, connection)
    for connection in connections:
        connection.close()


class Connection(asyncio.Protocol):
    """One kept open, over which one post after the other goes."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answered: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def post(self) -> None:
        """Returns when it is answered; raises RuntimeError for anything but 202."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        event = {
            "specversion": "1.0", "id": uuid7(), "source": "/bench", "type": "bench.test",
            "time": "2026-11-21T00:00:00Z", "data": BODY,
        }  # fmt: skip
        body = json.dumps(event).encode()
        head = (
            "POST /inbox/bench HTTP/1.1\r\nHost: gateway\r\n"
            f"Authorization: Bearer {SECRET}\r\nContent-Type: application/cloudevents+json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        await self._answered

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r")[0] or 0)
        if not found or len(body) < size or self._answered is None or self._answered.done():
            return
        self._buffer = body[size:]
        if head.startswith(b"HTTP/1.1 202 "):
            self._answered.set_result(None)
        else:
            self._answered.set_exception(RuntimeError(head.decode() + body.decode()))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(exc or ConnectionResetError("closed by the server"))

    def close(self) -> None:
        assert self._transport is not None
        self._transport.close()


@contextmanager
def _files() -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as name:
        folder = Path(name)
        (folder / "stratum.toml").write_text(CONFIG)
        yield folder, folder / "log"


@asynccontextmanager
async def _process(arguments: list[str], url: str) -> AsyncIterator[Target]:
    """A process that listens."""
    with _files() as (folder, log), log.open("wb") as output:
        environ = {**os.environ, "STRATUM_NATS_URL": url}
        child = Child(
            [sys.executable, *arguments], output=output, environ=environ, folder=str(folder)
        )
        try:
            while not (said := log.read_text()).endswith("\n"):
                if child.exit_code is not None:
                    raise subprocess.SubprocessError(said)
                await anyio.sleep(0.02)
            yield Target(int(said.strip().rpartition(":")[2]), child.pid)
        finally:
            await anyio.to_thread.run_sync(child.stop, 10.0)
