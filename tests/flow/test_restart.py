"""What starts or works while the server is away."""

from __future__ import annotations

from functools import partial

import anyio

from stratum_bus import connect, subject
from stratum_bus.consume import Delivery, consume
from stratum_bus.event import new
from stratum_bus.stream import load_streams, provision
from stratum_bus.testing import eventually, server


async def test_an_agent_that_starts_while_the_server_is_away_waits_for_it() -> None:
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.event.id)

    with server() as running:
        async with connect(running.url, patience_seconds=20) as bus:
            await provision(bus.connection, load_streams())
            running.kill()
            await eventually(lambda: not bus.connection.connected)
            stop = anyio.Event()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(consume, bus, "late", handle, stop=stop))
                await anyio.wait_all_tasks_blocked()
                await running.start()
                event = new("test.thing", 1, source="/test")
                await bus.publish(subject.inbox("late", "test", "test.thing"), event)
                await eventually(lambda: handled == [event.id], within_seconds=20)
                stop.set()
