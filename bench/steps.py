"""Durable steps: one run, many at once, a handler without any, and going on with a long one.

What a step needs is one append, so the same appends by bare nats-py are the bound: one after the
other for one run, by as many writers as there are runs for many.
"""

from __future__ import annotations

import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import anyio
from msgspec.structs import replace
from nats.js import JetStreamContext

from bench.harness import ROUNDS, SYNCS, Line, Series, Turn, both, report, say, server
from bench.peers.peer import Peer, peers
from stratum_agents.agent import Agent
from stratum_agents.run import Run, run_id
from stratum_agents.worker import work
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event, new, uuid7
from stratum_bus.publish import Append

ONE_RUN_STEPS = 400
STEPS = 20
AT_ONCE = (50, 200)
PLAIN_EVENTS = 200
LONG_STEPS = 1_000
RESUMES = 9
ENTRIES_OF_A_RESUME = 5
"""The signal, its input, the take-over, the end of the wait, and the next one."""

PEER_STEPS = {1: 100, 50: 5, 200: 2}
"""Fewer, since they take their time; a rate does not depend on it."""

RESULT = {"text": "x" * 200, "n": 17, "tags": ["a", "b"]}
BARE = "nats-py publish"
OURS = "ours"

T = TypeVar("T")


async def run() -> None:
    async with peers() as engines:
        for sync in SYNCS:
            say(f"steps, sync {sync}")
            async with server(sync) as url, both(url) as (bus, js), _working(bus) as bench:
                same = engines if sync == "always" else []  # a SQLite commit is synced
                await _one_run(bench, js, same, sync)
                for runs in AT_ONCE:
                    await _at_once(bench, js, same, sync, runs)
                await _plain(bench, sync)
                await _resume(bench, sync)


