"""The health projector as a process on a real server: one judgement of many, and the same again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio
import msgspec
import pytest

from stratum_bus import connect, control, event, heartbeat, subject
from stratum_bus.bus import Bus
from stratum_bus.control import Ended, Started
from stratum_bus.errors import BusError
from stratum_bus.event import new, typed
from stratum_bus.heartbeat import Beat
from stratum_bus.message import Message
from stratum_bus.stream import load_streams, provision
from stratum_bus.testing import eventually, server
from stratum_bus.thresholds import Dead, HealthConfig
from stratum_projections.health import replay
from stratum_projections.health.incident import Incident

CONFIG = HealthConfig(
    tick_seconds=0.05, settle_seconds=0.5, dead=Dead(seconds=0.5, restart_seconds=0.7)
)


def toml(config: HealthConfig) -> str:
    """The settings that these tests change, as a user writes them."""
    return f"""
        [supervisor]
        beat_seconds = 0.1
        [health]
        tick_seconds = {config.tick_seconds}
        settle_seconds = {config.settle_seconds}
        [health.dead]
        seconds = {config.dead.seconds}
        restart_seconds = {config.dead.restart_seconds}
    """


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start_projector(bus_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts health projectors, each a process of its own."""
    children: list[subprocess.Popen[bytes]] = []

    def start(url: str = bus_url, config: HealthConfig = CONFIG) -> subprocess.Popen[bytes]:
        file = tmp_path / f"{len(children)}.toml"
        file.write_text(toml(config))
        command = [sys.executable, "-m", "stratum_projections.health", "--url", url]
        command += ["--with-parent", "--config", str(file)]
        children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


@asynccontextmanager
async def beats(bus: Bus, name: str, instance: str) -> AsyncIterator[None]:
    """An instance that beats as long as the context, and then says nothing more."""

    async def beat() -> None:
        while True:
            said = Beat(
                name=name, instance=instance, kind=heartbeat.AGENT, state=heartbeat.IDLE, pid=1,
                host="here", version="1", started=datetime.now(UTC), every_seconds=0.1,
            )  # fmt: skip
            payload = event.encode(new(heartbeat.TYPE, said, source="/test"))
            with suppress(BusError):
                await bus.connection.send(subject.health(name, instance), payload)
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat)
        yield
        tasks.cancel_scope.cancel()


async def stored(bus: Bus, stream: str, *filters: str) -> list[Message]:
    async with bus.read(stream, filters=filters) as reader:
        return [message async for message in reader]


async def incidents(bus: Bus, agent: str) -> list[Incident]:
    found = await stored(bus, "LOG", f"control.{agent}.incident")
    return [typed(message.event(), Incident).data for message in found]


async def ticking(bus: Bus, projectors: int) -> None:
    """Wait until so many health projectors tick, and have done so for long enough to judge."""

    async def all_tick() -> bool:
        ticks = [m for m in await stored(bus, "HEALTH") if b"stratum.health.observed" in m.payload]
        names = {m.subject for m in ticks[-40:]}
        return len(names) >= projectors and len(ticks) > 20 * projectors

    await eventually(all_tick, within_seconds=20)


async def test_two_health_projectors_give_one_incident_and_one_command(
    bus: Bus, start_projector: Start
) -> None:
    start_projector()
    start_projector()
    async with beats(bus, "a", "i1"):
        await ticking(bus, 2)

    async def commanded() -> list[Message]:
        return await stored(bus, "LOG", "control.a.restart")

    await eventually(commanded, within_seconds=10)
    async with beats(bus, "a", "i2"):

        async def closed() -> bool:
            return [each.status for each in await incidents(bus, "a")] == ["open", "closed"]

        await eventually(closed, within_seconds=10)
    [command] = await commanded()
    [first, last] = await incidents(bus, "a")
    assert (first.kind, first.instance, last.over) == ("dead", "i1", "i2 run in its place")
    opened = await stored(bus, "LOG", "control.a.incident")
    assert command.id == control.command_id(opened[0].id, "restart")
    assert (opened[1].event().causationid, last.opened) == (opened[0].id, opened[0].id)


async def test_one_that_is_killed_and_started_again_says_nothing_twice(
    bus: Bus, start_projector: Start
) -> None:
    victim = start_projector()
    async with beats(bus, "a", "i1"):
        await ticking(bus, 1)
    await eventually(lambda: incidents(bus, "a"), within_seconds=10)
    victim.kill()
    victim.wait()
    start_projector()
    before = len(await stored(bus, "HEALTH"))

    async def judged_again() -> bool:
        return len(await stored(bus, "HEALTH")) > before + 30

    await eventually(judged_again, within_seconds=20)
    assert [each.kind for each in await incidents(bus, "a")] == ["dead"]
    assert len(await stored(bus, "LOG", "control.a.restart")) == 1


async def test_replaying_both_streams_gives_the_same_incidents_and_commands(
    bus: Bus, start_projector: Start
) -> None:
    start_projector()
    await bus.publish(
        subject.control("b", "started"),
        new("stratum.control.started", Started(instance="b1", pid=5), source="/supervisor"),
    )
    async with beats(bus, "a", "i1"), beats(bus, "b", "b1"):
        await ticking(bus, 1)
    ended = Ended(instance="b1", pid=5, code=-9, signal="SIGKILL")
    await bus.publish(
        subject.control("b", "ended"), new("stratum.control.ended", ended, source="/supervisor")
    )

    async def commanded() -> list[Message]:
        return await stored(bus, "LOG", "control.a.restart")

    await eventually(commanded, within_seconds=10)
    ours = {m.id for m in await stored(bus, "LOG", "control.>") if m.event().source == "/health"}
    health, log = await stored(bus, "HEALTH"), await stored(bus, "LOG", "control.>")
    for _ in range(2):
        again = {id for decision in replay(health, log, CONFIG) for id in decision.ids}
        assert again == ours
    assert len(ours) == 3


async def test_a_server_that_is_killed_is_no_death_of_anybody(
    start_projector: Start, tmp_path: Path
) -> None:
    patient = msgspec.structs.replace(CONFIG, settle_seconds=2.0)
    with server(tmp_path) as own:
        async with connect(own.url, patience_seconds=20) as bus, beats(bus, "a", "i1"):
            await provision(bus.connection, load_streams())
            start_projector(own.url, patient)
            await ticking(bus, 1)
            own.kill()
            await eventually(lambda: not bus.connection.connected)
            await own.start()
            await bus.connection.wait_connected(20)
            before = len(await stored(bus, "HEALTH"))

            async def judged() -> bool:
                return len(await stored(bus, "HEALTH")) > before + 70

            await eventually(judged, within_seconds=20)
            assert await incidents(bus, "a") == []
            [first, last] = await incidents(bus, "server")
            assert (first.kind, last.over) == ("away", "the server is back")
