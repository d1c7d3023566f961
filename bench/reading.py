"""The log read from its beginning, as the projector does: two ways of ours and nats-py's `fetch`.

200,000 events of some 370 bytes and two headers. `…_cpu_us` is what the reading process itself
spends on an event; the server spends about 3 us more on the other processor.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import Any

from msgspec import Struct
from msgspec.structs import replace
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bench.harness import Line, Series, both, report, say, server
from stratum_bus.bulk import columns, read_columns
from stratum_bus.bus import Bus
from stratum_bus.event import Event, new, uuid7
from stratum_bus.frames import Frames, cut, delivered_to
from stratum_bus.publish import Append

EVENTS_STORED = 200_000
BATCH = 5_000
TABLE = 20_000
ROUNDS = 3
AGAINST = "nats-py fetch"
SYNC = "1s"


class Turn(Struct, frozen=True):
    """One reading of all events."""

    events_per_s: float
    cpu_us: float


async def run() -> None:
    say(f"reading: storing {EVENTS_STORED:,} events")
    async with server(SYNC) as url, both(url) as (bus, js):
        await bus.publish_many(_appends(EVENTS_STORED))
        ways: dict[str, Callable[[], Awaitable[int]]] = {
            "fetch": lambda: _fetched(js),
            "messages": lambda: _messages(bus),
            "columns": lambda: _columns(bus),
        }
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name in sorted(ways, reverse=number % 2 == 1):
                turns[name].append(await _measured(ways[name]))
    series, peer = Series("reading", SYNC, AGAINST), turns.pop("fetch")
    for name, ours in turns.items():
        series.rates(f"{name}_events_per_s", _rates(ours), _rates(peer), "events/s")
    for name, ours in {"fetch": peer, **turns}.items():
        cpu = median(turn.cpu_us for turn in ours)
        report(Line("reading", f"{name}_cpu_us", round(cpu, 2), "us"))
    _steps()


def _rates(turns: list[Turn]) -> list[float]:
    return [turn.events_per_s for turn in turns]


async def _measured(way: Callable[[], Awaitable[int]]) -> Turn:
    cpu, start = process_time(), perf_counter()
    read = await way()
    seconds, cpu = perf_counter() - start, process_time() - cpu
    assert read == EVENTS_STORED
    return Turn(read / seconds, cpu / read * 1e6)


async def _fetched(js: JetStreamContext) -> int:
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    reading = await js.pull_subscribe("", stream="LOG", config=config)
    read = 0
    while read < EVENTS_STORED:
        read += len(await reading.fetch(BATCH, timeout=5))
    await reading.unsubscribe()
    return read


async def _messages(bus: Bus) -> int:
    """One large pull, and a callback for each message."""
    read = 0
    async with bus.read(window=2 * TABLE) as reader:
        while not reader.ended:
            read += len(await reader.batch(TABLE, 1))
    return read


async def _columns(bus: Bus) -> int:
    """The same pull, its frames cut out in bulk."""
    read = 0
    async with read_columns(bus, start=1) as reading:
        while not reading.ended:
            read += (await reading.batch(TABLE, 1)).num_rows
    return read


def _steps() -> None:
    """What the two steps of a bulk reading take, with no server beside them."""
    line, pieces = delivered_to(2), list(_pieces(TABLE, each=500))
    times: list[tuple[float, float]] = []
    for _ in range(10):
        start = thread_time()
        runs = [Frames(piece, cut(piece, 0, line)[0]) for piece in pieces]
        middle = thread_time()
        assert columns(runs).num_rows == TABLE
        times.append((middle - start, thread_time() - middle))
    for metric, seconds in zip(("cut_us", "table_us"), zip(*times, strict=True), strict=True):
        report(Line("reading", metric, round(median(seconds) / TABLE * 1e6, 2), "us"))


def _pieces(count: int, *, each: int) -> Iterator[bytes]:
    """Messages as a server sends them."""
    block, payload = b"NATS/1.0\r\n" + b"x" * 100 + b"\r\n\r\n", b"x" * 370
    sizes = b"%d %d" % (len(block), len(block) + len(payload))
    for first in range(1, count + 1, each):
        yield b"".join(
            b"HMSG inbox.agent-%d.agent-%d.paper.published 2 "
            b"$JS.ACK.LOG.read-01a1fce3-05fb-7ab4-bf7c-5714a4da19e8.1.%d.%d.%d.%d %b\r\n%b%b\r\n"
            % (n % 50, n % 37, n, n, 1795244099254998877 + n, count - n, sizes, block, payload)
            for n in range(first, first + each)
        )


def _appends(count: int) -> Iterator[Append]:
    chance = random.Random(1)
    for n in range(count):
        sender, to = f"agent-{chance.randrange(50)}", f"agent-{chance.randrange(50)}"
        body = {"n": n, "text": "x" * 100, "tags": ["a", "b"], "score": round(chance.random(), 3)}
        event: Event[Any] = new("paper.published", body, source=f"/agents/{sender}")
        yield Append(f"inbox.{to}.{sender}.paper.published", replace(event, causationid=uuid7()))
