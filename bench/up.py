"""`stratum up` in an empty folder: how long until a first event is stored, handled, and in a table."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import anyio
import anyio.to_thread
import nats
from msgspec import Struct

import stratum_bus
from bench.harness import ROUNDS, Line, bare_event, event, report, say
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BusError, StratumError
from stratum_bus.server import find_binary, free_port, locate
from stratum_projections import ask

ROUND_SECONDS = 60
POLL_SECONDS = 0.005
AGAINST = "bare nats-server and nats-py"

CONFIG = """
[agents.first]
create = "bench_agent:create"
"""
AGENT = """
from stratum_agents.agent import Agent

def create(settings):
    agent = Agent("first")

    @agent.on("bench.test")
    async def answer(run, event):
        await run.send("bench", "bench.done", None)

    return agent
"""


class Seconds(Struct):
    """From the start of the process on."""

    stored: float = 0.0
    handled: float = 0.0
    projected: float = 0.0


async def run() -> None:
    say("up")
    ours: list[Seconds] = []
    bare: list[float] = []
    await _bare()  # the first start of a program reads it from disk
    for _ in range(ROUNDS):
        bare.append(await _bare())
        ours.append(await _up())
    stored = median(each.stored for each in ours)
    ratio = round(stored / median(bare), 2)
    report(Line("up", "first event stored", round(stored, 3), "s", "always", AGAINST, ratio))
    handled = median(each.handled for each in ours)
    report(Line("up", "first event handled by an agent", round(handled, 3), "s", "always"))
    projected = median(each.projected for each in ours)
    report(Line("up", "first event in a table", round(projected, 3), "s", "always"))


async def _up() -> Seconds:
    """One event, published as soon as somebody stores it."""
    seconds = Seconds()
    with (
        tempfile.TemporaryDirectory(prefix="stratum-bench-") as name,
        anyio.fail_after(ROUND_SECONDS),
    ):
        folder = Path(name)
        (folder / "stratum.toml").write_text(CONFIG)
        (folder / "bench_agent.py").write_text(AGENT)
        start = perf_counter()
        with _running(sys.executable, "-m", "stratum_cli", "up", folder=folder):
            async with _connected(folder / ".stratum") as bus:
                first = await _publish(bus)
                seconds.stored = perf_counter() - start
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_until_handled, bus, first, seconds, start)
                    tasks.start_soon(_until_projected, bus, first, seconds, start)
    return seconds


async def _publish(bus: Bus) -> int:
    first = event()
    while True:
        try:
            return (
                await bus.publish(subject.inbox("first", "bench", "bench.test"), first)
            ).sequence
        except BusError:
            await anyio.sleep(POLL_SECONDS)


async def _until_handled(bus: Bus, first: int, seconds: Seconds, start: float) -> None:
    inbox = subject.inbox_filters("bench")
    async with bus.read(filters=inbox, start=first, follow=True) as reader:
        async for _ in reader:
            seconds.handled = perf_counter() - start
            return


async def _until_projected(bus: Bus, first: int, seconds: Seconds, start: float) -> None:
    while True:
        try:
            await ask(bus, "select count(*) from events", wait_for=first)
            break
        except StratumError:
            await anyio.sleep(POLL_SECONDS)
    seconds.projected = perf_counter() - start


@asynccontextmanager
async def _connected(data_dir: Path) -> AsyncIterator[Bus]:
    while (found := locate(data_dir)) is None:  # noqa: ASYNC110 - another process makes the file
        await anyio.sleep(POLL_SECONDS)
    async with stratum_bus.connect(found.url) as bus:
        yield bus


async def _bare() -> float:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as name:
        folder = Path(name)
        config = folder / "server.conf"
        config.write_text(
            f'listen: "127.0.0.1:{port}"\n'
            f'jetstream {{ store_dir: "{folder}", sync_interval: always }}\n'
        )
        start = perf_counter()
        with _running(str(find_binary()), "-c", str(config), folder=folder):
            while not await anyio.to_thread.run_sync(_answers, port):  # noqa: ASYNC110 - as above
                await anyio.sleep(POLL_SECONDS)
            client = await nats.connect(f"nats://127.0.0.1:{port}")
            js = client.jetstream()
            await js.add_stream(name="LOG", subjects=["inbox.>"])
            payload, headers = bare_event()
            await js.publish("inbox.first.bench.test", payload, headers=headers)
            seconds = perf_counter() - start
            await client.close()
    return seconds


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


@contextmanager
def _running(*command: str, folder: Path) -> Iterator[None]:
    """The program, from its start on; stopped afterwards."""
    log = folder / "said.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            say(log.read_text(errors="replace"))
