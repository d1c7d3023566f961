"""The journal of a run: the events under `run.<agent>.<run>`, what they say, and who may add to them.

The owner of a run appends its entries with the subject's last sequence as expectation: that is the
fence. Others append only inputs (signals, fired timers, requests), without one. So an owner whose
append is refused reads what came in between: inputs are taken in and the append is tried again; an
entry of another owner means that the run was taken over, and the late one stops (Fenced). The ids of
an owner's entries are its own: the same step done by two is never taken for one answer sent twice.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import anyio
import msgspec
from msgspec.structs import astuple, replace

from stratum_agents.clock import SYSTEM, Clock
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import (
    BlobError,
    InvalidEvent,
    NotFound,
    StratumError,
    WrongSequence,
)
from stratum_bus.event import Event, Raw, agent_source, new, typed, uuid7
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.schema import event_type

PREFIX = "stratum.run."

STEP_COMPLETED, STEP_FAILED = "step.completed", "step.failed"
WAITING, WAIT_COMPLETED = "waiting", "wait.completed"
RESUMED, SUSPENDED, COMPENSATING = "resumed", "suspended", "compensating"
SIGNALLED, FIRED = "signalled", "fired"
CANCEL, PAUSE, CONTINUE = "cancel.requested", "pause.requested", "continue.requested"
COMPLETED, FAILED, CANCELLED, CONTINUED = "completed", "failed", "cancelled", "continued"
PARKED, FORKED, SENT = "parked", "forked", "sent"

INPUTS = {SIGNALLED, FIRED, CANCEL, PAUSE, CONTINUE}
"""What others may add to a run, without owning it."""

INHERITED = {STEP_COMPLETED, STEP_FAILED, WAITING, WAIT_COMPLETED, SIGNALLED, FIRED}
"""What a fork shares of the journal before it."""

ENDS = {COMPLETED, FAILED, CANCELLED, CONTINUED}
"""After one of these nothing is added."""


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The message that a run was started by."""

    stream: str
    sequence: int
    id: str
    type: str
    handler: str
    conversation: str | None = None


