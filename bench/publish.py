"""Writing: an awaited append, an atomic commit, many writers at once, and bulk."""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from time import perf_counter

import anyio
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from bench.harness import (
    SYNCS,
    Series,
    Turn,
    bare_event,
    both,
    event,
    in_turns,
    say,
    server,
)
from stratum_bus.bus import Bus
from stratum_bus.publish import Append

SUBJECT = "inbox.bench.load.test"
TURN_SECONDS = 0.5
WRITERS = (1, 50, 200)

Write = Callable[[], Awaitable[object]]


async def run() -> None:
    for sync in SYNCS:
        say(f"publish, sync {sync}")
        async with server(sync) as url, both(url) as (bus, js):
            await _one_at_a_time(bus, js, sync)
            await _at_once(bus, js, sync)
            await _bulk(bus, js, sync)


async def _one_at_a_time(bus: Bus, js: JetStreamContext, sync: str) -> None:
    ours, peer = await in_turns(
        partial(_latencies, partial(_append, bus)),
        partial(_latencies, partial(_bare_append, js)),
    )
    Series("publish", sync, "nats-py publish").latencies("awaited append", ours, peer)
    ours, peer = await in_turns(
        partial(_latencies, partial(_commit, bus)),
        partial(_latencies, partial(_bare_commit, js)),
    )
    Series("publish", sync, "nats-py by hand").latencies("atomic commit of 3", ours, peer)


async def _at_once(bus: Bus, js: JetStreamContext, sync: str) -> None:
    series = Series("publish", sync, "nats-py publish")
    for writers in WRITERS:
        ours, peer = await in_turns(
            partial(_rate, partial(_append, bus), writers),
            partial(_rate, partial(_bare_append, js), writers),
        )
        series.rates(f"appends, {writers} at once", ours, peer, "appends/s")


async def _bulk(bus: Bus, js: JetStreamContext, sync: str) -> None:
    ours, peer = await in_turns(partial(_bulk_rate, bus), partial(_bare_bulk_rate, js))
    Series("publish", sync, "nats-py publish_async").rates("bulk", ours, peer, "events/s")


async def _append(bus: Bus) -> object:
    return await bus.publish(SUBJECT, event())


async def _bare_append(js: JetStreamContext) -> object:
    payload, headers = bare_event()
    return await js.publish(SUBJECT, payload, headers=headers)


async def _commit(bus: Bus) -> object:
    return await bus.commit([Append(SUBJECT, event()) for _ in range(3)])


async def _bare_commit(js: JetStreamContext) -> object:
    client, batch, reply = js._nc, uuid.uuid4().hex, Msg(js._nc)
    for number in (1, 2, 3):
        payload, headers = bare_event()
        headers |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
        if number == 2:
            await client.publish(SUBJECT, payload, headers=headers)
            continue
        if number == 3:
            headers["Nats-Batch-Commit"] = "1"
        reply = await client.request(SUBJECT, payload, headers=headers, timeout=5)
    answer = json.loads(reply.data)
    if answer.get("count") != 3:
        raise RuntimeError(f"the commit by hand was refused: {answer}")
    return answer


async def _latencies(write: Write) -> Turn:
    """How long each of many writes took, one after the other."""
    samples: Turn = []
    until = perf_counter() + TURN_SECONDS
    while (start := perf_counter()) < until:
        await write()
        samples.append(perf_counter() - start)
    return samples


async def _rate(write: Write, writers: int) -> float:
    """Writes a second of so many writers, each of which waits for its own."""
    done = 0
    start = perf_counter()

    async def writer() -> None:
        nonlocal done
        while perf_counter() - start < TURN_SECONDS:
            await write()
            done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(writers):
            tasks.start_soon(writer)
    return done / (perf_counter() - start)


async def _bulk_rate(bus: Bus) -> float:
    start = perf_counter()

    def appends() -> Iterator[Append]:
        while perf_counter() - start < TURN_SECONDS:
            yield Append(SUBJECT, event())

    stored = await bus.publish_many(appends())
    return stored / (perf_counter() - start)


async def _bare_bulk_rate(js: JetStreamContext) -> float:
    start, sent = perf_counter(), 0
    while perf_counter() - start < TURN_SECONDS:
        payload, headers = bare_event()
        await js.publish_async(SUBJECT, payload, headers=headers, wait_stall=5)
        sent += 1
    await js.publish_async_completed()
    return sent / (perf_counter() - start)
