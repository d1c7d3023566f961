"""`@agent.every`: runs that the server's clock starts."""

from __future__ import annotations

import itertools
from typing import Any

import anyio

from stratum_agents.agent import SCHEDULED, Agent
from stratum_agents.run import Run
from stratum_agents.testing import runs
from stratum_agents.worker import SCHEDULES, Worker, work
from stratum_bus import subject, timer
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery
from stratum_bus.event import Event
from stratum_bus.testing import eventually
from tests.agents.conftest import ids

PULSE = SCHEDULED + "pulse"


def _agent(beats: list[str]) -> Agent:
    agent = Agent("heart")

    @agent.every("1s")
    async def pulse(run: Run, event: Event[Any]) -> None:
        beats.append(run.id)
        await run.publish("heart.beat", event.type)

    return agent


async def test_a_schedule_starts_one_run_at_each_time_over_two_instances(bus: Bus) -> None:
    beats: list[str] = []
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(lambda: work(bus, _agent(beats), stop=stop))
        await eventually(lambda: len(beats) >= 2)
        stop.set()
    fired = await _times(bus)
    assert len(beats) == len(set(beats)) == len(await ids(bus, "topic.heart.>"))
    # What fired and what began are as many, or the last has just fired.
    assert len(fired) - len(beats) in (0, 1)
    assert all(0.7 < later - earlier < 1.5 for earlier, later in itertools.pairwise(fired))


async def _times(bus: Bus) -> list[float]:
    async with bus.read(timer.STREAM, filters=["fire.heart.schedule.pulse"]) as reader:
        return [message.time_ns / 1e9 async for message in reader]


async def test_a_schedule_keeps_its_time_where_its_agent_restarts_more_often_than_it_fires(
    bus: Bus,
) -> None:
    agent = Agent("heart")

    @agent.every("1h")
    async def pulse(run: Run, event: Event[Any]) -> None:
        pass

    async def kept() -> tuple[int, int]:
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: work(bus, agent, stop=stop))
            of = subject.timer("heart", SCHEDULES, "pulse")
            await eventually(lambda: bus.last(of))
            stop.set()
        message = await bus.last(of)
        assert message is not None
        return message.sequence, message.time_ns

    first = await kept()
    assert await kept() == first
    # Another schedule under the name takes its place.
    agent.schedules["pulse"] = "@every 2h"
    assert await kept() != first


async def test_a_scheduled_run_sleeps_longer_than_what_fired_is_kept(bus: Bus) -> None:
    agent = Agent("heart")

    @agent.every("24h", name="nightly")
    async def tidy(run: Run, event: Event[Any]) -> str:
        await run.sleep(days=30)
        return event.type

    async with runs(bus, agent) as kit:
        fire = subject.fire("heart", SCHEDULES, "nightly")
        await bus.connection.request(fire, b'{"run":"schedule","timer":"nightly"}')
        message = await bus.last(fire)
        assert message is not None
        for attempt in (1, 2):  # delivered twice, it begins one run
            fired = Delivery(message, await bus.event(message), attempt)
            await Worker(bus, agent).handle(fired)
            await kit.settle()
        [event] = await kit.events("inbox.heart.>")
        await bus.connection.api(f"STREAM.PURGE.{timer.STREAM}", {"filter": "fire.>"})
        await kit.advance(days=30)
        [completed] = [
            e for e in await kit.events("run.heart.>") if e.type.endswith("run.completed")
        ]
        assert event.type == SCHEDULED + "nightly"
        assert completed.causationid == event.id
