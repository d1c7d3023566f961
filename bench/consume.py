"""A message's way: stored, delivered, handled, acknowledged. Its latency, and how many a second."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any

import anyio
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig

from bench.harness import SYNCS, Series, Turn, bare_event, both, event, in_turns, say, server
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, consume
from stratum_bus.event import typed, uuid7

OFFERED_PER_SECOND = 500
LATENCY_SECONDS = 1.5
PRODUCERS = 32
PRODUCE_SECONDS = 1.0
CONCURRENCY = 64

Write = Callable[[str, float], Coroutine[Any, Any, object]]
"""Stores a message that says when it was offered for an agent."""


class Handled:
    """What a handler saw: how long each message took to it, in seconds."""

    def __init__(self) -> None:
        self.seconds: Turn = []
        self.last = 0.0
        self._more = anyio.Event()

    def add(self, offered: float) -> None:
        self.last = perf_counter()
        self.seconds.append(self.last - offered)
        self._more.set()

    async def reaches(self, count: int) -> None:
        with anyio.fail_after(60):
            while len(self.seconds) < count:
                self._more = anyio.Event()
                await self._more.wait()


Consuming = Callable[[str], AbstractAsyncContextManager[Handled]]


async def run() -> None:
    for sync in SYNCS:
        say(f"consume, sync {sync}")
        async with server(sync) as url, both(url) as writers, both(url) as readers:
            ours = partial(_write, writers[0]), partial(_consuming, readers[0])
            bare = partial(_bare_write, writers[1]), partial(_bare_consuming, readers[1])
            series = Series("consume", sync, "nats-py fetch")
            turns = await in_turns(partial(_latency, *ours), partial(_latency, *bare))
            series.latencies(f"publish to handler at {OFFERED_PER_SECOND}/s", *turns)
            rates = await in_turns(partial(_rate, *ours), partial(_rate, *bare))
            series.rates(f"handled, {PRODUCERS} producers", *rates, "messages/s")


async def _latency(write: Write, consuming: Consuming) -> Turn:
    """Publish to handler, messages being offered at a fixed rate whatever becomes of them."""
    agent, count = f"a{uuid7()}", int(OFFERED_PER_SECOND * LATENCY_SECONDS)
    async with consuming(agent) as handled, anyio.create_task_group() as tasks:
        await _warm_up(write, agent, handled)
        start = perf_counter()
        for number in range(count):
            due = start + number / OFFERED_PER_SECOND
            await anyio.sleep(max(0.0, due - perf_counter()))
            tasks.start_soon(write, agent, perf_counter())
        await handled.reaches(count)
    return handled.seconds


async def _rate(write: Write, consuming: Consuming) -> float:
    """Messages a second from the first that is offered to the last that is handled."""
    agent, stored = f"a{uuid7()}", 0
    async with consuming(agent) as handled:
        await _warm_up(write, agent, handled)
        start = perf_counter()

        async def produce() -> None:
            nonlocal stored
            while (now := perf_counter()) < start + PRODUCE_SECONDS:
                await write(agent, now)
                stored += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(PRODUCERS):
                tasks.start_soon(produce)
        await handled.reaches(stored)
    return stored / (handled.last - start)


async def _warm_up(write: Write, agent: str, handled: Handled) -> None:
    """Wait until the consumer is at work."""
    await write(agent, 0.0)
    await handled.reaches(1)
    handled.seconds.clear()


async def _write(bus: Bus, agent: str, offered: float) -> object:
    return await bus.publish(f"inbox.{agent}.load.test", event({"offered": offered}))


@asynccontextmanager
async def _consuming(bus: Bus, agent: str) -> AsyncIterator[Handled]:
    handled, stop = Handled(), anyio.Event()

    async def handle(delivery: Delivery) -> None:
        handled.add(typed(delivery.event, dict).data["offered"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(consume, bus, agent, handle, stop=stop, concurrency=CONCURRENCY))
        yield handled
        stop.set()


async def _bare_write(js: JetStreamContext, agent: str, offered: float) -> object:
    payload, headers = bare_event({"offered": offered})
    return await js.publish(f"inbox.{agent}.load.test", payload, headers=headers)


@asynccontextmanager
async def _bare_consuming(js: JetStreamContext, agent: str) -> AsyncIterator[Handled]:
    handled, stopped = Handled(), False
    config = ConsumerConfig(max_ack_pending=10_000)
    pull = await js.pull_subscribe(f"inbox.{agent}.>", agent, "LOG", config)

    async def work() -> None:
        while not stopped:
            with suppress(TimeoutError):
                for message in await pull.fetch(CONCURRENCY, timeout=0.5):
                    handled.add(json.loads(message.data)["data"]["offered"])
                    await message.ack()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        yield handled
        stopped = True
    await pull.unsubscribe()
