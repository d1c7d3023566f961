"""Waiting in a run: for a time, for an event, for what another run brings.

A run that waits holds no process: its `waiting` entry and, where there is a time, a timer of the
server are all there is of it. What ends a wait is journaled; of a signal and a timeout the one that
stands first in the journal wins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import anyio
import msgspec

from stratum_agents.core import Core
from stratum_agents.failure import CallFailed, Ended, RunCancelled, Suspended, WaitTimeout
from stratum_agents.journal import (
    SIGNALLED,
    WAIT_COMPLETED,
    WAITING,
    Entry,
    Exists,
    Failure,
    Fenced,
    InputCame,
    Recorded,
)
from stratum_agents.steps import fired, timer_name
from stratum_bus import timer
from stratum_bus.event import RawEvent
from stratum_bus.tasks import task_group

IN_PROCESS_SECONDS = 1.0
"""A worker itself waits up to this long: the server's timers are not made for less."""

REPLIED, REPLY_FAILED = "stratum.run.reply.completed", "stratum.run.reply.failed"
TIMEOUT = "timeout"

Choose = Callable[[], Recorded | None]


async def sleep(core: Core, n: str, length: timedelta) -> None:
    """See `Run.sleep`."""
    await _wait(core, n, "sleep", [], length, lambda: None)


async def wait_for(core: Core, n: str, types: list[str], timeout: timedelta | None) -> RawEvent:
    """See `Run.wait_for`."""

    def choose() -> Recorded | None:
        signals = core.journal.open_inputs(SIGNALLED)
        return next((signal for signal in signals if signal.entry.name in types), None)

    asked = f"wait:{'|'.join(types)}"
    return _event_of(core, await _wait(core, n, asked, types, timeout, choose), types)


async def reply(core: Core, n: str, what: str, sent: str, timeout: timedelta | None) -> Any:
    """Wait for the end of the run that the event `sent` started."""

    def choose() -> Recorded | None:
        signals = core.journal.open_inputs(SIGNALLED)
        return next((signal for signal in signals if signal.entry.at == sent), None)

    types = [REPLIED, REPLY_FAILED]
    done = await _wait(core, n, f"reply:{what}", types, timeout, choose)
    event = _event_of(core, done, [what])
    data = await _data(core, event)
    if event.type == REPLY_FAILED:
        raise CallFailed(what, msgspec.convert(data, Failure))
    return data


async def gather(core: Core, calls: list[Awaitable[Any]]) -> list[Any]:
    """See `Run.gather`."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)

    async def one(number: int, call: Awaitable[Any]) -> None:
        try:
            results[number] = await call
        except (Exception, *_ENDS) as error:  # noqa: BLE001 - raised below, in order
            errors[number] = error
        finally:
            core.active -= 1

    core.active += len(calls) - 1
    async with task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(one, number, call)
    core.active += 1
    for end in (*_ENDS, Exception):
        if found := next((error for error in errors if isinstance(error, end)), None):
            raise found
    return results


_ENDS = (Fenced, Exists, Ended, RunCancelled, Suspended)
"""How a branch may end other than by failing, the most urgent first."""


async def _wait(
    core: Core, n: str, asked: str, types: list[str], length: timedelta | None, choose: Choose
) -> Recorded:
    """Wait until `choose` finds an input or the time is over; returns the `wait.completed`."""
    if found := core.recorded(n, asked):
        return found
    while True:
        core.before_live(n)
        waiting = core.journal.waits.get(n)
        until = waiting.entry.until if waiting else None
        if waiting is None and length is not None:
            until = core.clock() + length
        left = (until - core.clock()).total_seconds() if until else None
        if decided := _decide(core, n, choose, left):
            return await _complete(core, n, asked, decided, waiting)
        short = left is not None and left <= IN_PROCESS_SECONDS
        if waiting is None:
            entry = Entry(
                n=n, name=asked, until=until, types=types,
                suspends=core.active == 1 and not short,
            )  # fmt: skip
            try:
                await core.append(
                    WAITING, entry, id=f"{core.journal.run}-{n}-wait", stop_at_input=True
                )
            except InputCame:
                continue
        if short and left is not None:
            await anyio.sleep(left)
            continue
        if until is not None:
            # Also when it was scheduled before: the worker may have died in between.
            name = timer_name(n)
            await timer.schedule(core.bus.connection, core.agent, core.journal.run, name, until)
        raise Suspended


def _decide(core: Core, n: str, choose: Choose, left: float | None) -> tuple[str, str] | None:
    """The input that ends the wait and why, the first in the log; or that its time is over."""
    found, over = choose(), fired(core, n)
    if found and (over is None or found.sequence < over.sequence):
        return found.id, ""
    if over:
        return over.id, TIMEOUT
    return ("", TIMEOUT) if left is not None and left <= 0 else None


async def _complete(
    core: Core, n: str, asked: str, decided: tuple[str, str], waiting: Recorded | None
) -> Recorded:
    input, reason = decided
    entry = Entry(n=n, name=asked, input=input, reason=reason)
    await core.append(WAIT_COMPLETED, entry, id=f"{core.journal.run}-{n}")
    if waiting is not None and waiting.entry.until and not reason:
        await timer.cancel(core.bus.connection, core.agent, core.journal.run, timer_name(n))
    return core.journal.decided[n]


def _event_of(core: Core, done: Recorded, what: list[str]) -> RawEvent:
    if done.entry.reason == TIMEOUT:
        raise WaitTimeout(" or ".join(what))
    signal = core.journal.inputs[done.entry.input]
    return msgspec.json.decode(signal.entry.result, type=RawEvent)


async def _data(core: Core, event: RawEvent) -> Any:
    resolved = await core.bus.with_data(event)
    return None if resolved.data is None else msgspec.json.decode(resolved.data)
