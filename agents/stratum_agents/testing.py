"""The test kit for agents: runs on a real server, by a clock that the test moves.

    async def test_a_verdict_ends_the_run(bus: Bus) -> None:
        async with runs(bus, agent) as kit:
            run = await kit.start("paper.published", {"id": "p1"})
            await kit.advance(days=30)
            await kit.signal(run, "review.verdict", {"ok": True})
            journal = await kit.journal(run)
            assert journal.state == "completed"

`bus` is the fixture of `stratum_bus.testing`. There is no worker beside the test: each call here
hands the agents what stands in the log for them, one message after the other, and returns when
nothing is left that they could do now. Time stands still until `advance`; only waits so short that
a worker would not let go of its run (a retry's first delays, a sleep of up to a second) pass at
once. Schedules do not fire: start `stratum.schedule.<name>` instead.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_agents.agent import Agent
from stratum_agents.journal import Journal
from stratum_agents.run import run_id
from stratum_agents.simulated import OFF, Crash, Process, StandingClock
from stratum_agents.worker import Worker
from stratum_bus import subject, timer
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, Done, Reject, Retry, RetryLater
from stratum_bus.control import RunRequest
from stratum_bus.event import Event, agent_source, new, typed
from stratum_bus.message import Message

__all__ = ("Kit", "runs")


class Kit:
    """Made by `runs`. `clock` is the agents' time, `crashed` how often their process has died."""

    def __init__(self, bus: Bus, agents: Sequence[Agent], clock: StandingClock, retry: Retry):
        self.bus = bus
        self.clock = clock
        self.crashed = 0
        self._retry = retry
        self._agents: dict[str, Agent] = {}
        self._workers: dict[str, Worker] = {}
        self._runs: dict[str, str] = {}
        self._then: list[Agent] = []
        self._position = 0
        self._process = Process(bus, clock)
        self.deploy(*agents)

    def deploy(self, *agents: Agent) -> None:
        """Put new code in the place of the agents of these names, in a new process."""
        for agent in agents:
            self._agents[agent.name] = agent
            self._workers[agent.name] = self._worker(agent)

    async def start(
        self, type: str, data: Any = None, *, agent: str = "", id: str | None = None, **more: Any
    ) -> str:
        """Send an agent (default: the first) an event, from the agent `test`; returns the run's
        id. `id` is the event's, `more` further attributes of it.
        """
        name = agent or next(iter(self._agents))
        event: Event[Any] = new(type, data, source=agent_source("test"), id=id)
        await self._publish(subject.inbox(name, "test", type), replace(event, **more))
        run = run_id(name, event.id)
        self._runs[run] = name
        return run

    async def signal(
        self, run: str, type: str, data: Any = None, *, agent: str = "", id: str | None = None
    ) -> None:
        """Send a run (of an agent: default the one it was started at) an event it may wait for."""
        event: Event[Any] = new(type, data, source=agent_source("test"), id=id)
        to = subject.inbox(agent or self._agent_of(run), "test", type)
        await self._publish(to, replace(event, torun=run))

    async def cancel(self, run: str) -> None:
        await self._command(run, "run.cancel")

    async def pause(self, run: str) -> None:
        await self._command(run, "run.pause")

    async def resume(self, run: str) -> None:
        """Go on with a run that was paused or parked."""
        await self._command(run, "run.resume")

    async def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """Let time pass. Timers fire at their time, in their order, with those that this sets."""
        end = self.clock.time + timedelta(days, seconds, minutes=minutes, hours=hours)
        again = True
        while again:
            again = False
            for at, message in await self._timers():
                if at > end:
                    break
                await self._fire(at, message)
                if any(new <= end for new in self.clock.due):
                    again = True
                    break
        self.clock.time = max(end, self.clock.time)

    def crash(self, at: int, *, stored: bool = False, then: Agent | None = None) -> None:
        """Have the process die at the append number `at` to a journal, counted from now: before
        it was `stored`, or after, without the process knowing. What was in its hands is delivered
        again, to a new process; of the code in `then`, where that is given.
        """
        self._process.left, self._process.stored = at, stored
        self._then = [then] if then else []

    async def journal(self, run: str, agent: str = "") -> Journal:
        """The journal of a run; raises Damaged."""
        return await Journal(self.bus, agent or self._agent_of(run), run).load()

    async def result(self, run: str) -> Any:
        """What the handler of a completed run returned, as JSON makes it."""
        journal = await self.journal(run)
        assert journal.end is not None, f"run {run} has not ended: it is {journal.state}"
        return msgspec.json.decode(journal.end.entry.result)

    async def events(self, *filters: str) -> list[Event[Any]]:
        """What stands in the log under subjects, as in `inbox.editor.>`; oldest first."""
        async with self.bus.read(filters=filters) as reader:
            return [typed(await self.bus.event(message), Any) async for message in reader]

    async def skip(self) -> None:
        """Hand out nothing of what is there so far."""
        self._position = (await self.bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"]

    async def settle(self) -> None:
        """Hand the agents what is there for them and not yet handed out."""
        while messages := await self._unread():
            for message in messages:
                for agent in list(self._agents.values()):
                    if _is_for(agent, message):
                        await self._deliver(agent.name, message)

    async def _unread(self) -> list[Message]:
        async with self.bus.read(
            filters=["inbox.>", "topic.>", "control.>"], start=self._position + 1
        ) as reader:
            found = [self._process.seen(message) async for message in reader]
            self._position = reader.stored
            return found

    async def _deliver(self, agent: str, message: Message) -> None:
        event, most = await self.bus.event(message), self._retry.max_attempts
        for attempt in itertools.count(1):
            try:
                outcome = await self._workers[agent].handle(Delivery(message, event, attempt))
            except Crash:
                self.crashed += 1
                self.deploy(self._agents[agent], *self._then)
                continue
            except Exception as error:
                if attempt >= most:
                    raise
                outcome = RetryLater(repr(error))
            match outcome:
                case RetryLater(delay_seconds=seconds):
                    delay = self._retry.delay_seconds(attempt) if seconds is None else seconds
                    await self.clock.wait_until(self.clock.time + timedelta(seconds=delay))
                case Reject(reason=reason):
                    raise AssertionError(f"{agent} rejected {event.type}: {reason}")
                case Done():
                    return

    async def _timers(self) -> list[tuple[datetime, Message]]:
        """What a standing clock keeps, the earliest first."""
        self.clock.due.clear()
        found: list[tuple[datetime, Message]] = []
        filters = [f"timer.{agent}.>" for agent in self._agents]
        async with self.bus.read(timer.STREAM, filters=filters) as reader:
            async for message in reader:
                kind, _, at = (message.headers or {}).get("Nats-Schedule", "").partition(" ")
                if kind == "@at" and (due := datetime.fromisoformat(at) - OFF).year > 1990:
                    found.append((due, message))
        return sorted(found, key=lambda each: (each[0], each[1].sequence))

    async def _fire(self, at: datetime, message: Message) -> None:
        place = subject.parse(message.subject)
        there = await self.bus.last(message.subject)
        if there is None or there.sequence != message.sequence:
            return  # taken back, or set anew
        await timer.cancel(self.bus.connection, place.agent, place.run, place.name)
        self.clock.time = max(at, self.clock.time)
        fire = subject.fire(place.agent, place.run, place.name)
        await self.bus.connection.request(fire, message.payload)
        fired = await self.bus.last(fire)
        assert fired is not None
        await self._deliver(place.agent, fired)
        await self.settle()

    async def _command(self, run: str, command: str) -> None:
        event = new(f"stratum.control.{command}", RunRequest(run), source=agent_source("test"))
        await self._publish(subject.control(self._agent_of(run), command), event)

    async def _publish(self, to: str, event: Event[Any]) -> None:
        await self.bus.publish(to, event)
        await self.settle()

    def _agent_of(self, run: str) -> str:
        return self._runs.get(run) or next(iter(self._agents))

    def _worker(self, agent: Agent) -> Worker:
        return Worker(self._process, agent, self._retry, clock=self.clock)


@asynccontextmanager
async def runs(
    bus: Bus, *agents: Agent, now: datetime | None = None, retry: Retry | None = None
) -> AsyncIterator[Kit]:
    """A kit for agents that may call each other; it hands out what is said from now on.

    `now` is the time to begin with, default the present. Messages to other agents stay in the log.
    """
    kit = Kit(bus, agents, StandingClock(now), retry or Retry())
    await kit.skip()
    yield kit


def _is_for(agent: Agent, message: Message) -> bool:
    filters = [*subject.inbox_filters(agent.name, agent.follows), f"control.{agent.name}.run.>"]
    return any(subject.matches(filter, message.subject) for filter in filters)
