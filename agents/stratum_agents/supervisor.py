"""Keeps processes running: starts them, starts them again when they end, and stops them in order."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

import anyio
import msgspec

from stratum_bus.child import Child

HEALTHY_SECONDS = 60.0
"""A program that ran as long as this starts again without delay."""

FIRST_DELAY_SECONDS = 0.2
MAX_DELAY_SECONDS = 30.0

Say = Callable[[str], None]


class Program(msgspec.Struct, frozen=True):
    """What is to be kept running: what it is called, and its command line."""

    name: str
    command: tuple[str, ...]


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a module of ours."""
    return (sys.executable, "-m", module, *arguments)


async def supervise(
    programs: Sequence[Program], *, stop: anyio.Event, say: Say, grace_seconds: float = 10.0
) -> None:
    """Run the programs until `stop` is set; then SIGTERM, and SIGKILL after `grace_seconds`.

    One that ends is started again: the first time at once, then after a delay that doubles from
    0.2 s to 30 s, and starts over when it has run for a minute. `say` gets a line for each fact.
    """
    async with anyio.create_task_group() as tasks:
        for program in programs:
            tasks.start_soon(_keep, program, stop, say, grace_seconds)


async def _keep(program: Program, stop: anyio.Event, say: Say, grace_seconds: float) -> None:
    failures = 0
    while not stop.is_set():
        started = anyio.current_time()
        child = Child(program.command)
        say(f"{program.name}: {'started' if failures == 0 else 'started again'} (pid {child.pid})")
        try:
            code = await _wait(child, stop)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(child.stop, grace_seconds)
        if code is None:
            say(f"{program.name}: stopped")
            return
        lived = anyio.current_time() - started
        failures = 1 if lived > HEALTHY_SECONDS else failures + 1
        delay = _delay_seconds(failures)
        after = f"again in {delay:.1f} s" if delay else "again at once"
        say(f"{program.name}: ended after {lived:.1f} s ({_ending(code)}), {after}")
        with anyio.move_on_after(delay):
            await stop.wait()


async def _wait(child: Child, stop: anyio.Event) -> int | None:
    """The exit code, or None where `stop` came first."""
    code: int | None = None

    async def ended(scope: anyio.CancelScope) -> None:
        nonlocal code
        code = await child.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ended, tasks.cancel_scope)
        await stop.wait()
        tasks.cancel_scope.cancel()
    return code


def _delay_seconds(failures: int) -> float:
    if failures <= 1:
        return 0.0
    return float(min(FIRST_DELAY_SECONDS * 2 ** (failures - 2), MAX_DELAY_SECONDS))


def _ending(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code != os.EX_OK else "by itself"
