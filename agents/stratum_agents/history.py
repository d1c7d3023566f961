"""The story of runs, for people: which there are and how they stand, and what happened in one."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from stratum_agents.journal import (
    CANCEL,
    COMPLETED,
    CONTINUE,
    CONTINUED,
    ENDS,
    FIRED,
    FORKED,
    INPUTS,
    KINDS,
    PARKED,
    PAUSE,
    PREFIX,
    RESUMED,
    SIGNALLED,
    STEP_COMPLETED,
    STEP_FAILED,
    WAIT_COMPLETED,
    WAITING,
    Effect,
    Failure,
    Journal,
    Origin,
    RawEntry,
    Recorded,
)
from stratum_agents.run import run_id
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent, InvalidName
from stratum_bus.event import typed
from stratum_bus.message import Message

DAMAGED, PAUSED, WAITS, RUNS, NEW = "damaged", "paused", "waiting", "running", "new"
TAKEN_OVER = "taken over"


class Summary(msgspec.Struct, omit_defaults=True):
    """How a run stands. `waits` is what it waits for, `until` when the first of these is over,
    `steps` counts what was done, `failures` the attempts that failed, `error` says why it failed,
    was parked or is damaged, `next` is the run that goes on in its place.
    """

    run: str
    agent: str
    type: str = ""
    state: str = NEW
    started: datetime | None = None
    changed: datetime | None = None
    ended: datetime | None = None
    steps: int = 0
    failures: int = 0
    entries: int = 0
    waits: list[str] = []
    until: datetime | None = None
    cancelling: bool = False
    instance: str = ""
    forked_from: str = ""
    forked_at: str = ""
    next: str = ""
    error: str = ""
    last_sequence: int = 0


class Attempt(msgspec.Struct, omit_defaults=True):
    """An attempt of a step that failed. `until` is when the next one was due."""

    number: int
    error: Failure
    seconds: float | None = None
    until: datetime | None = None


class Moment(msgspec.Struct, omit_defaults=True):
    """One call of a run, or one thing that happened to it, and what came of it.

    `time` is when it began. `what` is the call's name (`step:pay`, `sleep`, `wait:verdict`,
    `reply:task at helper`) or the entry's kind. `effects` were committed with it; `child` is the run that it waits for; `shared`
    is what a fork has of the run before.
    """

    sequence: int
    time: datetime
    n: str
    what: str
    state: str = ""
    seconds: float | None = None
    attempts: list[Attempt] = []
    effects: list[Effect] = []
    until: datetime | None = None
    result: msgspec.Raw | None = None
    error: Failure | None = None
    note: str = ""
    instance: str = ""
    child: str = ""
    shared: bool = False


class Story(msgspec.Struct, omit_defaults=True):
    """All that is known of a run: how it stands, what started it, what happened, its entries."""

    summary: Summary
    timeline: list[Moment]
    entries: list[Recorded]
    origin: Origin | None = None
    error: Failure | None = None


async def summaries(bus: Bus, agent: str | None = None) -> list[Summary]:
    """All runs, of one agent or of all, in the order they began. Reads their journals."""
    pattern = f"run.{subject.token(agent, 'agent name')}.>" if agent else "run.>"
    found: dict[str, _Teller] = {}
    async with bus.read(filters=[pattern]) as reader:
        async for message in reader:
            teller = found.get(message.subject)
            if teller is None:
                try:
                    place = subject.parse(message.subject)
                except InvalidName:
                    continue
                teller = found[message.subject] = _Teller(Summary(place.run, place.agent))
            try:
                teller.add(await recorded_of(bus, message))
            except (InvalidEvent, BlobError) as error:
                teller.damaged(str(error))
    return [teller.told() for teller in found.values()]


async def recorded_of(bus: Bus, message: Message) -> Recorded:
    """The journal entry in a message. Raises InvalidEvent, BlobError."""
    event = message.event()
    if event.data is None:
        event = await bus.with_data(event)
    kind = event.type.removeprefix(PREFIX)
    if kind not in KINDS:
        raise InvalidEvent(
            "shape", f"a {event.type} is no journal entry",
            stream=message.stream, sequence=message.sequence,
        )  # fmt: skip
    entry = typed(event, RawEntry).data
    return Recorded(kind, message.sequence, event.time or message.time, event.id, entry)


def story(journal: Journal, damage: str = "") -> Story:
    """The story of a run, as far as its journal could be read. `damage` says why not further."""
    teller = _Teller(Summary(journal.run, journal.agent))
    for recorded in journal.entries:
        teller.add(recorded)
    if damage:
        teller.damaged(damage)
    ended = journal.end or journal.parked
    return Story(
        teller.told(), moments(journal), journal.entries, journal.origin,
        ended.entry.error if ended else None,
    )  # fmt: skip


def moments(journal: Journal) -> list[Moment]:
    """What happened in a run, in the order in which it began."""
    found: dict[str, Moment] = {}
    shared = any(recorded.kind == FORKED for recorded in journal.entries)
    suspended = True
    told: set[str] = set()
    for recorded in journal.entries:
        kind, entry = recorded.kind, recorded.entry
        shared = shared and kind != FORKED
        key = entry.n or str(recorded.sequence)
        if (moment := found.get(key)) is None:
            moment = found[key] = _begin(recorded, shared)
        _add(moment, recorded)
        moment.effects += [effect for effect in entry.effects if effect.n not in told]
        told.update(effect.n for effect in entry.effects)
        if kind == RESUMED and not suspended:
            moment.what = TAKEN_OVER
        if kind not in INPUTS:
            suspended = entry.suspends
    for moment in found.values():
        if moment.what.startswith("reply:") and not moment.shared:
            moment.child = _child(journal, moment)
    return sorted(found.values(), key=lambda moment: moment.sequence)


def moment_of(recorded: Recorded, *, suspended: bool = True) -> Moment:
    """One entry by itself; `suspended` says that the run was let go of before."""
    moment = _begin(recorded, shared=False)
    moment.effects = recorded.entry.effects
    _add(moment, recorded)
    if recorded.kind == RESUMED and not suspended:
        moment.what = TAKEN_OVER
    if recorded.kind == WAIT_COMPLETED:
        moment.seconds = None
    return moment


def _begin(recorded: Recorded, shared: bool) -> Moment:
    entry = recorded.entry
    what = entry.name if recorded.kind not in (*INPUTS, COMPLETED) and entry.name else recorded.kind
    began = recorded.time - timedelta(seconds=entry.seconds or 0)
    return Moment(recorded.sequence, began, entry.n, what, shared=shared)


def _add(moment: Moment, recorded: Recorded) -> None:
    kind, entry = recorded.kind, recorded.entry
    moment.instance = entry.instance or moment.instance
    moment.until = entry.until or moment.until
    if kind == STEP_FAILED and entry.error is not None:
        attempt = Attempt(entry.attempt, entry.error, entry.seconds, entry.until)
        moment.attempts.append(attempt)
        moment.state = "failed" if entry.final else "to be tried again"
        moment.error = entry.error if entry.final else None
    elif kind == STEP_COMPLETED:
        moment.state, moment.result, moment.until = "done", entry.result, None
    elif kind == WAITING:
        moment.state = "waiting"
    elif kind == WAIT_COMPLETED:
        moment.state = "over" if moment.what == "sleep" else entry.reason or "came"
        moment.seconds = (recorded.time - moment.time).total_seconds()
    else:
        moment.note = entry.run or entry.reason
        moment.error = entry.error
    if entry.seconds is not None:
        moment.seconds = (moment.seconds or 0.0) + entry.seconds
    if kind in (COMPLETED, SIGNALLED):
        moment.result = entry.result
    if kind in (SIGNALLED, FIRED):
        moment.note = ", from ".join(part for part in (entry.name, entry.reason) if part)
    if kind == FORKED:
        moment.note = f"{entry.run} at {entry.at}"
        moment.result = msgspec.Raw(msgspec.json.encode(entry.sets)) if entry.sets else None


def _child(journal: Journal, waits: Moment) -> str:
    """The run that a call waits for, from the message that began it; "" where it is not clear."""
    type, _, agent = waits.what.removeprefix("reply:").rpartition(" at ")
    asked = [
        effect.n
        for effect in journal.effects.values()
        if effect.type == type and effect.subject.startswith(f"inbox.{agent}.")
    ]
    branch, _, number = waits.n.rpartition(".")
    before = f"{branch}.{int(number) - 1}" if branch else str(int(number) - 1)
    n = before if before in asked else asked[0] if len(asked) == 1 else ""
    return run_id(agent, f"{journal.run}-{n}") if n else ""


class _Teller:
    """Folds entries into a summary."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._paused = False
        self._open: dict[str, tuple[str, datetime | None]] = {}

    def add(self, recorded: Recorded) -> None:
        summary, kind, entry = self._summary, recorded.kind, recorded.entry
        self._place(recorded.sequence)
        summary.started = summary.started or recorded.time - timedelta(seconds=entry.seconds or 0)
        summary.changed = recorded.time
        if kind in INPUTS:
            self._paused = kind == PAUSE or (self._paused and kind != CONTINUE)
            summary.cancelling = summary.cancelling or kind == CANCEL
            return
        summary.instance = entry.instance or summary.instance
        if entry.origin is not None:
            summary.type = entry.origin.handler
        if kind == FORKED:
            summary.forked_from, summary.forked_at = entry.run, entry.at
            summary.started = recorded.time
        summary.steps += kind == STEP_COMPLETED
        summary.failures += kind == STEP_FAILED
        self._wait(kind, entry)
        failed = kind in ENDS or kind == PARKED
        summary.error = (
            f"{entry.error.type}: {entry.error.message}" if entry.error and failed else ""
        )
        summary.state = kind if failed else WAITS if entry.suspends else RUNS
        if kind in ENDS:
            summary.ended, summary.cancelling = recorded.time, False
        if kind == CONTINUED:
            summary.next = entry.run

    def damaged(self, reason: str) -> None:
        self._summary.state, self._summary.error = DAMAGED, reason
        self._summary.entries += 1

    def told(self) -> Summary:
        summary = self._summary
        if summary.state == WAITS and self._paused:
            summary.state = PAUSED
        if summary.state in (WAITS, PAUSED, RUNS):
            summary.waits = [what for what, _ in self._open.values()]
            ends = [until for _, until in self._open.values() if until is not None]
            summary.until = min(ends, default=None)
        return summary

    def _place(self, sequence: int) -> None:
        self._summary.entries += 1
        self._summary.last_sequence = sequence

    def _wait(self, kind: str, entry: RawEntry) -> None:
        if kind == WAITING or (kind == STEP_FAILED and not entry.final):
            self._open[entry.n] = (entry.name, entry.until)
        elif entry.n:
            self._open.pop(entry.n, None)