class Bench:
    """An agent that does as its events say, and what came of it."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.name = f"b{uuid7()[-12:]}"
        self.agent = Agent(self.name, concurrency=max(AT_ONCE))
        self.agent.on("bench.steps")(self._steps)
        self.agent.on("bench.plain")(self._plain)
        self.agent.on("bench.long")(self._long)
        self.samples: Turn = []
        self.passed = 0.0
        self._due = 0
        self._returned = anyio.Event()

    async def many(self, runs: int, steps: int) -> float:
        """Steps a second, from the first event that is sent to the last end that is stored."""
        end = await self.stored() + runs * (1 + steps + 1)
        self.samples.clear()
        self._due, self._returned = runs, anyio.Event()
        start = perf_counter()
        await self.send("bench.steps", steps, runs)
        await self._returned.wait()  # to ask the server meanwhile would take a share
        await self.reaches(end)
        return runs * steps / (perf_counter() - start)

    async def one(self, steps: int) -> Turn:
        """How long each step of a single run took."""
        await self.many(1, steps)
        return list(self.samples)

    async def send(self, type: str, data: int, count: int = 1) -> str:
        """So many events; returns the run of the last."""
        to = subject.inbox(self.name, "bench", type)
        events = [new(type, data, source="/bench") for _ in range(count)]
        await self.bus.publish_many([Append(to, event) for event in events])
        return run_id(self.name, events[-1].id)

    async def signal(self, run: str) -> None:
        event: Event[Any] = new("bench.go", None, source="/bench")
        to = subject.inbox(self.name, "bench", "bench.go")
        await self.bus.publish(to, replace(event, torun=run))

    async def stored(self) -> int:
        info = await self.bus.connection.api("STREAM.INFO.LOG")
        return int(info["state"]["last_seq"])

    async def reaches(self, sequence: int) -> None:
        with anyio.fail_after(60):
            while await self.stored() < sequence:  # noqa: ASYNC110 - a reader would take more
                await anyio.sleep(0.002)

    async def _steps(self, run: Run, event: Event[int]) -> None:
        for _ in range(event.data):
            start = perf_counter()
            await run.step("work", _result)
            self.samples.append(perf_counter() - start)
        self._due -= 1
        if not self._due:
            self._returned.set()

    async def _plain(self, run: Run, event: Event[int]) -> None:
        pass

    async def _long(self, run: Run, event: Event[int]) -> None:
        for _ in range(event.data):
            await run.step("work", _result)
        while True:
            await run.wait_for("bench.go")
            self.passed = perf_counter()


async def _result() -> dict[str, Any]:
    return RESULT


@asynccontextmanager
async def _working(bus: Bus) -> AsyncIterator[Bench]:
    bench, stop = Bench(bus), anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(work, bus, bench.agent, stop=stop))
        await bench.many(max(AT_ONCE), 2)
        yield bench
        stop.set()


async def _one_run(bench: Bench, js: JetStreamContext, engines: list[Peer], sync: str) -> None:
    sides: dict[str, Callable[[], Awaitable[Turn]]] = {
        OURS: partial(bench.one, ONE_RUN_STEPS),
        BARE: partial(_bare_one, bench, js),
    }
    sides |= {peer.name: partial(peer.one, PEER_STEPS[1]) for peer in engines}
    turns = await _in_turns(sides)
    ours = turns.pop(OURS)
    for name, theirs in turns.items():
        series = Series("steps", sync, name)
        mine, other = ([len(turn) / sum(turn) for turn in side] for side in (ours, theirs))
        series.rates("steps_per_s_1", mine, other, "steps/s")
        series.latencies("step of one run", ours, theirs)


async def _at_once(
    bench: Bench, js: JetStreamContext, engines: list[Peer], sync: str, runs: int
) -> None:
    sides: dict[str, Callable[[], Awaitable[float]]] = {
        OURS: partial(bench.many, runs, STEPS),
        BARE: partial(_bare_many, bench, js, runs),
    }
    sides |= {peer.name: partial(peer.many, runs, PEER_STEPS[runs]) for peer in engines}
    turns = await _in_turns(sides)
    ours = turns.pop(OURS)
    for name, theirs in turns.items():
        Series("steps", sync, name).rates(f"steps_per_s_{runs}", ours, theirs, "steps/s")


async def _plain(bench: Bench, sync: str) -> None:
    before = await bench.stored()
    await bench.send("bench.plain", 0, PLAIN_EVENTS)
    await bench.reaches(before + 2 * PLAIN_EVENTS)
    await anyio.sleep(0.2)  # for what would come on top
    appends = (await bench.stored() - before) / PLAIN_EVENTS - 1
    report(Line("steps", "handler_without_steps", appends, "appends", sync))


async def _resume(bench: Bench, sync: str) -> None:
    """From the signal that is sent to the handler behind 1,000 journaled steps and its wait."""
    end = await bench.stored() + 1 + LONG_STEPS + 1
    run = await bench.send("bench.long", LONG_STEPS)
    await bench.reaches(end)
    samples = []
    for _ in range(RESUMES):
        end += ENTRIES_OF_A_RESUME
        start = perf_counter()
        await bench.signal(run)
        await bench.reaches(end)
        samples.append(bench.passed - start)
    value = round(statistics.median(samples) * 1e3, 1)
    report(Line("steps", f"resume_{LONG_STEPS}_ms", value, "ms", sync))


async def _in_turns(
    sides: Mapping[str, Callable[[], Awaitable[T]]], rounds: int = ROUNDS
) -> dict[str, list[T]]:
    """Each side once a round, in changing order."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            results[name].append(await sides[name]())
    return results


async def _bare_one(bench: Bench, js: JetStreamContext) -> Turn:
    return await _bare_run(js, await _entry_bytes(bench), ONE_RUN_STEPS)


async def _bare_many(bench: Bench, js: JetStreamContext, runs: int) -> float:
    payload = await _entry_bytes(bench)
    start = perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(runs):
            tasks.start_soon(_bare_run, js, payload, STEPS)
    return runs * STEPS / (perf_counter() - start)


async def _bare_run(js: JetStreamContext, payload: bytes, appends: int) -> Turn:
    """A journal's appends: awaited one after the other, each with id and expectation."""
    to, last, samples = subject.run("bare", uuid7()), 0, []
    for _ in range(appends):
        start = perf_counter()
        headers = {
            "Nats-Msg-Id": uuid7(),
            "Content-Type": "application/cloudevents+json",
            "Nats-Expected-Last-Subject-Sequence": str(last),
        }
        last = (await js.publish(to, payload, headers=headers)).seq
        samples.append(perf_counter() - start)
    return samples


async def _entry_bytes(bench: Bench) -> bytes:
    """The bytes of a step's entry, as the journal of a run of this agent has them."""
    run = await bench.send("bench.steps", 2)
    with anyio.fail_after(10):
        while True:
            async with bench.bus.read(filters=[subject.run(bench.name, run)]) as reader:
                entries = [message.payload async for message in reader]
            if len(entries) == 3:
                return entries[1]
