"""A supervisor in this process, with real processes below it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_agents.supervision import program
from stratum_agents.supervision.running import Running
from stratum_agents.supervisor import Supervisor
from stratum_bus import config as configs
from stratum_bus import control, subject
from stratum_bus.bus import Bus, connect
from stratum_bus.control import Command, Outcome
from stratum_bus.event import agent_source, new, typed
from stratum_bus.tasks import task_group
from stratum_bus.testing import eventually

AGENTS = '''
import os, signal, time
from typing import Any

import anyio
from stratum_agents.agent import Agent


def create() -> Agent:
    """Steps that say when they are done, and events that are bad for their process."""
    agent = Agent("worker")

    @agent.on("job")
    async def job(run: Any, event: Any) -> None:
        async def step(number: int) -> int:
            await anyio.sleep(event.data.get("seconds", 0.01))
            return number

        for number in range(event.data["steps"]):
            await run.step(f"s{number}", step, number)
            await run.send("tester", "stepped", {"job": event.id, "step": number})

    @agent.on("poison")
    async def poison(run: Any, event: Any) -> None:
        await anyio.sleep(event.data.get("after", 0))
        os.kill(os.getpid(), signal.SIGKILL)

    @agent.on("half")
    async def half(run: Any, event: Any) -> None:
        async def until_mended() -> int:
            while not os.path.exists(event.data["mended"]):
                await anyio.sleep(0.02)
            return 1

        await run.step("first", lambda: 0)
        await run.send("tester", "stepped", {"step": 0})
        await run.step("second", until_mended)
        await run.send("tester", "stepped", {"step": 1})

    @agent.on("block")
    async def block(run: Any, event: Any) -> None:
        time.sleep(1000)

    return agent


def second() -> Agent:
    return Agent("second")


def failing() -> Agent:
    os._exit(3)
'''
WORKER = '[agents.worker]\ncreate = "supervised_agents:create"\n'


class House:
    """A running supervisor. `lines` is what it said."""

    def __init__(self, bus: Bus, supervisor: Supervisor, lines: list[str]) -> None:
        self.bus = bus
        self.supervisor = supervisor
        self.lines = lines

    def running(self, name: str = "worker") -> list[Running]:
        return self.supervisor.keepers[name].running

    def pids(self, name: str = "worker") -> list[int]:
        return [each.pid for each in self.running(name)]

    async def until_ready(self, name: str = "worker") -> list[Running]:
        """Wait until what is wanted runs and has said so."""
        keeper = self.supervisor.keepers[name]
        await eventually(keeper.is_ready, within_seconds=15)
        return keeper.running

    async def until_replaced(self, gone: int, name: str = "worker") -> Running:
        """Wait until a process is gone and another one is in its place."""

        def found() -> list[Running]:
            pids = self.pids(name)
            return self.running(name) if pids and gone not in pids else []

        return (await eventually(found, within_seconds=15))[0]

    async def send(self, type: str, to: str = "worker", **data: Any) -> int:
        event = new(type, data, source=agent_source("tester"))
        return (await self.bus.publish(subject.inbox(to, "tester", type), event)).sequence

    async def events(self, *filters: str) -> list[Any]:
        """Type, data and more of all events of these subjects."""
        async with self.bus.read(filters=filters) as reader:
            return [
                {
                    "id": event.id, "type": event.type, "sequence": message.sequence,
                    "cause": event.causationid, "data": json.loads(bytes(event.data or b"null")),
                }
                async for message in reader
                for event in [message.event()]
            ]  # fmt: skip

    async def steps(self) -> list[int]:
        """The steps that were told, in the order of the log."""
        told = await self.events("inbox.tester.worker.stepped")
        return [each["data"]["step"] for each in told]

    async def until_steps(self, count: int, within_seconds: float = 15) -> list[int]:
        async def enough() -> list[int]:
            steps = await self.steps()
            return steps if len(steps) >= count else []

        return await eventually(enough, within_seconds=within_seconds)

    async def order(self, command: str, name: str = "worker", **what: Any) -> Outcome:
        """Give a command and wait for what becomes of it."""
        given = await control.give(self.bus, name, command, Command(**what), source="/people")
        return await self.outcome(given.id, name)

    async def outcome(self, command: str, name: str = "worker") -> Outcome:
        async def found() -> Outcome | None:
            async with self.bus.read(filters=[subject.control(name, control.OUTCOME)]) as reader:
                async for message in reader:
                    outcome = typed(message.event(), Outcome).data
                    if outcome.command == command:
                        return outcome
            return None

        answer = await eventually(found, within_seconds=15)
        assert answer is not None
        return answer


Open = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def supervise(tmp_path: Path, bus_url: str) -> Open:
    """Opens a supervisor on a stratum.toml; without one, on one instance of the agent `worker`.
    With `url` it is on another server than that of the run.
    """

    @asynccontextmanager
    async def open(toml: str = WORKER, *, url: str = bus_url) -> AsyncIterator[House]:
        (tmp_path / "supervised_agents.py").write_text(AGENTS)
        file = tmp_path / "stratum.toml"
        file.write_text(toml)
        config = configs.load(file, {})
        lines: list[str] = []
        programs = program.agents(config, str(file), url)
        spare = program.spare(config, str(file), url)
        supervisor, stop = Supervisor(config, programs, lines.append, spare), anyio.Event()
        async with connect(url, name="test", patience_seconds=10) as own, task_group() as tasks:
            tasks.start_soon(lambda: supervisor.run(url, stop=stop))
            await supervisor.opened.wait()
            try:
                yield House(own, supervisor, lines)
            finally:
                stop.set()
        assert not [name for name in supervisor.keepers if supervisor.keepers[name].running]

    return open
