"""Many steps in a run, and many runs that wait."""

from __future__ import annotations

import gc
from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.core import Core
from stratum_agents.journal import STEP_COMPLETED, Journal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import runs
from stratum_agents.worker import work
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event, new
from stratum_bus.publish import Append
from stratum_bus.testing import eventually
from tests.agents.conftest import kinds

STEPS = 10_000


async def test_a_run_of_ten_thousand_steps_is_resumed_in_its_middle_and_at_its_end(
    bus: Bus,
) -> None:
    agent, done = Agent("walker"), 0

    async def step(number: int) -> int:
        nonlocal done
        done += 1
        return number

    @agent.on("walk")
    async def walk(run: Run, event: Event[Any]) -> int:
        total = 0
        for number in range(STEPS):
            total += await run.step("step", step, number)
        await run.sleep(days=1)
        return total

    async with runs(bus, agent) as kit:
        kit.crash(STEPS // 2, stored=True)
        run = await kit.start("walk")
        await kit.advance(days=1)
        assert await kit.result(run) == STEPS * (STEPS - 1) // 2
        assert (kit.crashed, done) == (1, STEPS)
        assert kinds(await kit.journal(run)).count(STEP_COMPLETED) == STEPS


async def test_a_thousand_runs_that_wait_take_no_memory_and_all_end(bus: Bus) -> None:
    agent, waiting = Agent("sleeper", concurrency=64), 1000

    async def load(number: int) -> str:
        return f"{number}" * 1000

    @agent.on("sleep")
    async def sleep(run: Run, event: Event[int]) -> int:
        kept = await run.step("load", load, event.data)
        await run.wait_for("word")
        return len(kept)

    events = [new("sleep", number, source="/test", id=f"s{number}") for number in range(waiting)]
    runs_ = [run_id("sleeper", event.id) for event in events]
    stop = anyio.Event()

    async def in_state(state: str) -> int:
        found: dict[str, str] = {}
        async with bus.read(filters=["run.sleeper.>"]) as reader:
            async for message in reader:
                found[message.subject] = message.event().type
        return sum(type == state for type in found.values())

    async def all_wait() -> bool:
        return await in_state("stratum.run.waiting") == len(started)

    async def all_ended() -> bool:
        return await in_state("stratum.run.completed") == waiting

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: work(bus, agent, stop=stop))
        in_memory: list[int] = []
        started: list[Event[int]] = []
        for part in (events[:100], events[100:]):
            await bus.publish_many(
                Append(subject.inbox("sleeper", "test", "sleep"), event) for event in part
            )
            started += part
            await eventually(all_wait, within_seconds=40)
            gc.collect()
            alive = gc.get_objects()
            assert sum(isinstance(each, Journal | Core | Run) for each in alive) == 0
            in_memory.append(len(alive))
            del alive
        # Ten times as many runs; a journal in memory would be some 30 objects.
        assert in_memory[1] - in_memory[0] < waiting
        words = [
            Append(
                subject.inbox("sleeper", "test", "word"),
                Event(id=f"w{run}", source="/test", type="word", torun=run, data=None),
            )
            for run in runs_
        ]
        await bus.publish_many(words)
        await eventually(all_ended, within_seconds=40)
        stop.set()
    assert (await Journal(bus, "sleeper", runs_[-1]).load()).state == "completed"
