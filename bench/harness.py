"""What the measurements share: a server of their own, turns with the peer, one JSON line a number."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import nats
from msgspec import Struct
from nats.aio.client import Client
from nats.js import JetStreamContext

import stratum_bus
from stratum_bus.bus import Bus
from stratum_bus.event import Event, new
from stratum_bus.server import embedded, free_port
from stratum_bus.stream import load_streams, provision

ROUNDS = 3
SYNCS = ("always", "1s")
"""The server's `sync_interval`: every stored event is fsynced, or once a second."""

BODY = {"text": "x" * 200, "n": 17, "tags": ["a", "b"]}

T = TypeVar("T")


class Line(Struct, frozen=True, omit_defaults=True):
    """One number. `ratio` is `value` over what the peer named `against` reached in the same run."""

    bench: str
    metric: str
    value: float
    unit: str
    sync: str = ""
    against: str = ""
    ratio: float | None = None


def report(line: Line) -> None:
    """One JSON object on stdout; the keys that say nothing are left out."""
    fields = {name: getattr(line, name) for name in line.__struct_fields__}
    print(json.dumps({k: v for k, v in fields.items() if v not in ("", None)}), flush=True)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Series(Struct, frozen=True):
    """What is measured: the fields that all lines of one comparison have in common."""

    bench: str
    sync: str
    against: str

    def rates(self, metric: str, ours: Sequence[float], peer: Sequence[float], unit: str) -> None:
        """A line with the median of the rounds; more is better."""
        self._line(metric, statistics.median(ours), statistics.median(peer), unit)

    def latencies(self, metric: str, ours: Sequence[Turn], peer: Sequence[Turn]) -> None:
        """A line each for the median and the 99th percentile of all rounds, in milliseconds."""
        for percent in (50, 99):
            values = [percentile([s for turn in t for s in turn], percent) for t in (ours, peer)]
            self._line(f"{metric} p{percent}", values[0] * 1e3, values[1] * 1e3, "ms")

    def _line(self, metric: str, ours: float, peer: float, unit: str) -> None:
        value = round(ours, 3) if ours < 100 else round(ours)
        ratio = round(ours / peer, 2)
        report(Line(self.bench, metric, value, unit, self.sync, self.against, ratio))


Turn = list[float]
"""The samples of one turn, in seconds."""


async def in_turns(
    ours: Callable[[], Awaitable[T]], peer: Callable[[], Awaitable[T]], rounds: int = ROUNDS
) -> tuple[list[T], list[T]]:
    """Both sides once each a round, the first of them changing: noise then meets both alike."""
    results: tuple[list[T], list[T]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            results[side].append(await (ours, peer)[side]())
    return results


@asynccontextmanager
async def server(sync: str) -> AsyncIterator[str]:
    """The address of an empty server with all streams, in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        async with embedded(Path(folder), port=free_port(), sync=sync) as running:
            async with stratum_bus.connect(running.url, name="bench-setup") as bus:
                await provision(bus.connection, load_streams())
            yield running.url


@asynccontextmanager
async def both(url: str) -> AsyncIterator[tuple[Bus, JetStreamContext]]:
    """A bus and a bare nats-py client, each with a connection of its own."""
    async with stratum_bus.connect(url, name="bench") as bus:
        client: Client = await nats.connect(url)
        try:
            yield bus, client.jetstream(publish_async_max_pending=4000)
        finally:
            await client.close()


def event(data: Any = BODY) -> Event[Any]:
    return new("bench.test", data, source="/bench")


def bare_event(data: Any = BODY) -> tuple[bytes, dict[str, str]]:
    """The same event made by hand, with the headers that go with it."""
    id = str(uuid.uuid4())
    body = {
        "specversion": "1.0", "id": id, "source": "/bench", "type": "bench.test",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "data": data,
    }  # fmt: skip
    headers = {"Nats-Msg-Id": id, "Content-Type": "application/cloudevents+json"}
    return json.dumps(body).encode(), headers


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that `percent` of them do not exceed."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
