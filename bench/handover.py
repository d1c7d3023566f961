"""How long work stands still after kill -9: from the kill to the next step of the run that was hit.

`stratum up` runs an agent whose runs take one short step after the other. The process that has a run
is killed in the middle of it, again and again, at random moments: with one instance (a warm spare
process takes the place), with two (the other one takes the run), and with one and no spare.

    python -m bench handover
    python bench/handover.py --kills 30
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec import Struct

import stratum_bus
from bench.harness import Line, percentile, report, say
from stratum_bus import control, subject
from stratum_bus.bus import Bus
from stratum_bus.control import Started
from stratum_bus.event import agent_source, new, typed
from stratum_bus.message import Message
from stratum_bus.server import free_port
from stratum_bus.tasks import task_group

KILLS = 30
STEP_SECONDS = 0.02
STEPS = 40
BEFORE_SECONDS = (0.1, 0.7)
"""How long a run has been at work when its process is killed."""

SPARE_SECONDS = 1.2
"""Between the end of a run and the next one, where a new spare process has to get ready."""

PATIENCE_SECONDS = 40.0
AGENT = "runner"

_AGENT = """
import anyio
from stratum_agents.agent import Agent


def create() -> Agent:
    agent = Agent("runner")

    @agent.on("go")
    async def go(run, event):
        async def work(number: int) -> int:
            await anyio.sleep(event.data["seconds"])
            return number

        for number in range(event.data["steps"]):
            await run.step("work", work, number)

    return agent
"""
_SETTINGS = """
[server]
port = {port}
[supervisor]
restarts = 1000000
healthy_seconds = 0.5
spares = {spares}
[health.crash_loop]
deaths = 1000000
[agents.runner]
create = "runner_agent:create"
instances = {instances}
"""


class Case(Struct, frozen=True):
    """How many instances of the agent run, and how many spare processes wait."""

    name: str
    instances: int
    spares: int


CASES = (
    Case("one instance, warm spare", 1, 1),
    Case("two instances", 2, 1),
    Case("one instance, no spare", 1, 0),
)


class Measured(Struct, frozen=True):
    """Seconds from each kill to the next step of its run; and how often an agent was started again."""

    seconds: list[float]
    restarts: int


async def run(kills: int = KILLS) -> None:
    """All cases, one line for each percentile."""
    for case in CASES:
        found = await measure(case, kills)
        for percent in (50, 99):
            value = round(percentile(found.seconds, percent), 3)
            report(Line("handover", f"{case.name}, next step p{percent}", value, "s", "always"))
        longest = round(max(found.seconds), 3)
        report(Line("handover", f"{case.name}, longest", longest, "s", "always"))
        a_death = round(found.restarts / kills, 2)
        report(Line("handover", f"{case.name}, restarts for each death", a_death, "", "always"))


async def measure(case: Case, kills: int = KILLS) -> Measured:
    """Kill so often, and say what followed."""
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        seen, found = _Seen(), list[float]()
        async with _platform(Path(folder), case) as bus, task_group() as tasks:
            tasks.start_soon(seen.follow, bus)
            for number in range(kills):
                found.append(await _kill(bus, seen))
                say(f"kill {number + 1}: next step after {found[-1]:.3f} s")
                if case.spares and case.instances == 1:
                    await anyio.sleep(SPARE_SECONDS)
            await seen.restarted(kills)
            await anyio.sleep(SPARE_SECONDS)  # one too many would come by now
            tasks.cancel_scope.cancel()
    return Measured(found, seen.restarts)


async def _kill(bus: Bus, seen: _Seen) -> float:
    """Begin a run, kill who has it, and wait for its end; returns the seconds to its next step."""
    data = {"seconds": STEP_SECONDS, "steps": STEPS}
    go = new("go", data, source=agent_source("bench"))
    await bus.publish(subject.inbox(AGENT, "bench", "go"), go)
    await seen.step_after(time.time_ns())
    await anyio.sleep(random.uniform(*BEFORE_SECONDS))
    victim = seen.instance
    killed = time.time_ns()
    os.kill(seen.pids[victim], signal.SIGKILL)
    step = await seen.step_of_other(victim)
    await seen.end_after(killed)
    return (step - killed) / 1e9


class _Seen:
    """What the log says: who has the run, and when its steps were stored."""

    def __init__(self) -> None:
        self.instance = ""
        self.pids: dict[str, int] = {}
        self.restarts = 0
        self._last = self._first = self._ended = 0
        self._changed = asyncio.Event()

    async def step_after(self, time_ns: int) -> int:
        """When a step behind a moment was stored, by the server's clock."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while self._last < time_ns:
                self._changed.clear()
                await self._changed.wait()
        return self._last

    async def step_of_other(self, than: str) -> int:
        """When the first step of another instance was stored."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while self.instance == than or not self._first:
                self._changed.clear()
                await self._changed.wait()
        return self._first

    async def end_after(self, time_ns: int) -> None:
        """Wait until a run has ended behind a moment."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while self._ended < time_ns:
                self._changed.clear()
                await self._changed.wait()

    async def restarted(self, times: int) -> None:
        """Wait until an instance was started again so often."""
        with anyio.fail_after(PATIENCE_SECONDS):
            while self.restarts < times:
                self._changed.clear()
                await self._changed.wait()

    async def follow(self, bus: Bus) -> None:
        filters = [f"run.{AGENT}.>", subject.control(AGENT, control.STARTED)]
        async with bus.read(filters=filters, follow=True) as reader:
            async for message in reader:
                self._take(message)
                self._changed.set()

    def _take(self, message: Message) -> None:
        event = message.event()
        if event.type.endswith(".started"):
            started = typed(event, Started).data
            self.pids[started.instance] = started.pid
            self.restarts += bool(started.command)
            return
        by = msgspec.json.decode(event.data, type=dict[str, Any]).get("instance", "")
        if by:
            self.instance, self._first = by, 0
        if event.type == "stratum.run.step.completed":
            self._last = message.time_ns
            self._first = self._first or message.time_ns
        elif event.type == "stratum.run.completed":
            self._ended = message.time_ns


@asynccontextmanager
async def _platform(folder: Path, case: Case) -> AsyncIterator[Bus]:
    """`stratum up` in a folder of its own, and a bus on its server."""
    port = free_port()
    (folder / "runner_agent.py").write_text(_AGENT)
    settings = _SETTINGS.format(port=port, instances=case.instances, spares=case.spares)
    (folder / "stratum.toml").write_text(settings)
    stratum = [sys.executable, "-m", "stratum_cli"]
    up = await anyio.run_process([*stratum, "up", "--detach"], cwd=folder, check=False)
    if up.returncode != 0:
        raise SystemExit(up.stderr.decode())
    try:
        async with stratum_bus.connect(f"nats://127.0.0.1:{port}", name="bench") as bus:
            yield bus
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.run_process([*stratum, "down"], cwd=folder, check=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=KILLS, help="kills a case")
    anyio.run(run, parser.parse_args().kills)
