"""How long work stands still for a poison event, and for kill -9 of `stratum up` itself.

Everything has its default settings, but for the port. `stratum up` is started again at once when it
ends, as systemd does it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from msgspec import Struct

import stratum_bus
from bench.harness import Line, percentile, report, say
from stratum_bus import control, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import StratumError
from stratum_bus.event import agent_source, new
from stratum_bus.message import Message
from stratum_bus.read import Reader
from stratum_bus.server import free_port
from stratum_bus.tasks import task_group

TIMES = 30
CALM_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
AGENTS = ("clerk", "smith")

_AGENT = """
import os
import signal
from stratum_agents.agent import Agent


def clerk() -> Agent:
    return named("clerk")


def smith() -> Agent:
    return named("smith")


def named(name: str) -> Agent:
    agent = Agent(name)

    @agent.on("poison")
    async def poison(run, event):
        os.kill(os.getpid(), signal.SIGKILL)

    @agent.on("work")
    async def work(run, event):
        await run.step("work", number, 1)

    return agent


async def number(number: int) -> int:
    return number
"""


class Poisoned(Struct, frozen=True):
    """Seconds from when a poison event was accepted: until it is parked, and until the event
    behind it is handled."""

    parked: list[float]
    moved: list[float]


async def run(times: int = TIMES) -> None:
    for name, seconds in (
        ("next supervisor has started all", await supervisor(times)),
        ("poison parked", (poisoned := await poison(times)).parked),
        ("behind poison handled", poisoned.moved),
    ):
        for percent in (50, 99):
            value = round(percentile(seconds, percent), 3)
            report(Line("outages", f"{name} p{percent}", value, "s", "always"))


async def supervisor(times: int = TIMES) -> list[float]:
    """From kill -9 of `stratum up` until the next one has started all agents."""
    found: list[float] = []
    async with _platform() as (bus, up):
        for number in range(times):
            starts = [subject.control(name, control.STARTED) for name in AGENTS]
            async with bus.read(filters=starts, start=None, follow=True) as reader:
                killed = time.time()
                os.kill(up(), signal.SIGKILL)
                times_ns = [(await _next(reader)).time_ns for _ in AGENTS]
            found.append(max(times_ns) / 1e9 - killed)
            say(f"kill {number + 1} of stratum up: in charge after {found[-1]:.3f} s")
            await _work(bus)
            await anyio.sleep(CALM_SECONDS)
    return found


async def poison(times: int = TIMES) -> Poisoned:
    """From a poison event until it is parked, and until the event behind it is handled."""
    parked: list[float] = []
    moved: list[float] = []
    async with _platform() as (bus, _):
        for number in range(times):
            bad = new("poison", None, source=agent_source("bench"))
            ack = await bus.publish(subject.inbox(AGENTS[0], "bench", bad.type), bad)
            at = (await bus.get("LOG", ack.sequence)).time_ns
            handled = await _work(bus)
            async with bus.read(
                filters=[f"dead.{AGENTS[0]}.>"], start=ack.sequence, follow=True
            ) as reader:
                letter = await _next(reader)
            parked.append((letter.time_ns - at) / 1e9)
            moved.append((handled.time_ns - at) / 1e9)
            say(f"poison {number + 1}: parked after {parked[-1]:.3f} s, next {moved[-1]:.3f} s")
            await anyio.sleep(CALM_SECONDS)
    return Poisoned(parked, moved)


async def _work(bus: Bus) -> Message:
    """Have the first agent do something; returns the end of its run."""
    work = new("work", None, source=agent_source("bench"))
    ack = await bus.publish(subject.inbox(AGENTS[0], "bench", work.type), work)

    def ended(message: Message) -> bool:
        event = message.event()
        return event.type == "stratum.run.completed" and event.causationid == work.id

    runs = f"run.{AGENTS[0]}.>"
    async with bus.read(filters=[runs], start=ack.sequence, follow=True) as reader:
        return await _next(reader, ended)


async def _next(reader: Reader, wanted: Callable[[Message], bool] | None = None) -> Message:
    """The next message, or the next that is wanted."""
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            [message] = await reader.batch(1, None, gather=False)
            if wanted is None or wanted(message):
                return message


@asynccontextmanager
async def _platform() -> AsyncIterator[tuple[Bus, Callable[[], int]]]:
    """`stratum up` in a folder of its own, started again when it ends: a bus on its server, and
    what says which process it is now."""
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as name:
        folder, port = Path(name), free_port()
        (folder / "bench_agents.py").write_text(_AGENT)
        agents = "".join(f'[agents.{each}]\ncreate = "bench_agents:{each}"\n' for each in AGENTS)
        (folder / "stratum.toml").write_text(f"[server]\nport = {port}\n{agents}")
        up = _Up(folder)
        async with task_group() as tasks:
            tasks.start_soon(up.keep)
            try:
                url = f"nats://127.0.0.1:{port}"
                await _until_streams(url)
                async with stratum_bus.connect(url, name="bench", patience_seconds=60) as bus:
                    await _work(bus)
                    yield bus, up.pid
            finally:
                with anyio.CancelScope(shield=True):
                    await up.stop()
                tasks.cancel_scope.cancel()


class _Up:
    """`stratum up`, started again whenever it ends, until `stop`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False

    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def keep(self) -> None:
        while not self._stopping:
            self._process = self._start()
            await self._ended()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "stratum_cli", "up"], cwd=self._folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    async def stop(self) -> None:
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
            await self._ended()

    async def _ended(self) -> None:
        while self._process is not None and self._process.poll() is None:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


async def _until_streams(url: str) -> None:
    with anyio.fail_after(PATIENCE_SECONDS):
        while True:
            try:
                async with stratum_bus.connect(url, name="bench") as bus:
                    await bus.connection.api("STREAM.INFO.HEALTH")
                    return
            except StratumError:
                await anyio.sleep(0.05)