class Effect(msgspec.Struct, frozen=True):
    """A message or note that was committed together with an entry; `n` is its position."""

    n: str
    subject: str
    type: str


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it is journaled: the name of its class, its text, and where it was raised."""

    type: str
    message: str
    trace: str = ""
    cause: str = ""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """The data of a journal entry; which fields are there depends on its kind.

    `n` is the position in the handler (`3`, or `3.1.2` in a branch), `name` the step's name or
    what is waited for, `arguments` a digest of what the step was called with, so that one sees the
    same call again ("" for none, or where they are no JSON). `packed` says that `result` refers to blobs (see `values`). `holder` is
    the message in whose delivery the owner works, as `<stream>-<sequence>`, `delivery` which one
    of it this is. `suspends` says that the owner let go of the run after this entry.
    """

    n: str = ""
    name: str = ""
    arguments: str = ""
    result: Any = None
    packed: bool = False
    error: Failure | None = None
    attempt: int = 0
    final: bool = False
    seconds: float | None = None
    until: datetime | None = None
    types: list[str] = []
    input: str = ""
    suspends: bool = False
    effects: list[Effect] = []
    versions: list[str] = []
    origin: Origin | None = None
    holder: str = ""
    delivery: int = 0
    instance: str = ""
    reason: str = ""
    run: str = ""
    at: str = ""
    sets: dict[str, Any] = {}


class RawEntry(Entry, frozen=True, omit_defaults=True):
    """An entry as it is read: the result is left as JSON until a handler asks for it."""

    result: Raw = Raw(b"null")


KINDS = {
    STEP_COMPLETED, STEP_FAILED, WAITING, WAIT_COMPLETED, RESUMED, SUSPENDED, COMPENSATING,
    SIGNALLED, FIRED, CANCEL, PAUSE, CONTINUE, COMPLETED, FAILED, CANCELLED, CONTINUED, PARKED,
    FORKED, SENT,
}  # fmt: skip
for _kind in sorted(KINDS):
    event_type(PREFIX + _kind, roles=("run",))(Entry)


class Recorded(msgspec.Struct, frozen=True):
    """An entry in its place in the log."""

    kind: str
    sequence: int
    time: datetime
    id: str
    entry: RawEntry


class Fenced(BaseException):
    """Another worker owns the run now. Not an Exception, so that no handler swallows it."""


class Exists(BaseException):
    """The run that was about to start has been started before."""


class InputCame(Exception):
    """Inputs arrived before an entry that they may make unnecessary; nothing was stored."""


class Conflict(StratumError):
    """Somebody else changed what an effect was decided on; nothing was stored, another attempt
    decides anew.
    """

    def __init__(self, run: str, effects: Sequence[Append]) -> None:
        expected = [e.subject for e in effects if e.expected_sequence is not None]
        super().__init__(f"run {run}: {', '.join(expected) or 'its journal'} was changed meanwhile")


class Damaged(StratumError):
    """A journal that cannot be read, with the sequence and the reason."""


class Journal:
    """What is known of a run, and the way to add to it."""

    def __init__(self, bus: Bus | None, agent: str, run: str, clock: Clock = SYSTEM) -> None:
        self._maybe_bus = bus
        self._clock = clock
        self._owner = f".{uuid7()[-12:]}"
        self.agent = agent
        self.run = run
        self.subject = subject.run(agent, run)
        self.last_sequence = 0
        self.entries: list[Recorded] = []
        self.decided: dict[str, Recorded] = {}
        self.waits: dict[str, Recorded] = {}
        self.attempts: dict[str, list[Recorded]] = {}
        self.effects: dict[str, Effect] = {}
        self.versions: set[str] = set()
        self.inputs: dict[str, Recorded] = {}
        self.taken: set[str] = set()
        self.origin: Origin | None = None
        self.holder = ""
        self.delivery = 0
        self.instance = ""
        self.state = "new"
        self.suspended = False
        self.cancel: Recorded | None = None
        self.paused = False
        self.parked: Recorded | None = None
        self.compensating: Recorded | None = None
        self.end: Recorded | None = None
        self.forked_from = ""
        self._verified = False
        self._lock = asyncio.Lock()

    @classmethod
    def recorded(cls, agent: str, run: str, entries: Sequence[Recorded]) -> Journal:
        """A journal as it was recorded, to read only."""
        journal = cls(None, agent, run)
        for recorded in entries:
            if recorded.kind == FORKED:
                journal.last_sequence = 0
            journal._fold(recorded)
        return journal

    async def load(self) -> Journal:
        """Read what is stored and not yet known. Raises Damaged, having taken in all the rest."""
        damage: Damaged | None = None
        async with self._bus.read(filters=[self.subject], start=self.last_sequence + 1) as reader:
            async for message in reader:
                try:
                    await self._take_in(message)
                except Damaged as error:
                    damage = damage or error
                    self.last_sequence = message.sequence
        if damage is not None:
            raise damage
        return self

    @property
    def _bus(self) -> Bus:
        assert self._maybe_bus is not None, "a recorded journal has no bus"
        return self._maybe_bus

    @property
    def started(self) -> bool:
        return self.origin is not None

    def open_inputs(self, kind: str) -> Iterable[Recorded]:
        """Inputs of a kind that nothing has taken yet, in the order of the log."""
        return [r for id, r in self.inputs.items() if r.kind == kind and id not in self.taken]

    def positions(self) -> set[str]:
        """Where in the handler something is journaled."""
        return {*self.decided, *self.waits, *self.attempts, *self.effects}

    def wakes(self, id: str, kind: str, entry: Entry) -> bool:
        """Whether an input is a reason to resume the run, where its owner let go of it."""
        if kind in (CANCEL, CONTINUE):
            return True
        if self.paused or self.parked is not None or id in self.taken:
            return False
        if kind == SIGNALLED:
            open_waits = (wait.entry for n, wait in self.waits.items() if n not in self.decided)
            return any(entry.name in wait.types for wait in open_waits)
        return kind == FIRED

    async def verify_new(self) -> None:
        """Before a new run does anything outside the log: is it really new? Raises Exists."""
        if self._verified or self.last_sequence:
            return
        if await self._bus.last(self.subject) is not None:
            await self._catch_up()
        self._verified = True

    async def append(
        self,
        kind: str,
        entry: Entry,
        *,
        id: str,
        effects: Sequence[Append] = (),
        stop_at_input: bool = False,
    ) -> None:
        """Add an entry as the owner, in one atomic commit with the effects before it.

        Once begun it is not cancelled. Raises Fenced where another owner appeared, Exists where a
        new run was there already, InputCame with `stop_at_input` where inputs came first, Conflict
        where the expectation of an effect did not hold.
        """
        async with self._lock:
            with anyio.CancelScope(shield=True):
                await self._append(kind, entry, id, effects, stop_at_input)

    async def _append(
        self, kind: str, entry: Entry, id: str, effects: Sequence[Append], stop_at_input: bool
    ) -> None:
        event = self._event(kind, entry, id + self._owner)
        while True:
            own = Append(self.subject, event, expected_sequence=self.last_sequence)
            try:
                acks = await self._bus.commit([*effects, own])
            except WrongSequence as error:
                if not await self._catch_up():
                    raise Conflict(self.run, effects) from error
                if stop_at_input:
                    raise InputCame from None
                continue
            time = event.time or self._clock.now()
            self._fold(Recorded(kind, acks[-1].sequence, time, event.id, _raw(entry)))
            return

    async def add_input(self, kind: str, entry: Entry, *, id: str) -> None:
        """Add an input without owning the run; the same id is added once."""
        if id not in self.inputs:
            await self._bus.publish(self.subject, self._event(kind, entry, id))
            await self.load()

    async def _catch_up(self) -> bool:
        """Take in what came since, if anything did; Fenced or Exists unless it was inputs only."""
        known, was_new = len(self.entries), not self.started
        await self.load()
        came = self.entries[known:]
        if any(recorded.kind not in INPUTS for recorded in came):
            raise Exists if was_new else Fenced
        return bool(came)

    def _event(self, kind: str, entry: Entry, id: str) -> Event[Any]:
        event = new(
            PREFIX + kind, entry, source=agent_source(self.agent), id=id, runid=self.run,
            time=self._clock.now(),
        )  # fmt: skip
        origin = entry.origin or self.origin
        return replace(
            event,
            step=entry.n or None,
            causationid=origin.id if origin else None,
            correlationid=(origin.conversation or origin.id) if origin else None,
        )

    async def _take_in(self, message: Message) -> None:
        try:
            event = await self._bus.event(message)
            kind = event.type.removeprefix(PREFIX)
            entry = typed(event, RawEntry).data
        except (InvalidEvent, BlobError) as error:
            raise Damaged(
                f"run {self.run}: entry {message.sequence} is damaged: {error}"
            ) from error
        if kind not in KINDS or not event.type.startswith(PREFIX):
            raise Damaged(f"run {self.run}: {message.sequence} is a {event.type}, no journal entry")
        recorded = Recorded(kind, message.sequence, event.time or message.time, event.id, entry)
        if kind == FORKED:
            recorded = await self._inherit(recorded)
        self._fold(recorded)

    async def _inherit(self, forked: Recorded) -> Recorded:
        """What the run before did up to a position is what this one did; returns the entry with
        the effects that this brings.
        """
        parent = await Journal(self._bus, self.agent, forked.entry.run).load()
        at, first = parent.at(forked.entry.at)
        for recorded in parent.entries:
            if recorded.sequence < first.sequence and recorded.kind in INHERITED:
                self._fold(_with_set(recorded, forked.entry.sets))
        # Messages before the position may have been committed with an entry behind it.
        done = [e for n, e in parent.effects.items() if _order(n) < _order(at)]
        self.origin = parent.origin
        self.last_sequence, self.forked_from = 0, forked.entry.run
        return replace(forked, entry=replace(forked.entry, effects=done))

    def at(self, at: str) -> tuple[str, Recorded]:
        """A position of the handler, given as such or by a step's name, and the first entry that
        holds it; `end` is behind all positions of a run that has ended. Raises NotFound.
        """
        if at == "end" and self.end is not None:
            return at, self.end
        own = [r for r in self.entries if r.kind not in INPUTS and r.entry.n[:1].isdigit()]
        named = (r.entry.n for r in own if at == r.entry.name.removeprefix("step:"))
        n = at if at in self.positions() else next(named, "")
        if n[:1].isdigit():
            return n, next(r for r in self.entries if n in _positions_of(r.entry))
        there = sorted(filter(lambda n: n[0].isdigit(), self.positions()), key=_order)
        shown = ", ".join(there if len(there) <= 12 else [*there[:5], "…", *there[-5:]])
        where = f"{at or '(none)'} in the journal of run {self.run}"
        raise NotFound("position or step", f"{where}; it has {shown or 'none'}")

    def _fold(self, recorded: Recorded) -> None:
        if recorded.sequence <= self.last_sequence:
            return
        self.last_sequence = recorded.sequence
        self.entries.append(recorded)
        kind, entry = recorded.kind, recorded.entry
        if kind in INPUTS:
            self._fold_input(recorded)
            return
        self.effects.update({effect.n: effect for effect in entry.effects})
        self.versions.update(entry.versions)
        self.origin = self.origin or entry.origin
        if entry.holder:
            self.holder, self.delivery, self.instance = entry.holder, entry.delivery, entry.instance
        self.suspended = entry.suspends
        if entry.input:
            self.taken.add(entry.input)
        if kind in (STEP_COMPLETED, WAIT_COMPLETED) or (kind == STEP_FAILED and entry.final):
            self.decided[entry.n] = recorded
        elif kind == WAITING:
            self.waits[entry.n] = recorded
        elif kind == COMPENSATING:
            self.compensating = recorded
        if kind == STEP_FAILED:
            self.attempts.setdefault(entry.n, []).append(recorded)
        self.parked = recorded if kind == PARKED else None
        if kind in ENDS:
            self.end = recorded
        self.state = _state(kind, entry)

    def _fold_input(self, recorded: Recorded) -> None:
        if recorded.id in self.inputs:
            return
        self.inputs[recorded.id] = recorded
        if recorded.kind == CANCEL:
            self.cancel = self.cancel or recorded
        elif recorded.kind == PAUSE:
            self.paused = True
        elif recorded.kind == CONTINUE:
            self.paused = False


def _state(kind: str, entry: Entry) -> str:
    if kind in ENDS or kind == PARKED:
        return kind
    return "waiting" if entry.suspends else "running"


def _positions_of(entry: Entry) -> list[str]:
    return [entry.n, *(effect.n for effect in entry.effects)]


def _order(n: str) -> tuple[int, ...]:
    """Positions in the order of the handler; what is none of its calls comes last."""
    parts = n.split(".")
    return tuple(map(int, parts)) if all(map(str.isdigit, parts)) else (sys.maxsize,)


def _with_set(recorded: Recorded, sets: dict[str, Any]) -> Recorded:
    """The entry, with its result replaced where the fork says so, by position or step name."""
    entry = recorded.entry
    for key in (entry.n, entry.name.removeprefix("step:")):
        if key in sets and recorded.kind == STEP_COMPLETED:
            value = Raw(msgspec.json.encode(sets[key]))
            return replace(recorded, entry=replace(entry, result=value, packed=False))
    return recorded


def _raw(entry: Entry) -> RawEntry:
    result = entry.result
    raw = result if isinstance(result, Raw) else Raw(msgspec.json.encode(result))
    return RawEntry(*astuple(replace(entry, result=raw)))
