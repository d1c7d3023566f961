"""What heartbeats cost the health projector, and how soon it notices what no supervisor sees.

Instances beat twice a second, with two messages in hand; agents have their consumers on LOG. The
cost is its share of a core. Then some fall silent, as when their machine ends, and some stand still:
the time from then to the incident in the log.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
from msgspec import Struct

import stratum_bus
from bench.harness import Line, percentile, report, say, server
from stratum_bus import heartbeat, subject
from stratum_bus.bus import Bus
from stratum_bus.consume import ensure_consumer
from stratum_bus.event import encode, new, typed
from stratum_bus.heartbeat import Beat, InHand
from stratum_bus.tasks import task_group
from stratum_projections.health.incident import Incident

INSTANCES = (0, 200, 1000)
SECONDS = 15.0
SETTLE_SECONDS = 5.0
EVERY_SECONDS = 0.5
HURT = 30
"""How many fall silent, and how many stand still, each at a moment of its own."""

MOMENTS_SECONDS = 10.0
STUCK_SECONDS = 2.0
"""From when on an instance that does not get on is called stuck, here."""

PATIENCE_SECONDS = 60.0
_SETTINGS = f"""
[health.stuck]
seconds = {STUCK_SECONDS}
[health.silent]  # the work of these agents is never done: that is not to be found wrong here
seconds = 1e6
"""


class Measured(Struct, frozen=True):
    """The share of a core in percent; seconds from a silence, and from a standstill, to its incident."""

    percent: float
    silent: list[float]
    stuck: list[float]


class Hurt(Struct, frozen=True):
    """Instances that say nothing any more, and instances whose work stands still, by number."""

    silent: set[int]
    stuck: set[int]


async def run() -> None:
    for count in INSTANCES:
        say(f"health projector, {count} instances")
        found = await measure(count, hurt=count == 200)
        report(Line("health", f"core used, {count} instances", found.percent, "%"))
        for name in ("silent", "stuck") if count == 200 else ():
            for percent in (50, 99):
                value = round(percentile(getattr(found, name), percent), 2)
                report(Line("health", f"{name} to incident p{percent}", value, "s"))


async def measure(count: int, *, hurt: bool) -> Measured:
    """With so many instances; `hurt`: measure as well how soon it is noticed, of at least 150."""
    async with (
        server("1s") as url,
        stratum_bus.connect(url, name="bench") as bus,
        _projector(url) as pid,
        task_group() as tasks,
    ):
        wrong = Hurt(set(), set())
        tasks.start_soon(_beat, bus, count, wrong)
        await _agents(bus, count)
        await anyio.sleep(SETTLE_SECONDS)
        share = await _share(pid)
        silent = await _notice(bus, wrong.silent, "dead", 0) if hurt else []
        stuck = await _notice(bus, wrong.stuck, "stuck", 1) if hurt else []
        tasks.cancel_scope.cancel()
    return Measured(share, silent, stuck)


@asynccontextmanager
async def _projector(url: str) -> AsyncIterator[int]:
    """A health projector as `stratum up` starts it; yields its process id."""
    command = [sys.executable, "-m", "stratum_projections.health", "--url", url]
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        (Path(folder) / "stratum.toml").write_text(_SETTINGS)
        process = await anyio.open_process(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process.pid
        finally:
            process.kill()
            await process.wait()


async def _agents(bus: Bus, count: int) -> None:
    """Consumers with something to do, five instances each."""
    for number in range(0, count, 5):
        agent = f"a{number // 5}"
        await bus.publish(subject.inbox(agent, "x", "t"), new("t", 1, source="/x"))
        await ensure_consumer(bus, agent, subject.inbox_filters(agent))


async def _beat(bus: Bus, count: int, hurt: Hurt) -> None:
    """All beats, spread over the time between two of one instance."""
    progress = 0
    while True:
        began = time.monotonic()
        for number in range(count):
            if number in hurt.silent:
                continue
            progress += 1
            step = "3" if number in hurt.stuck else str(progress)
            held = [
                InHand(sequence=n, subject="inbox.a.x.task", event=f"e{n}", run="r" * 25, step=step,
                       since=datetime.now(UTC))
                for n in (1, 2)
            ]  # fmt: skip
            said = Beat(
                name=f"a{number // 5}", instance=f"i{number}", kind=heartbeat.AGENT,
                state=heartbeat.WORKING, pid=number, host="here", version="0.1.0",
                started=datetime.now(UTC), every_seconds=EVERY_SECONDS, progress=progress,
                in_hand=held, holds=2, resident_bytes=50 << 20, pending=3,
            )  # fmt: skip
            payload = encode(new(heartbeat.TYPE, said, source=f"/agents/{said.name}"))
            await bus.connection.send(subject.health(said.name, said.instance), payload)
            due = began + EVERY_SECONDS * (number + 1) / count
            if due > time.monotonic() + 0.01:
                await anyio.sleep(max(0.0, due - time.monotonic()))
        await anyio.sleep(max(0.01, began + EVERY_SECONDS - time.monotonic()))


async def _share(pid: int) -> float:
    """The processor time that a process uses, in percent of a core."""
    before, began = _processor_seconds(pid), time.monotonic()
    await anyio.sleep(SECONDS)
    used = _processor_seconds(pid) - before
    return round(100 * used / (time.monotonic() - began), 2)


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _notice(bus: Bus, hurt: set[int], kind: str, first: int) -> list[float]:
    """Hurt every fifth instance from `first` on; from then to the incident in the log, of each."""
    began: dict[int, float] = {}
    found: list[float] = []

    async def soon(number: int) -> None:
        await anyio.sleep(random.uniform(0, MOMENTS_SECONDS))
        hurt.add(number)
        began[number] = time.time()

    async with bus.read(filters=["control.*.incident"], start=None, follow=True) as reader:
        with anyio.fail_after(PATIENCE_SECONDS):
            async with task_group() as tasks:
                for number in range(first, first + 5 * HURT, 5):
                    tasks.start_soon(soon, number)
                while len(found) < HURT:
                    [message] = await reader.batch(1, None, gather=False)
                    incident = typed(message.event(), Incident).data
                    number = int(incident.instance.removeprefix("i") or -1)
                    if incident.kind == kind and number in began:
                        found.append(message.time_ns / 1e9 - began.pop(number))
    return found
