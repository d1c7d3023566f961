"""Heartbeats: they come whatever the loop does, and say what it does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel

from stratum_bus import heartbeat
from stratum_bus.bus import Bus, connect
from stratum_bus.event import typed
from stratum_bus.heartbeat import Beat, InHand, Vitals, beating
from stratum_bus.jetstream import Reply
from stratum_bus.stream import load_streams, provision
from stratum_bus.testing import eventually, server

EVERY = 0.05

BLOCKING = """
import sys, time
import anyio
from stratum_bus.heartbeat import AGENT, Vitals, beating

async def main() -> None:
    vitals = Vitals("echo", AGENT, "blocked-1")
    vitals.set_ready()
    async with beating(sys.argv[1], vitals, every_seconds=0.05):
        await anyio.sleep(0.2)
        print("blocking", flush=True)
        exec(sys.argv[2])
        print("free", flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def vitals(instance: str = "1-a") -> Vitals:
    made = Vitals("echo", heartbeat.AGENT, instance)
    made.set_ready()
    return made


async def beats(bus: Bus, instance: str = "1-a") -> list[Beat]:
    async with bus.read("HEALTH", filters=[f"health.echo.{instance}"]) as reader:
        return [typed(message.event(), Beat).data async for message in reader]


async def until(bus: Bus, check: Callable[[Beat], bool], instance: str = "1-a") -> Beat:
    async def found() -> list[Beat]:
        return [beat for beat in await beats(bus, instance) if check(beat)]

    return (await eventually(found))[0]


@asynccontextmanager
async def blocked(url: str, how: str) -> AsyncIterator[subprocess.Popen[str]]:
    """A process that beats, and whose loop is blocked by a statement."""
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
        [sys.executable, "-c", BLOCKING, url, how], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "blocking\n"
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_a_beat_says_who_it_is_and_how_it_is(bus: Bus, bus_url: str) -> None:
    me = vitals()
    me.progress, me.pending = 7, 3
    me.in_hand = [InHand(sequence=4, subject="inbox.echo.a.b", event="e", run="r", step="2")]
    async with beating(bus_url, me, every_seconds=EVERY):
        beat = await until(bus, lambda beat: True)
    assert (beat.name, beat.instance, beat.kind) == ("echo", "1-a", "agent")
    assert (beat.state, beat.progress, beat.pending, beat.holds) == ("working", 7, 3, 1)
    assert beat.in_hand == me.in_hand
    assert (beat.pid, beat.every_seconds) == (os.getpid(), EVERY)
    assert beat.version and beat.host and beat.started.tzinfo is not None
    assert 1 << 20 < beat.resident_bytes < 1 << 33


async def test_the_state_goes_from_starting_to_idle_to_working_to_stopping(
    bus: Bus, bus_url: str
) -> None:
    me = Vitals("echo", heartbeat.AGENT, "1-a")
    async with beating(bus_url, me, every_seconds=EVERY):
        await until(bus, lambda beat: beat.state == "starting")
        me.set_ready()
        await until(bus, lambda beat: beat.state == "idle")
        me.in_hand = [InHand(sequence=1, subject="inbox.echo.a.b")]
        await until(bus, lambda beat: beat.state == "working")
    assert (await beats(bus))[-1].state == "stopping"


async def test_what_is_asked_of_the_instance_is_asked_before_each_beat(
    bus: Bus, bus_url: str
) -> None:
    me = vitals()

    def refresh() -> None:
        me.progress += 1

    me.refresh = refresh
    async with beating(bus_url, me, every_seconds=EVERY):
        await until(bus, lambda beat: beat.progress >= 3)
    assert [beat.progress for beat in await beats(bus)] == [*range(1, me.progress + 1)]


async def test_a_handler_that_sleeps_in_the_loop_is_reported_while_it_does(
    bus: Bus, bus_url: str
) -> None:
    async with blocked(bus_url, "time.sleep(1000)") as process:
        beat = await until(bus, lambda beat: beat.state == "blocked", "blocked-1")
        assert beat.loop_lag_seconds >= heartbeat.BLOCKED_SECONDS
        assert process.poll() is None
        later = await until(
            bus, lambda b: b.loop_lag_seconds > beat.loop_lag_seconds + 0.1, "blocked-1"
        )
        assert later.state == "blocked"


async def test_a_handler_that_computes_in_the_loop_is_reported_while_it_does(
    bus: Bus, bus_url: str
) -> None:
    async with blocked(bus_url, "while True: pass"):
        await until(bus, lambda beat: beat.state == "blocked", "blocked-1")


async def test_a_loop_that_was_blocked_is_well_again(bus: Bus, bus_url: str) -> None:
    async with blocked(bus_url, "time.sleep(1.2)"):
        await until(bus, lambda beat: beat.state == "blocked", "blocked-1")

        async def well() -> bool:
            last = (await beats(bus, "blocked-1"))[-1]
            return last.state == "idle" and last.loop_lag_seconds < 0.5

        await eventually(well)
        assert max(beat.loop_lag_seconds for beat in await beats(bus, "blocked-1")) >= 1.1


async def test_beats_come_again_when_the_server_is_back() -> None:
    with server() as own:
        async with beating(own.url, vitals(), every_seconds=EVERY):
            heard: list[Reply] = []
            async with connect(own.url) as bus:
                await provision(bus.connection, load_streams())
                await until(bus, lambda beat: True)
                own.kill()
                await anyio.to_thread.run_sync(own.restart)
                await bus.connection.wait_connected(10)
                async with bus.connection.subscribe("health.>", heard.append):
                    await eventually(lambda: heard, within_seconds=10)


async def test_beating_without_a_server_neither_fails_nor_keeps_anybody_waiting() -> None:
    began = time.monotonic()
    async with beating("nats://127.0.0.1:1", vitals(), every_seconds=EVERY):
        await anyio.lowlevel.checkpoint()
    assert time.monotonic() - began < 6


async def test_of_many_messages_in_hand_a_beat_names_those_that_have_begun(
    bus: Bus, bus_url: str
) -> None:
    me = vitals()
    waiting = [InHand(sequence=n, subject="inbox.echo.a.b") for n in range(1, 200)]
    me.in_hand = [*waiting, InHand(sequence=500, subject="inbox.echo.a.b", event="e")]
    async with beating(bus_url, me, every_seconds=EVERY):
        beat = await until(bus, lambda beat: True)
    assert (beat.holds, len(beat.in_hand)) == (200, heartbeat.IN_HAND_MAX)
    assert beat.in_hand[0].sequence == 500
