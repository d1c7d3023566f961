"""Keeps processes running: starts them, starts them again when they end, and stops them in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import anyio
import msgspec
from anyio.abc import Process

HEALTHY_SECONDS = 60.0
"""A process that ran as long as this starts again without delay."""

FIRST_DELAY_SECONDS = 0.2
MAX_DELAY_SECONDS = 30.0

Say = Callable[[str], None]


class Child(msgspec.Struct, frozen=True):
    """A process to keep running: what it is called, and its command line."""

    name: str
    command: tuple[str, ...]


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a module of ours."""
    return (sys.executable, "-m", module, *arguments)


async def supervise(
    children: Sequence[Child], *, stop: anyio.Event, say: Say, grace_seconds: float = 10.0
) -> None:
    """Run the children until `stop` is set; then SIGTERM, and SIGKILL after `grace_seconds`.

    One that ends is started again: the first time at once, then after a delay that doubles from
    0.2 s to 30 s, and starts over when it has run for a minute. `say` gets a line for each fact.
    """
    async with anyio.create_task_group() as tasks:
        for child in children:
            tasks.start_soon(_keep, child, stop, say, grace_seconds)


async def _keep(child: Child, stop: anyio.Event, say: Say, grace_seconds: float) -> None:
    failures = 0
    while not stop.is_set():
        started = anyio.current_time()
        process = await _start(child)
        say(f"{child.name}: {'started' if failures == 0 else 'started again'} (pid {process.pid})")
        code = await _wait(process, stop)
        if code is None:
            await _end(process, grace_seconds, child, say)
            return
        lived = anyio.current_time() - started
        failures = 1 if lived > HEALTHY_SECONDS else failures + 1
        delay = _delay_seconds(failures)
        after = f"again in {delay:.1f} s" if delay else "again at once"
        say(f"{child.name}: ended after {lived:.1f} s ({_ending(code)}), {after}")
        with anyio.move_on_after(delay):
            await stop.wait()


async def _start(child: Child) -> Process:
    # In a session of its own: Ctrl-C reaches us, and we stop it in order.
    return await anyio.open_process(
        child.command, stdin=subprocess.DEVNULL, stdout=None, stderr=None, start_new_session=True
    )


async def _wait(process: Process, stop: anyio.Event) -> int | None:
    """The exit code, or None where `stop` came first."""
    code: int | None = None

    async def ended(scope: anyio.CancelScope) -> None:
        nonlocal code
        code = await process.wait()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ended, tasks.cancel_scope)
        await stop.wait()
        tasks.cancel_scope.cancel()
    return code


async def _end(process: Process, grace_seconds: float, child: Child, say: Say) -> None:
    with anyio.CancelScope(shield=True):
        process.terminate()
        with anyio.move_on_after(grace_seconds):
            await process.wait()
            say(f"{child.name}: stopped")
            return
        process.kill()
        await process.wait()
        say(f"{child.name}: killed, it did not stop within {grace_seconds:g} s")


def _delay_seconds(failures: int) -> float:
    if failures <= 1:
        return 0.0
    return float(min(FIRST_DELAY_SECONDS * 2 ** (failures - 2), MAX_DELAY_SECONDS))


def _ending(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}" if code != os.EX_OK else "by itself"
