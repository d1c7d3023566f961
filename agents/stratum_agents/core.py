"""What the calls of one run share: its journal, its buffer of effects, and where it stands."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec.structs import replace

from stratum_agents.clock import SYSTEM, Clock
from stratum_agents.failure import (
    JournalMismatch,
    OutsideJournal,
    ReplayedToEnd,
    RunCancelled,
    RunFailed,
    Suspended,
)
from stratum_agents.journal import (
    SENT,
    Damaged,
    Effect,
    Entry,
    InputCame,
    Journal,
    Origin,
    Recorded,
)
from stratum_agents.values import Blobs
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError
from stratum_bus.event import Raw, RawEvent, encode_value
from stratum_bus.message import Message
from stratum_bus.publish import Append

T = TypeVar("T")

EFFECTS_MAX = 500
"""So many messages and notes are committed together; more, by an entry of their own in between."""


class Cursor:
    """Numbers the calls of a handler, or of a branch: `1`, `2`, … or `3.1.1`, `3.1.2`, …"""

    def __init__(self, core: Core, branch: str = "") -> None:
        self._core = core
        self._number = 0
        self.branch = branch

    def next(self) -> str:
        self._core.enter(self.branch)
        self._number += 1
        n = f"{self.branch}.{self._number}" if self.branch else str(self._number)
        self._core.ask(n)
        return n


class Core:
    """The state of one run in one worker. `clock` is the time of the world; `live` is False where
    the journal is only replayed, without effects.
    """

    def __init__(
        self,
        bus: Bus | None,
        agent: str,
        journal: Journal,
        event: RawEvent,
        message: Message,
        *,
        origin: Origin,
        attempt: int,
        holder: str,
        instance: str,
        clock: Clock = SYSTEM,
        live: bool = True,
    ) -> None:
        self._bus = bus
        self.agent = agent
        self.journal = journal
        self.event = event
        self.message = message
        self.attempt = attempt
        self.clock = clock
        self.live = live
        self.active = 1
        self.compensations: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.children: list[tuple[str, str, str]] = []
        self.unwinding = False
        self.stopped: BaseException | None = None
        self._gathering: set[str] = set()
        self._stepping: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self._ways_on: list[Callable[[], bool]] = []
        self.asked: set[str] = set()
        self._ahead = {n for n in journal.positions() if n[0].isdigit()}
        self._times: dict[str, datetime] = {}
        self._first = Entry(origin=origin, holder=holder, delivery=attempt, instance=instance)
        self._buffer: list[tuple[str, Append]] = []
        self._new_versions: list[str] = []
        self._old_versions: set[str] = set()

    @property
    def bus(self) -> Bus:
        if self._bus is None:
            self.stop(OutsideJournal())
        return self._bus

    def enter(self, branch: str) -> None:
        """A call is made in a branch."""
        if branch in self._gathering:
            text = (
                "a call on a run while its gather is at work has no place of its own: give gather "
                "functions of a run, as in run.gather(lambda run: work(run, item))"
            )
            self.stop(RunFailed(text))
        if self._stepping[branch]:
            text = (
                "a call on a run within a step has no place of its own, for a step is done once: "
                "return from the step what the call needs, and make it behind"
            )
            self.stop(RunFailed(text))
        if branch in self._waiting:
            raise Suspended  # what the handler does as it is left (finally) is for another time

    @functools.cached_property
    def _blobs(self) -> Blobs:
        return Blobs(self.bus.connection)

    def ask(self, n: str) -> None:
        """The handler has come to a position."""
        self.asked.add(n)
        self._ahead.discard(n)

    # What ends the run's call here, for good.

    def stop(self, reason: BaseException) -> NoReturn:
        """Raise `reason`, here and at every further call of the run.

        So a handler that catches it (`except Exception`) cannot go on as if a step had failed.
        """
        if self.stopped is None:
            self.stopped = reason
        raise self.stopped

    async def must(self, doing: Awaitable[T]) -> T:
        """Do a part of our own work: what goes wrong there stops the run's call."""
        try:
            return await doing
        except (InputCame, asyncio.CancelledError):
            raise
        except BaseException as error:  # noqa: BLE001 - raised again, there or by what came first
            self.stop(error)

    def check(self) -> None:
        if self.stopped is not None:
            raise self.stopped

    # What the journal holds.

    def recorded(self, n: str, asked: str) -> Recorded | None:
        """What was decided at a position; raises JournalMismatch where it is another call.

        `asked` is the name of the call, as in `step:summarise`.
        """
        held = self._held(n)
        if held and held != asked:
            self.mismatch(n, held, asked)
        if not held:
            self._nothing_behind(n, asked)
        found = self.journal.decided.get(n)
        if found is not None:
            self._seen(n, found.time)
        return found

    def unrecorded(self, n: str, asked: str) -> None:
        """A call that is never journaled; raises JournalMismatch where its place is taken."""
        if held := self._held(n):
            self.mismatch(n, held, asked)

    def effect(self, n: str, append: Append) -> str:
        """Buffer a message or note; skip it where it is in the log already. Raises EncodeError."""
        effect = Effect(n, append.subject, append.event.type)
        held = self._held(n)
        if held and self.journal.effects.get(n) != effect:
            self.mismatch(n, held, _shown(effect))
        if not held:
            self._nothing_behind(n, _shown(effect))
            self.before_live(n)
            caused = replace(
                append.event,
                # As it is now: whoever passed it may change it before it is committed.
                data=Raw(encode_value(append.event.data, "$.data")),
                runid=self.journal.run,
                causationid=append.event.causationid or self.event.id,
                correlationid=self.event.correlationid or self.event.id,
                traceparent=self.event.traceparent,
            )
            self._buffer.append((n, replace(append, event=caused)))
        return append.event.id

    def version(self, name: str, since: datetime | None) -> bool:
        self.check()
        if name in self.journal.versions or name in self._new_versions:
            return True
        went_past = bool(self._ahead)  # without it
        if went_past or name in self._old_versions or (since and self.message.time < since):
            self._old_versions.add(name)
            return False
        self._new_versions.append(name)
        return True

    async def result(self, recorded: Recorded, kind: Any = Any) -> Any:
        """The journaled result, as `kind`."""
        entry, raw = recorded.entry, recorded.entry.result
        try:
            if entry.packed:
                raw = Raw(msgspec.json.encode(await self.must(self._unpacked(recorded))))
            return msgspec.json.decode(raw, type=kind)
        except msgspec.ValidationError as error:
            self.mismatch(entry.n, f"a result of {entry.name}", f"another type of it ({error})")

    async def _unpacked(self, recorded: Recorded) -> Any:
        try:
            return await self._blobs.unpack(recorded.entry.result)
        except BlobError as error:
            where = f"run {self.journal.run}: entry {recorded.sequence}"
            raise Damaged(f"{where} is damaged: {error}") from error

    def check_end(self) -> None:
        """At the handler's end: JournalMismatch where the journal holds calls it did not make."""
        for n in sorted(self._ahead):
            self.mismatch(n, self._held(n), "nothing more")

    # Time, for each branch its own: what another one journaled in the meantime is chance.

    def now(self, branch: str) -> datetime:
        return self._times.get(branch, self.message.time)

    def pass_time(self, come_from: str, to: str) -> None:
        """A branch begins, or ends into another."""
        self._times[to] = max(self.now(come_from), self.now(to))

    def _seen(self, n: str, time: datetime) -> None:
        branch = _place(n)[0]
        self._times[branch] = max(self.now(branch), time)

    # Going on live.

    def before_live(self, n: str) -> None:
        """Called where the journal ends: may this call go on live?"""
        self.check()
        if not self.live:
            raise ReplayedToEnd(n)
        if self.unwinding:
            return
        if self.journal.cancel is not None or self.journal.compensating is not None:
            raise RunCancelled
        if self.journal.paused:
            self.suspend(n, lambda: not self.journal.paused)

    def suspend(self, n: str, way_on: Callable[[], bool]) -> NoReturn:
        """The call at a position waits, until `way_on`: its branch is let go of."""
        self._ways_on.append(way_on)
        if (branch := _place(n)[0]) not in self._gathering:
            self._waiting.add(branch)
        raise Suspended

    async def within_step(self, n: str, doing: Awaitable[T]) -> T:
        """Await what a step does, in which no calls are made on its branch."""
        branch = _place(n)[0]
        self._stepping[branch] += 1
        try:
            return await doing
        finally:
            self._stepping[branch] -= 1

    async def gather(self, branch: str, calls: Awaitable[T]) -> T:
        """Await what was gathered in a branch, which makes no calls of its own meanwhile."""
        self._gathering.add(branch)
        try:
            return await calls
        except Suspended:
            self._waiting.add(branch)
            raise
        finally:
            self._gathering.discard(branch)

    def can_go_on(self) -> bool:
        """Whether something came meanwhile that one of the branches has let go for."""
        cancelled = self.journal.cancel is not None and not self.unwinding
        return cancelled or any(way_on() for way_on in self._ways_on)

    async def append(
        self, kind: str, entry: Entry, *, id: str, stop_at_input: bool = False
    ) -> None:
        """Commit an entry with the effects and versions buffered so far; see `Journal.append`."""
        self.check()
        if not self.live:
            raise ReplayedToEnd(entry.n)
        taken, self._buffer = self._buffer, []
        versions, self._new_versions = self._new_versions, []
        if taken or versions:
            effects = [Effect(n, append.subject, append.event.type) for n, append in taken]
            entry = replace(entry, effects=effects, versions=versions)
        if not self.journal.started:
            first = self._first
            entry = replace(
                entry, origin=first.origin, holder=first.holder, delivery=first.delivery,
                instance=first.instance,
            )  # fmt: skip
        try:
            await self.must(
                self.journal.append(
                    kind, entry, id=id, effects=[a for _, a in taken], stop_at_input=stop_at_input
                )
            )
        except InputCame:
            self._buffer = taken + self._buffer
            self._new_versions = versions + self._new_versions
            raise
        if decided := self.journal.decided.get(entry.n):
            self._seen(entry.n, decided.time)

    async def flush(self) -> None:
        """Commit what is buffered where it is as much as goes into one commit."""
        if len(self._buffer) >= EFFECTS_MAX:
            await self.append(SENT, Entry(), id=f"{self.journal.run}-{self._buffer[-1][0]}-sent")

    async def pack(self, value: Any) -> tuple[Any, bool]:
        """A result as an entry holds it; raises EncodeError."""
        return await self.must(self._blobs.pack(value, "$.result"))

    def before_end(self) -> None:
        """The handler has returned: nothing stops the run any more, and a replay ends here."""
        if not self.live:
            raise ReplayedToEnd("end")
        self.unwinding = True

    def unwind(self) -> None:
        """From here on the run only undoes and ends; what was not committed is forgotten."""
        self.unwinding = True
        self.stopped = None
        self._buffer.clear()

    def park(self) -> None:
        """As `unwind`, and the ways that the code took are open again."""
        self.unwind()
        self._new_versions.clear()

    def again(self) -> Core:
        """The same run for another call of its handler, with the journal as it is now."""
        first = self._first
        assert first.origin is not None
        return Core(
            self._bus, self.agent, self.journal, self.event, self.message, origin=first.origin,
            attempt=self.attempt, holder=first.holder, instance=first.instance,
            clock=self.clock, live=self.live,
        )  # fmt: skip

    def mismatch(self, n: str, journaled: str, asked: str) -> NoReturn:
        advice = (
            "The handler was changed, or is not deterministic: put the change behind "
            'run.version("…"), or let the run end with the code it began with.'
        )
        self.stop(JournalMismatch(self.journal.run, n, journaled, asked, advice))

    def _held(self, n: str) -> str:
        """What the journal holds at a position, "" for nothing."""
        self.check()
        journal = self.journal
        if n in journal.effects:
            return _shown(journal.effects[n])
        tried = journal.attempts.get(n)
        known = journal.decided.get(n) or journal.waits.get(n) or (tried[0] if tried else None)
        return known.entry.name if known else ""

    def _nothing_behind(self, n: str, asked: str) -> None:
        """JournalMismatch where the journal went on behind a position, in its branch, without it."""
        if self._ahead:
            branch, number = _place(n)
            if any(at == branch and other > number > 0 for at, other in map(_place, self._ahead)):
                self.mismatch(n, "nothing, but later calls", asked)


def _shown(effect: Effect) -> str:
    return f"{effect.type} for {effect.subject}"


def _place(n: str) -> tuple[str, int]:
    """The branch of a position, and its number in it (0: it is none of the handler's)."""
    branch, _, number = n.rpartition(".")
    return branch, int(number) if number.isdigit() else 0
