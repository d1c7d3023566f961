"""Waiting in a run: for a time, for an event, for what another run brings.

A run that waits holds no process: its `waiting` entry and, where there is a time, a timer of the
server are all there is of it. What ends a wait is journaled; of a signal and a timeout the one that
stands first in the journal wins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

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
from stratum_agents.steps import fired, set_timer, timer_name
from stratum_bus import timer
from stratum_bus.event import Raw, RawEvent
from stratum_bus.schema import event_type
from stratum_bus.tasks import task_group

IN_PROCESS_SECONDS = 1.0
"""A worker itself waits up to this long: the server's timers are not made for less."""

REPLIED, REPLY_FAILED = "stratum.run.reply.completed", "stratum.run.reply.failed"
event_type(REPLIED, roles=("inbox",))(Raw)  # whatever the handler returned
event_type(REPLY_FAILED, roles=("inbox",))(Failure)
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
    data = None if event.data is None else msgspec.json.decode(event.data)
    if event.type == REPLY_FAILED:
        raise CallFailed(what, msgspec.convert(data, Failure))
    return data


def answers_to(event: RawEvent) -> tuple[str, str, str] | None:
    """Who waits for what comes of an event: the agent, its run, and the event that it sent."""
    if not event.replyto:
        return None
    agent, _, rest = event.replyto.partition("/")
    run, _, sent = rest.partition("/")
    return agent, run, sent or event.id


def pass_on(event: RawEvent) -> str | None:
    """`replyto` for an event whose run goes on in the place of this one's."""
    to = answers_to(event)
    return "/".join(to) if to else None


async def gather(core: Core, calls: list[Awaitable[Any]]) -> list[Any]:
    """See `Run.gather`."""
    results: list[Any] = [None] * len(calls)
    errors: list[BaseException | None] = [None] * len(calls)

    async def one(number: int, call: Awaitable[Any]) -> None:
        try:
            results[number] = await call
        except (Exception, *ENDS_OF_A_BRANCH) as error:  # noqa: BLE001 - raised below, in order
            errors[number] = error
        finally:
            core.active -= 1

    core.active += len(calls) - 1
    async with task_group() as tasks:
        for number, call in enumerate(calls):
            tasks.start_soon(one, number, call)
    core.active += 1
    for end in (*ENDS_OF_A_BRANCH, Exception):
        if found := next((error for error in errors if isinstance(error, end)), None):
            raise found
    return results


ENDS_OF_A_BRANCH = (Fenced, Exists, Ended, RunCancelled, Suspended)
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
            until = core.clock.now() + length
        left = (until - core.clock.now()).total_seconds() if until else None
        short = left is not None and left <= IN_PROCESS_SECONDS
        try:
            if decided := _decide(core, n, choose, until):
                return await _complete(core, n, asked, decided, waiting)
            if waiting is None:
                entry = Entry(
                    n=n, name=asked, until=until, types=types,
                    suspends=core.active == 1 and not short,
                )  # fmt: skip
                id = f"{core.journal.run}-{n}-wait"
                await core.append(WAITING, entry, id=id, stop_at_input=True)
        except InputCame:
            continue
        if until is not None and short:
            await core.clock.wait_until(until)
            continue
        if until is not None:
            # Also when it was scheduled before: the worker may have died in between.
            await set_timer(core, timer_name(n), until)
        core.suspend(n, partial(_is_decided, core, n, choose, until))


def _decide(
    core: Core, n: str, choose: Choose, until: datetime | None
) -> tuple[Recorded | None, str] | None:
    """The input that ends the wait and why, the first in the log; or that its time is over."""
    found, over = choose(), fired(core, timer_name(n))
    if found and (over is None or found.sequence < over.sequence):
        return found, ""
    if over or (until is not None and until <= core.clock.now()):
        return over, TIMEOUT
    return None


def _is_decided(core: Core, n: str, choose: Choose, until: datetime | None) -> bool:
    return _decide(core, n, choose, until) is not None


async def _complete(
    core: Core,
    n: str,
    asked: str,
    decided: tuple[Recorded | None, str],
    waiting: Recorded | None,
) -> Recorded:
    input, reason = decided
    id = input.id if input else ""
    entry = Entry(n=n, name=asked, input=id, reason=reason)
    core.journal.taken.add(id)  # before another branch chooses it too
    try:
        # Where the worker's own clock says that it is over, what came before that still counts.
        await core.append(
            WAIT_COMPLETED, entry, id=f"{core.journal.run}-{n}", stop_at_input=input is None
        )
    except BaseException:
        core.journal.taken.discard(id)
        raise
    if waiting is not None and waiting.entry.until and not reason:
        run, name = core.journal.run, timer_name(n)
        await core.must(timer.cancel(core.bus.connection, core.agent, run, name))
    return core.journal.decided[n]


def _event_of(core: Core, done: Recorded, what: list[str]) -> RawEvent:
    if done.entry.reason == TIMEOUT:
        raise WaitTimeout(" or ".join(what))
    signal = core.journal.inputs[done.entry.input]
    return msgspec.json.decode(signal.entry.result, type=RawEvent)
