"""Conducting a run: from its journal and its handler to an end, or to a wait.

What comes back is what to do with the message in hand; whatever the run did is in the log by then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from msgspec.structs import replace

from stratum_agents.agent import Handler
from stratum_agents.core import Core
from stratum_agents.failure import (
    Ended,
    JournalMismatch,
    Rejected,
    RunCancelled,
    RunFailed,
    StepFailed,
    Suspended,
    Unreadable,
    failure_of,
)
from stratum_agents.journal import (
    CANCELLED,
    COMPENSATING,
    COMPLETED,
    FAILED,
    PARKED,
    SUSPENDED,
    Damaged,
    Entry,
    Failure,
    InputCame,
    Journal,
)
from stratum_agents.retry import Retry
from stratum_agents.run import Run
from stratum_agents.steps import step
from stratum_agents.waits import ENDS_OF_A_BRANCH, REPLIED, REPLY_FAILED, answers_to
from stratum_bus import dead, subject
from stratum_bus.consume import LOST_SERVER, Done, Leave, Outcome, Reject, RetryLater
from stratum_bus.errors import BlobError, EncodeError, InvalidEvent
from stratum_bus.event import Event, agent_source, new, typed
from stratum_bus.publish import Append
from stratum_bus.tasks import own_cancellation

log = logging.getLogger("stratum.run")

FINAL = (RunFailed, StepFailed, EncodeError, BlobError)
"""Errors that no further attempt would mend."""


async def conduct(core: Core, handler: Handler, *, last_attempt: bool) -> Outcome:
    """Call the handler until the run ends or waits.

    An error that another attempt may mend comes out as it is (the message is tried again), unless
    this was the `last_attempt`: then the run fails. Fenced and Exists come out for the worker.
    """
    while True:
        try:
            return await _conduct(core, handler, last_attempt)
        except Suspended:
            if await _let_go(core):
                return Done()
        except Ended:
            return Done()
        except (JournalMismatch, Damaged) as error:
            if core.live and core.journal.cancel is not None:
                return await _give_up(core, error)
            return await park(core, error)
        finally:
            # What the handler left running (a task of its own) does nothing more.
            core.stopped = core.stopped or Suspended()
        core = core.again()


async def _conduct(core: Core, handler: Handler, last_attempt: bool) -> Outcome:
    try:
        result = await call(core, handler)
        if isinstance(result, RetryLater) and last_attempt:
            raise RunFailed(result.reason or "asked for more attempts than allowed")
        if isinstance(result, RetryLater | Leave):
            return result
        if isinstance(result, Reject):
            return await _unwind(core, FAILED, Rejected(result.reason))
        if core.journal.compensating is not None:
            return await _unwind(core, FAILED, None)  # it began to undo before, and must end so
        core.check_end()
        await _complete(core, None if isinstance(result, Done) else result)
    except RunCancelled:
        return await _unwind(core, CANCELLED, None)
    except (JournalMismatch, Damaged):
        raise
    except Exception as error:
        lost = isinstance(error, LOST_SERVER) and core.stopped is not None
        if lost or not core.live or not (last_attempt or isinstance(error, FINAL)):
            raise
        return await _unwind(core, FAILED, error)
    return Done()


async def call(core: Core, handler: Handler) -> Any:
    """Call the handler; what stopped it comes out, whatever the handler made of it."""
    try:
        event = typed(core.event, handler.data)
    except InvalidEvent as error:
        if core.journal.started:
            core.mismatch("0", "a run of this event", f"other data of it ({error})")
        raise Unreadable(str(error)) from error
    try:
        with own_cancellation():
            result = await handler.function(Run(core), event)
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        core.check()
        if isinstance(error, BaseExceptionGroup):  # of a task group in the handler
            for end in ENDS_OF_A_BRANCH:
                if found := error.subgroup(end):
                    raise _first(found) from None
        raise
    core.check()
    return result


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def park(core: Core, error: Exception) -> Outcome:
    """Set the run in hand aside with the reason; see `parked`."""
    if core.live:
        core.park()
        await parked(core.journal, error, core)
    return Done()


async def parked(journal: Journal, error: Exception, core: Core | None = None) -> None:
    """Set a run aside with the reason; others go on, and `run resume` tries it again."""
    log.warning("%s parked: %s", journal.run, error)
    entry = Entry(reason=type(error).__name__, error=failure_of(error), suspends=True)
    id = f"{journal.run}-parked-{journal.last_sequence}"
    await (core or journal).append(PARKED, entry, id=id)


async def _give_up(core: Core, error: Exception) -> Outcome:
    """End a cancelled run that the code cannot take up: as it is, nothing undone."""
    text = f"the run was cancelled, and nothing undone: {error}"
    await _end(core, CANCELLED, Failure("Cancelled", text))
    return Done()


async def _let_go(core: Core) -> bool:
    """Say in the journal that the run is let go of, unless its last entry did.

    False where something came meanwhile that it can go on with. Whoever wakes a run leaves that
    to its owner as long as there is one, so it must not be overlooked here.
    """
    while not core.can_go_on():
        if core.journal.suspended:
            return True
        entry = Entry(suspends=True, reason="paused" if core.journal.paused else "")
        id = f"{core.journal.run}-suspended-{core.journal.last_sequence}"
        try:
            await core.append(SUSPENDED, entry, id=id, stop_at_input=True)
        except InputCame:
            continue
    return False


async def _complete(core: Core, result: Any) -> None:
    packed_result, packed = await core.pack(result)
    core.before_end()
    _reply(core, REPLIED, result)
    entry = Entry(result=packed_result, packed=packed, attempt=core.attempt, name="end")
    await core.append(COMPLETED, entry, id=f"{core.journal.run}-end")


async def _unwind(core: Core, end: str, error: BaseException | None) -> Outcome:
    """Undo what was done, last first, then end the run as failed or cancelled."""
    run = core.journal.run
    failure = failure_of(error) if error else Failure("Cancelled", "the run was cancelled")
    core.unwind()
    if core.compensations and core.journal.compensating is None:
        entry = Entry(reason=end, error=failure)
        await core.append(COMPENSATING, entry, id=f"{run}-compensating")
    if began := core.journal.compensating:
        end, failure = began.entry.reason, began.entry.error or failure
    failed: list[str] = []
    for number, (function, arguments) in enumerate(reversed(core.compensations), 1):
        name = getattr(function, "__name__", "undo")
        try:
            await step(core, f"c{number}", f"undo {name}", function, arguments, {}, Retry(), None)
        except (StepFailed, EncodeError, BlobError) as undo_error:
            core.unwind()
            failed.append(str(undo_error))
            log.error("%s: %s", run, undo_error)
    if failed:
        failure = replace(failure, cause="; ".join(failed))
    await _end(core, end, failure)
    return Done()


async def _end(core: Core, end: str, failure: Failure) -> None:
    run = core.journal.run
    core.unwind()
    spawned = [child for n, *child in core.children if n in core.journal.effects]
    for number, (agent, child) in enumerate(spawned, 1):
        command = new(
            "stratum.control.run.cancel", {"run": child}, source=agent_source(core.agent),
            id=f"{run}-cancel-{number}",
        )  # fmt: skip
        core.effect(f"e{number}", Append(subject.control(agent, "run.cancel"), command))
    _reply(core, REPLY_FAILED, failure)
    if end == FAILED:
        _dead_letter(core, failure)
    log.info("%s %s: %s: %s", run, end, failure.type, failure.message)
    await core.append(end, Entry(error=failure, attempt=core.attempt), id=f"{run}-end")


def _reply(core: Core, type: str, data: Any) -> None:
    """The answer to the run that asked for this one, if one did."""
    if not (waits := answers_to(core.event)):
        return
    agent, run, sent = waits
    event: Event[Any] = new(
        type, data, source=agent_source(core.agent), id=f"{core.journal.run}-reply"
    )
    to = subject.inbox(agent, core.agent, type)
    core.effect("reply", Append(to, replace(event, torun=run, causationid=sent)))


def _dead_letter(core: Core, failure: Failure) -> None:
    message = core.message
    reasons = {Rejected.__name__: "rejected", Unreadable.__name__: "unreadable"}
    reason = reasons.get(failure.type, "failed")
    origin = dead.Origin(message.stream, message.sequence, message.subject, core.event.id)
    said = dead.shown(f"{failure.type}: {failure.message}", dead.DETAIL_MAX)
    trace = dead.shown(failure.trace, dead.DETAIL_MAX)
    letter = dead.Lettered(core.agent, reason, said, core.attempt, origin, trace, core.journal.run)
    event = new(
        "stratum.dead.lettered", letter, source=agent_source(core.agent),
        id=f"dead-{core.journal.run}",
    )  # fmt: skip
    core.effect("dead", Append(subject.dead(core.agent, core.event.type), event))
