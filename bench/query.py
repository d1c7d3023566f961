"""SQL through NATS on a million stored events, at rest and while 5,000 more come in each second.

The projector, and whoever stores events meanwhile, are processes of their own; one client asks, one
query after the other. Also said: how far the tables are behind the log meanwhile, and whether the
projector keeps up while 20 clients ask, half of them heavy queries.

    python -m bench query
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter

import anyio

import stratum_bus
from bench.harness import Line, event, percentile, report, say, server
from stratum_bus.bus import Bus
from stratum_bus.errors import QueryError
from stratum_bus.publish import Append
from stratum_bus.tasks import task_group
from stratum_projections import ask

STORED = int(os.environ.get("STRATUM_BENCH_EVENTS", "1000000"))
RATE = 5_000
EVERY_SECONDS = 0.02
SYNC = "1s"
QUERIES = 300
SETTLE_SECONDS = 3.0
READERS = 20
READERS_SECONDS = 10.0

POINT = "select * from events where seq = {n}"
AGGREGATE = "select type, count(*), max(seq) - {n} as last from events group by type"
HEAVY = "select source, count(distinct id), max(data) from events group by source order by {n}"


async def run() -> None:
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        async with (
            server(SYNC) as url,
            stratum_bus.connect(url, name="bench") as bus,
            _process("stratum_projections", "--url", url, "--path", f"{folder}/t.duckdb"),
        ):
            say(f"query: storing {STORED:,} events")
            await bus.publish_many(Append("inbox.b.a.bench.test", event()) for _ in range(STORED))
            await _reflects(bus, STORED)
            await _asked(bus, "at rest")
            async with _process("bench.query", url):
                await anyio.sleep(SETTLE_SECONDS)
                await _asked(bus, f"at {RATE:,} events/s")
                await _crowd(bus)


@asynccontextmanager
async def _process(module: str, *arguments: str) -> AsyncIterator[None]:
    command = [sys.executable, "-m", module, *arguments]
    process = await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=None)
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _reflects(bus: Bus, sequence: int) -> None:
    """Return when all tables do."""
    with anyio.fail_after(600):
        while True:
            try:
                await ask(bus, "select 1", wait_for=sequence, timeout_seconds=9)
                return
            except QueryError as error:
                if error.reason not in ("no_projector", "behind"):
                    raise
                await anyio.sleep(0.1)


async def _asked(bus: Bus, when: str) -> None:
    for metric, sql, count in (("point query", POINT, QUERIES), ("aggregate", AGGREGATE, QUERIES)):
        samples = []
        for n in range(count):
            start = perf_counter()
            await ask(bus, sql.format(n=n * 9973 % STORED + 1))
            samples.append(perf_counter() - start)
        for percent in (50, 99):
            value = round(percentile(samples, percent) * 1e3, 2)
            report(Line("query", f"{metric} {when} p{percent}", value, "ms", SYNC))


async def _crowd(bus: Bus) -> None:
    """How far the tables get in comparison with the log while many ask."""
    served = [0]

    async def reader(heavy: bool) -> None:
        chance = random.Random(served[0])
        while True:
            sql = (HEAVY if heavy else POINT).format(n=chance.randrange(1, 3))
            await ask(bus, sql, timeout_seconds=10)
            served[0] += 1

    async with task_group() as tasks:
        began, first = perf_counter(), (await ask(bus, "select 1")).sequence
        for number in range(READERS):
            tasks.start_soon(partial(reader, number % 2 == 0))
        await anyio.sleep(READERS_SECONDS)
        tasks.cancel_scope.cancel()
    last = (await ask(bus, "select 1")).sequence
    seconds = perf_counter() - began
    report(Line("query", f"queries of {READERS} readers", round(served[0] / seconds), "1/s", SYNC))
    rate = round((last - first) / seconds)
    report(Line("query", f"projected meanwhile, of {RATE:,}", rate, "events/s", SYNC))


async def _offer(url: str) -> None:
    """Store events at RATE until killed."""

    async with stratum_bus.connect(url, name="bench-offer") as bus:
        due = perf_counter()
        while True:
            count = int(RATE * EVERY_SECONDS)
            await bus.publish_many(Append("inbox.b.a.bench.test", event()) for _ in range(count))
            due += EVERY_SECONDS
            await anyio.sleep(max(0.0, due - perf_counter()))


if __name__ == "__main__":
    anyio.run(_offer, sys.argv[1])
