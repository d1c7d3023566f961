"""Conducting a run: from its journal and its handler to an end, or to a wait.

What comes back is what to do with the message in hand; whatever the run did is in the log by then.
"""

from __future__ import annotations

import logging
from typing import Any

from msgspec.structs import replace

from stratum_agents.agent import Agent, Handler
from stratum_agents.core import Core
from stratum_agents.failure import (
    Ended,
    JournalMismatch,
    Rejected,
    RunCancelled,
    RunFailed,
    StepFailed,
    Suspended,
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
)
from stratum_agents.retry import Retry
from stratum_agents.run import Run
from stratum_agents.steps import step
from stratum_agents.values import pack
from stratum_agents.waits import REPLIED, REPLY_FAILED
from stratum_bus import dead, subject
from stratum_bus.consume import Done, Leave, Outcome, Reject, RetryLater
from stratum_bus.errors import EncodeError
from stratum_bus.event import Event, agent_source, new, typed
from stratum_bus.publish import Append

log = logging.getLogger("stratum.run")

FINAL = (RunFailed, StepFailed, EncodeError)
"""Errors that no further attempt would mend."""


async def conduct(core: Core, agent: Agent, handler: Handler, *, last_attempt: bool) -> Outcome:
    """Call the handler until the run ends or waits.

    An error that another attempt may mend comes out as it is (the message is tried again), unless
    this was the `last_attempt`: then the run fails. Fenced and Exists come out for the worker.
    """
    event = typed(core.event, handler.data)
    try:
        result = await handler.function(Run(core), event)
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
    except Suspended:
        return await _suspend(core, agent, handler, last_attempt)
    except Ended:
        return Done()
    except (JournalMismatch, Damaged) as error:
        return await park(core, error)
    except RunCancelled:
        return await _unwind(core, CANCELLED, None)
    except FINAL as error:
        return await _unwind(core, FAILED, error)
    except Exception as error:
        if not last_attempt or not core.live:
            raise
        return await _unwind(core, FAILED, error)
    return Done()


async def park(core: Core, error: Exception) -> Outcome:
    """Set the run aside with the reason; others go on, and `run resume` tries it again."""
    log.warning("%s parked: %s", core.journal.run, error)
    entry = Entry(reason=type(error).__name__, error=failure_of(error), suspends=True)
    if core.live:
        id = f"{core.journal.run}-parked-{core.journal.last_sequence}"
        await core.journal.append(PARKED, entry, id=id)
    return Done()


async def _suspend(core: Core, agent: Agent, handler: Handler, last_attempt: bool) -> Outcome:
    """Say in the journal that the run is let go of, unless its last entry did."""
    if core.journal.suspended:
        return Done()
    reason = "paused" if core.journal.paused else ""
    entry = Entry(suspends=True, reason=reason)
    id = f"{core.journal.run}-suspended-{core.journal.last_sequence}"
    try:
        await core.append(SUSPENDED, entry, id=id, stop_at_input=True)
    except InputCame:
        again = core.again()
        return await conduct(again, agent, handler, last_attempt=last_attempt)
    return Done()


async def _complete(core: Core, result: Any) -> None:
    packed_result, packed = await pack(core.bus.connection, result, "$.result")
    core.before_end()
    _reply(core, REPLIED, result)
    entry = Entry(result=packed_result, packed=packed, attempt=core.attempt, name="end")
    await core.append(COMPLETED, entry, id=f"{core.journal.run}-end")


async def _unwind(core: Core, end: str, error: BaseException | None) -> Outcome:
    """Undo what was done, last first, then end the run as failed or cancelled."""
    run = core.journal.run
    core.drop_effects()
    failure = failure_of(error) if error else Failure("Cancelled", "the run was cancelled")
    core.unwinding = True
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
        except StepFailed as undo_error:
            failed.append(str(undo_error))
            log.error("%s: %s", run, undo_error)
    if failed:
        failure = replace(failure, cause="; ".join(failed))
    await _end(core, end, failure)
    return Done()


async def _end(core: Core, end: str, failure: Failure) -> None:
    run = core.journal.run
    core.drop_effects()
    for number, (agent, child) in enumerate(core.children, 1):
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
    if not core.event.replyto:
        return
    agent, _, run = core.event.replyto.partition("/")
    event: Event[Any] = new(
        type, data, source=agent_source(core.agent), id=f"{core.journal.run}-reply"
    )
    to = subject.inbox(agent, core.agent, type)
    core.effect("reply", Append(to, replace(event, torun=run)))


def _dead_letter(core: Core, failure: Failure) -> None:
    message = core.message
    reason = "rejected" if failure.type == Rejected.__name__ else "failed"
    origin = dead.Origin(message.stream, message.sequence, message.subject, core.event.id)
    letter = dead.Lettered(
        core.agent, reason, f"{failure.type}: {failure.message}", core.attempt, origin,
        failure.trace, core.journal.run,
    )  # fmt: skip
    event = new(
        "stratum.dead.lettered", letter, source=agent_source(core.agent),
        id=f"dead-{core.agent}-{message.stream}-{message.sequence}",
    )  # fmt: skip
    core.effect("dead", Append(subject.dead(core.agent, core.event.type), event))
