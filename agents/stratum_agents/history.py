"""The story of runs, for people: which there are and how they stand, and what happened in one."""

from __future__ import annotations

from datetime import datetime

import msgspec

from stratum_agents.journal import (
    ENDS,
    INPUTS,
    PREFIX,
    STEP_COMPLETED,
    STEP_FAILED,
    WAIT_COMPLETED,
    WAITING,
    Effect,
    Failure,
    Journal,
    RawEntry,
    Recorded,
)
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.event import typed
from stratum_bus.message import Message


class Summary(msgspec.Struct, omit_defaults=True):
    """How a run stands. `waits` is what it waits for, `error` why it failed or was parked."""

    run: str
    agent: str
    type: str = ""
    state: str = "new"
    started: datetime | None = None
    changed: datetime | None = None
    steps: int = 0
    entries: int = 0
    waits: str = ""
    until: datetime | None = None
    error: str = ""
    last_sequence: int = 0


class Moment(msgspec.Struct, omit_defaults=True):
    """One call of a run and what came of it. `attempts` are its journaled failures."""

    sequence: int
    time: datetime
    n: str
    what: str
    state: str
    seconds: float | None = None
    attempts: list[Failure] = []
    effects: list[Effect] = []
    until: datetime | None = None
    result: msgspec.Raw | None = None
    note: str = ""


async def summaries(bus: Bus, agent: str | None = None) -> list[Summary]:
    """All runs, of one agent or of all, in the order they began."""
    pattern = f"run.{subject.token(agent, 'agent name')}.>" if agent else "run.>"
    found: dict[str, Summary] = {}
    async with bus.read(filters=[pattern]) as reader:
        async for message in reader:
            try:
                place = subject.parse(message.subject)
            except InvalidName:
                continue
            summary = found.setdefault(message.subject, Summary(place.run, place.agent))
            _tell(summary, message)
    return list(found.values())


def moments(journal: Journal) -> list[Moment]:
    """What happened in a run, in the order in which it was decided."""
    story: dict[str, Moment] = {}
    for recorded in journal.entries:
        entry = recorded.entry
        key = entry.n or f"at {recorded.sequence}"
        moment = story.get(key)
        if moment is None or not entry.n:
            what = entry.name or recorded.kind
            moment = story[key] = Moment(recorded.sequence, recorded.time, entry.n, what, "")
        _add(moment, recorded)
    return sorted(story.values(), key=lambda moment: moment.sequence)


def _add(moment: Moment, recorded: Recorded) -> None:
    kind, entry = recorded.kind, recorded.entry
    moment.effects = [*moment.effects, *entry.effects]
    moment.state = {
        STEP_COMPLETED: "done",
        STEP_FAILED: "failed" if entry.final else "to be tried again",
        WAITING: "waiting",
        WAIT_COMPLETED: entry.reason or "came",
    }.get(kind, kind)
    if entry.seconds is not None:
        moment.seconds = (moment.seconds or 0.0) + entry.seconds
    elif kind == WAIT_COMPLETED:
        moment.seconds = (recorded.time - moment.time).total_seconds()
    if entry.error is not None:
        moment.attempts = [*moment.attempts, entry.error]
    if kind in (STEP_COMPLETED, *ENDS, *INPUTS):
        moment.result = entry.result
    moment.until = entry.until or moment.until
    moment.note = entry.reason if kind not in (WAIT_COMPLETED, WAITING) else moment.note


def _tell(summary: Summary, message: Message) -> None:
    summary.entries += 1
    summary.last_sequence = message.sequence
    try:
        event = message.event()
        entry = typed(event, RawEntry).data
    except InvalidEvent as error:
        summary.state, summary.error = "damaged", str(error)
        return
    kind = event.type.removeprefix(PREFIX)
    time = event.time or message.time
    summary.started = summary.started or time
    summary.changed = time
    if entry.origin is not None:
        summary.type = entry.origin.handler
    if kind in INPUTS:
        return
    if kind == STEP_COMPLETED:
        summary.steps += 1
    if kind == WAITING:
        summary.waits, summary.until = entry.name, entry.until
    if kind in ENDS or kind == "parked":
        summary.state = kind
        summary.error = f"{entry.error.type}: {entry.error.message}" if entry.error else ""
    else:
        summary.state = "waiting" if entry.suspends else "running"
        if entry.reason == "paused":
            summary.state = "paused"
        summary.error = ""
    if summary.state != "waiting":
        summary.waits, summary.until = "", None
