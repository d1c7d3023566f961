"""What a tick says of a real server: consumers, journals, streams."""

from __future__ import annotations

from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_agents.worker import work
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, Leave, consume
from stratum_bus.data_dir import DataDir
from stratum_bus.event import Event, new
from stratum_bus.server import Server
from stratum_bus.testing import eventually
from stratum_bus.thresholds import HealthConfig, Looping
from stratum_projections.health.known import Known, Life, Mark, Moment
from stratum_projections.health.look import (
    FILLS_EVERY,
    POSITIONS_EVERY,
    RUNS_EVERY,
    RUNS_MAX,
    Look,
    suspects,
)
from stratum_projections.health.observed import Observed, Repetition

CONFIG = HealthConfig(looping=Looping(repeats=3, among=6, seconds=5))


async def send(bus: Bus, agent: str, count: int) -> None:
    for number in range(count):
        await bus.publish(subject.inbox(agent, "x", "task"), new("task", number, source="/x"))


async def until_positions(look: Look, known: Known) -> Observed:
    """The next tick at which consumers are looked at."""
    for _ in range(POSITIONS_EVERY):
        seen = await look.take(known, 0)
        if seen.positions is not None:
            return seen
    raise AssertionError("no positions")


async def test_an_agents_consumer_is_seen_while_it_has_something_to_do(bus: Bus) -> None:
    look, stop = Look(bus, CONFIG), anyio.Event()
    await send(bus, "a", 3)
    taken = 0

    async def keep(delivery: Delivery) -> Leave:
        nonlocal taken
        taken += 1
        return Leave()

    async def work() -> None:
        await consume(bus, "a", keep, stop=stop, concurrency=1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await eventually(lambda: taken == 3)
        [seen] = (await until_positions(look, Known())).positions or []
        assert (seen.agent, seen.in_hand, seen.delivered, seen.settled) == ("a", 3, 3, 0)
        await bus.publish(subject.run("a", "r1"), new("stratum.run.suspended", {}, source="/a"))
        [seen] = (await until_positions(look, Known())).positions or []
        assert seen.journal == 4
        stop.set()


async def test_an_idle_consumer_is_left_out_and_so_is_who_only_reads(bus: Bus) -> None:
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:

        async def done(delivery: Delivery) -> None:
            stop.set()

        async def work() -> None:
            await consume(bus, "a", done, stop=stop)

        tasks.start_soon(work)
        await send(bus, "a", 1)
        await stop.wait()
    async with bus.read(filters=["inbox.a.>"]):

        async def idle() -> bool:
            return (await until_positions(Look(bus, CONFIG), Known())).positions == []

        await eventually(idle)


async def until_repetitions(look: Look, known: Known) -> list[Repetition]:
    """What the next look into journals says."""
    for _ in range(RUNS_EVERY):
        if found := (await look.take(known, 0)).repetitions:
            return found
    raise AssertionError("no repetitions")


def working(*runs: str) -> Known:
    """An agent that works on runs for long, step by step."""
    then, now = Moment(0, 1), Moment(60_000_000_000, 99)
    life = Life(agent="a", instance="i", kind="agent", first=then, progress=now)
    for number, run in enumerate(runs, 1):
        life.marks["LOG", number] = Mark(run, "9", now, then)
    return Known(now=now, lives={life.key: life})


async def add_steps(bus: Bus, run: str, *results: Any, name: str = "search") -> None:
    for result in results:
        data = {"name": f"step:{name}", "result": result}
        entry = new("stratum.run.step.completed", data, source="/agents/a")
        await bus.publish(subject.run("a", run), entry)


async def test_calls_that_repeat_are_counted_in_the_journal_of_a_run_in_hand(bus: Bus) -> None:
    known, look = working("r1"), Look(bus, CONFIG)
    assert suspects(known, CONFIG) == [("a", "r1")]
    await add_steps(bus, "r1", 1, 2, 2, 3, 2)
    [seen] = (await look.take(known, 0)).repetitions
    assert (seen.run, seen.call, seen.times, seen.among) == ("r1", "step:search", 3, 5)
    assert (seen.first, seen.last) == (2, 5)
    await add_steps(bus, "r1", 4, 5, 6, 7, 8)
    [seen] = await until_repetitions(look, known)
    assert (seen.times, seen.among) == (1, 6)


async def test_the_same_arguments_count_and_not_the_same_result(bus: Bus) -> None:
    known, look = working("r1"), Look(bus, CONFIG)
    for arguments in ("a1", "a2", "a1", "a1"):
        data = {"name": "step:search", "arguments": arguments, "result": "nothing"}
        entry = new("stratum.run.step.completed", data, source="/agents/a")
        await bus.publish(subject.run("a", "r1"), entry)
    [seen] = (await look.take(known, 0)).repetitions
    assert (seen.times, seen.among) == (3, 4)


async def test_a_real_run_that_asks_the_same_again_and_again_is_seen(bus: Bus) -> None:
    agent, stop = Agent("a"), anyio.Event()

    async def search(words: str, at: int) -> list[str]:
        return []

    @agent.on("task")
    async def circle(run: Run, event: Event[Any]) -> None:
        for number in range(6):
            await run.step("search", search, "the same", at=number % 2)
        stop.set()

    await send(bus, "a", 1)
    await work(bus, agent, stop=stop)
    async with bus.read(filters=["run.a.>"]) as reader:
        run = subject.parse((await reader.batch(1, 1))[0].subject).run
    [seen] = (await Look(bus, CONFIG).take(working(run), 0)).repetitions
    assert (seen.call, seen.times, seen.among) == ("step:search", 3, 6)


async def test_a_wait_between_calls_makes_them_no_loop(bus: Bus) -> None:
    known, look = working("r1"), Look(bus, CONFIG)
    await add_steps(bus, "r1", 1, 1, 1)
    await bus.publish(subject.run("a", "r1"), new("stratum.run.waiting", {}, source="/agents/a"))
    await add_steps(bus, "r1", 1)
    [seen] = (await look.take(known, 0)).repetitions
    assert seen.times == 1


async def test_of_many_suspects_each_has_its_turn(bus: Bus) -> None:
    runs = [f"r{n:02}" for n in range(RUNS_MAX + 3)]
    known, look = working(*runs), Look(bus, CONFIG)
    for run in runs:
        await add_steps(bus, run, 1)
    first = await until_repetitions(look, known)
    second = await until_repetitions(look, known)
    assert len(first) == len(second) == RUNS_MAX
    assert {each.run for each in first + second} == set(runs)


async def test_a_run_that_was_just_taken_is_no_suspect() -> None:
    known = working("r1")
    [life] = known.lives.values()
    mark = life.marks["LOG", 1]
    mark.begun = Moment(known.now.ns - 1_000_000_000, 90)
    assert suspects(known, CONFIG) == []
    mark.begun = mark.at = Moment(0, 1)
    assert suspects(known, CONFIG) == []  # it does not move: it is stuck, and no loop


async def test_the_store_and_limited_streams_are_looked_at_now_and_then(
    bus: Bus, nats_server: Server
) -> None:
    look = Look(bus, CONFIG, DataDir(nats_server.data_dir))
    fills = [(await look.take(Known(), 0)).fills for _ in range(FILLS_EVERY + 1)]
    assert [i for i, each in enumerate(fills) if each is not None] == [0, FILLS_EVERY]
    [store] = fills[0] or []
    assert store.stream == ""
    assert 0 <= store.bytes < store.max_bytes
