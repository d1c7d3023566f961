"""Commands to agents, what became of them, and the lives of their processes: events under `control.`.

A command is an event `control.<agent>.<command>`. Its id is made of what it answers to (an incident,
the end of a process), so that two who come to the same judgement give one command. Whoever executes
it answers with an outcome, whose id is made of the command's. The state that an agent is to be in
(stopped, paused, how many instances) follows from its commands in the order of the log.
"""

from __future__ import annotations

import msgspec

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import Event, new
from stratum_bus.schema import event_type

PREFIX = "stratum.control."

START, STOP, RESTART, SCALE = "start", "stop", "restart", "scale"
PAUSE, RESUME, QUARANTINE = "pause", "resume", "quarantine"
PARK, ESCALATE = "park", "escalate"
COMMANDS = (START, STOP, RESTART, SCALE, PAUSE, RESUME, QUARANTINE, PARK, ESCALATE)

RUN_CANCEL, RUN_PAUSE, RUN_RESUME = "run.cancel", "run.pause", "run.resume"
RUN_COMMANDS = (RUN_CANCEL, RUN_PAUSE, RUN_RESUME)
"""Those about one run, which its agent executes itself."""

CONTROL = ("control",)
"""The role of the subjects of all of these."""

OUTCOME, STARTED, ENDED = "outcome", "started", "ended"

SUPERVISOR_SOURCE = "/supervisor"


class Command(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked for. `instance` "" means all instances of the agent.

    `incident` is the id of the event that the command answers to, "" for a person's wish.
    `instances` is for `scale`, `stream` and `sequence` (of the message) are for `park`, `to` (whose
    inbox; "" is the configured one) and `text` are for `escalate`.
    """

    instance: str = ""
    reason: str = ""
    incident: str = ""
    instances: int = 0
    stream: str = "LOG"
    sequence: int = 0
    to: str = ""
    text: str = ""


for _command in COMMANDS:
    event_type(PREFIX + _command, roles=CONTROL)(Command)


class RunRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is asked of an agent about one of its runs; `incident` as in `Command`."""

    run: str
    reason: str = ""
    incident: str = ""


for _command in RUN_COMMANDS:
    event_type(PREFIX + _command, roles=CONTROL)(RunRequest)


@event_type(PREFIX + OUTCOME, roles=CONTROL)
class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of a command. `done` is False where it was not or could not be executed.

    `pid` and `instance` are those of the process that runs afterwards, where it is one.
    """

    command: str
    done: bool
    detail: str = ""
    pid: int = 0
    instance: str = ""


@event_type(PREFIX + STARTED, roles=CONTROL)
class Started(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process was started for an agent. `slot` counts its instances from 1.

    `warm` says that a spare process took the place; `command` is the id of the command that it was
    started by, "" where its supervisor started.
    """

    instance: str
    pid: int
    host: str = ""
    slot: int = 1
    warm: bool = False
    command: str = ""
    supervisor: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that a process had in hand at its end. `begun`: its handler had been called.

    `deaths` counts the ends in a row at which it was begun and its run had not moved on; `mark` is
    where that run stood.
    """

    sequence: int
    stream: str = "LOG"
    begun: bool = False
    deaths: int = 0
    mark: str = ""


@event_type(PREFIX + ENDED, roles=CONTROL)
class Ended(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process of an agent ended. `code` is its exit code, negative for a signal.

    `wanted` says that its supervisor ended it; `killed` that it did not stop within its grace.
    """

    instance: str
    pid: int
    code: int
    signal: str = ""
    seconds: float = 0.0
    slot: int = 1
    wanted: bool = False
    killed: bool = False
    held: list[Held] = []
    supervisor: str = ""


def command_id(incident: str, command: str) -> str:
    """The id of the command that answers to an incident; the same for whoever gives it."""
    return f"cmd-{command}-{incident}"


def outcome_id(command: str) -> str:
    """The id of the outcome of the command with this id."""
    return f"outcome-{command}"


def new_command(
    command: str, what: Command, *, source: str, cause: Event[object] | None = None
) -> Event[Command]:
    """The event of a command: with the id of its incident, else with one of its own.

    Raises ValueError for a command that is none of COMMANDS.
    """
    if command not in COMMANDS:
        raise ValueError(f"there is no command {command!r}; there are {', '.join(COMMANDS)}")
    id = command_id(what.incident, command) if what.incident else None
    return new(PREFIX + command, what, source=source, id=id, cause=cause)


async def give(
    bus: Bus,
    agent: str,
    command: str,
    what: Command | None = None,
    *,
    source: str,
    cause: Event[object] | None = None,
) -> Event[Command]:
    """Store a command for an agent and return its event; the same incident gives one command."""
    event = new_command(command, what or Command(), source=source, cause=cause)
    await bus.publish(subject.control(agent, command), event)
    return event
