"""What heartbeats cost the health projector: its share of a core, by how many instances beat.

Each beats twice a second, with two messages in hand; agents have their consumers on LOG. Beside it
the time from the last beat of an instance to its incident.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio

import stratum_bus
from bench.harness import Line, percentile, report, say, server
from stratum_bus import heartbeat, subject
from stratum_bus.bus import Bus
from stratum_bus.consume import ensure_consumer
from stratum_bus.event import encode, new
from stratum_bus.heartbeat import Beat, InHand
from stratum_bus.tasks import task_group

INSTANCES = (0, 200, 1000)
SECONDS = 15.0
SETTLE_SECONDS = 5.0
EVERY_SECONDS = 0.5
SILENCED = 30
"""How many fall silent, one after the other, for the time to notice."""


async def run() -> None:
    for count in INSTANCES:
        say(f"health projector, {count} instances")
        async with (
            server("1s") as url,
            stratum_bus.connect(url, name="bench") as bus,
            _projector(url) as pid,
            task_group() as tasks,
        ):
            silent: set[int] = set()
            tasks.start_soon(_beat, bus, count, silent)
            await _agents(bus, count)
            await anyio.sleep(SETTLE_SECONDS)
            share = await _share(pid)
            report(Line("health", f"core used, {count} instances", share, "%"))
            if count == 200:
                await _notice(bus, silent)
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def _projector(url: str) -> AsyncIterator[int]:
    """A health projector as `stratum up` starts it; yields its process id."""
    command = [sys.executable, "-m", "stratum_projections.health", "--url", url]
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        # The work of these agents is never done: that is not to be found wrong here.
        (Path(folder) / "stratum.toml").write_text("[health.silent]\nseconds = 1e6\n")
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


async def _beat(bus: Bus, count: int, silent: set[int]) -> None:
    """All beats, spread over the time between two of one instance."""
    held = [
        InHand(sequence=n, subject="inbox.a.x.task", event=f"e{n}", run="r" * 25, step="3",
               since=datetime.now(UTC))
        for n in (1, 2)
    ]  # fmt: skip
    progress = 0
    while True:
        began = time.monotonic()
        for number in range(count):
            if number in silent:
                continue
            progress += 1
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
                await anyio.sleep(due - time.monotonic())
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


async def _notice(bus: Bus, silent: set[int]) -> None:
    """From the moment an instance falls silent to the incident in the log."""
    seconds = []
    for number in range(SILENCED):
        place = f"control.a{number // 5}.incident"
        async with bus.read(filters=[place], start=None, follow=True) as reader:
            silent.add(number)
            began = time.monotonic()
            while True:
                [message] = await reader.batch(1, None, gather=False)
                if f'"instance":"i{number}"'.encode() in message.payload:
                    break
            seconds.append(time.monotonic() - began)
    for percent in (50, 99):
        value = round(percentile(seconds, percent), 2)
        report(Line("health", f"silence to incident p{percent}", value, "s"))
