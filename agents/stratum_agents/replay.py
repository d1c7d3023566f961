"""Recordings of runs, and replaying today's handler against them, without effects.

A recording is a journal with all that a replay needs, blobs brought in; kept as a file, it is a
test that a change of the code does not break the runs that are still sleeping.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_agents.agent import Agent
from stratum_agents.core import Core
from stratum_agents.failure import JournalMismatch, ReplayedToEnd, RunError
from stratum_agents.journal import COMPLETED, Journal, Origin, Recorded
from stratum_agents.run import Run
from stratum_agents.values import unpack
from stratum_bus.bus import Bus
from stratum_bus.errors import ConfigError, NotFound
from stratum_bus.event import Raw, RawEvent, encode, typed
from stratum_bus.message import Message, nanoseconds


class Recording(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run as it was recorded. `subject` and `time` are those of the message that started it."""

    run: str
    agent: str
    subject: str
    time: datetime
    event: RawEvent
    entries: list[Recorded]


class Replayed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replay found. `agrees`, or the first difference: what the journal holds at position
    `n`, what the handler asked for, and what to do about it. `calls` counts those that agreed.
    """

    run: str
    agrees: bool
    calls: int
    n: str = ""
    journaled: str = ""
    asked: str = ""
    advice: str = ""


async def record(bus: Bus, agent: str, run: str) -> Recording:
    """Record a run as it stands. Raises NotFound, Damaged."""
    journal = await Journal(bus, agent, run).load()
    if journal.origin is None:
        raise NotFound("run", f"{run} of agent {agent}")
    message = await bus.get(journal.origin.stream, journal.origin.sequence)
    entries = [await _whole(bus, recorded) for recorded in journal.entries]
    event = await bus.event(message)
    return Recording(run, agent, message.subject, message.time, event, entries)


def save(recording: Recording, path: Path | str) -> None:
    """Write a recording as JSON, a line for each entry."""
    lines = [msgspec.json.encode(replace(recording, entries=[]))]
    lines += [msgspec.json.encode(recorded) for recorded in recording.entries]
    Path(path).write_bytes(b"\n".join(lines) + b"\n")


def load(path: Path | str) -> Recording:
    """Read what `save` wrote; raises ConfigError for anything else."""
    first, *rest = Path(path).read_bytes().splitlines()
    try:
        recording = msgspec.json.decode(first, type=Recording)
        entries = [msgspec.json.decode(line, type=Recorded) for line in rest]
    except msgspec.MsgspecError as error:
        name = Path(path).name
        raise ConfigError("the file", "a recorded run", str(error), file=name) from None
    return replace(recording, entries=entries)


async def replay(agent: Agent, recording: Recording) -> Replayed:
    """Run the agent's handler against a recording. Nothing is sent, no step is done again."""
    journal = Journal.recorded(recording.agent, recording.run, recording.entries)
    origin = journal.origin
    handler = agent.handler_for(origin.handler) if origin else None
    if origin is None or handler is None:
        asked = f"there is no handler for {origin.handler if origin else 'it'}"
        return Replayed(recording.run, False, 0, "0", "a run", asked, "Declare it again.")
    core = _core(journal, recording, origin)
    ended = journal.end.kind if journal.end else ""
    differs: tuple[str, str, str, str] | None = None
    try:
        await handler.function(Run(core), typed(recording.event, handler.data))
        core.check_end()
        if ended != COMPLETED:
            differs = ("end", ended or "more to come", "nothing more", "")
    except ReplayedToEnd as end:
        if ended:
            differs = (str(end), f"the end of the run ({ended})", "one more call", "")
    except JournalMismatch as error:
        differs = (error.n, error.journaled, error.asked, error.advice)
    except RunError:
        if ended == COMPLETED:
            raise
    except Exception as error:  # noqa: BLE001 - what the handler raises is what is looked for
        if ended in ("", COMPLETED):
            differs = ("", ended or "more to come", f"{type(error).__name__}: {error}", "")
    calls = sum(1 for n in core.asked if n in journal.decided or n in journal.effects)
    if differs is None:
        return Replayed(recording.run, True, calls)
    return Replayed(recording.run, False, calls, *differs)


def _core(journal: Journal, recording: Recording, origin: Origin) -> Core:
    event = recording.event
    message = Message(
        origin.stream, origin.sequence, recording.subject, nanoseconds(recording.time),
        encode(event),
    )  # fmt: skip
    return Core(
        None, recording.agent, journal, event, message,
        origin=origin, attempt=1, holder="", instance="replay", live=False,
    )  # fmt: skip


async def _whole(bus: Bus, recorded: Recorded) -> Recorded:
    """The entry with its blobs brought in."""
    entry = recorded.entry
    if not entry.packed:
        return recorded
    value: Any = await unpack(bus.connection, entry.result)
    raw = Raw(msgspec.json.encode(value))
    return replace(recorded, entry=replace(entry, result=raw, packed=False))
