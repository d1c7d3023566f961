"""What the calls of one run share: its journal, its buffer of effects, and where it stands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_agents.failure import JournalMismatch, ReplayedToEnd, RunCancelled, Suspended
from stratum_agents.journal import Effect, Entry, Journal, Origin, Recorded
from stratum_agents.values import unpack
from stratum_bus.bus import Bus
from stratum_bus.event import RawEvent
from stratum_bus.message import Message
from stratum_bus.publish import Append

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Cursor:
    """Numbers the calls of a handler, or of a branch: `1`, `2`, … or `3.1.1`, `3.1.2`, …"""

    def __init__(self, core: Core, prefix: str = "") -> None:
        self._core = core
        self._prefix = prefix
        self._number = 0

    def next(self) -> str:
        self._number += 1
        n = f"{self._prefix}{self._number}"
        self._core.take(n)
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
        clock: Clock = utc_now,
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
        self.now = message.time
        self.active = 1
        self.compensations: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self.children: list[tuple[str, str]] = []
        self.unwinding = False
        self._first = Entry(origin=origin, holder=holder, instance=instance)
        self._buffer: list[tuple[str, Append]] = []
        self._new_versions: list[str] = []
        self.asked: set[str] = set()
        self._to_be_asked = set(journal.decided)

    @property
    def bus(self) -> Bus:
        if self._bus is None:
            raise ReplayedToEnd("something outside the journal")
        return self._bus

    def take(self, n: str) -> None:
        """A call of the handler takes a position."""
        self.asked.add(n)
        self._to_be_asked.discard(n)

    def recorded(self, n: str, asked: str) -> Recorded | None:
        """What the journal holds for a position; raises JournalMismatch where it is another call.

        `asked` is the name of the call, as in `step:summarise`.
        """
        if n in self.journal.effects:
            raise self._mismatch(n, _shown(self.journal.effects[n]), asked)
        found = self.journal.decided.get(n)
        tried = self.journal.attempts.get(n)
        known = found or self.journal.waits.get(n) or (tried[0] if tried else None)
        if known is not None and known.entry.name != asked:
            raise self._mismatch(n, known.entry.name, asked)
        if found is None and known is None and self._decided_later(n):
            raise self._mismatch(n, "nothing, but later calls", asked)
        if found is not None:
            self.now = max(self.now, found.time)
        return found

    def effect(self, n: str, append: Append) -> str:
        """Buffer a message or note; skip it where it is in the log already."""
        effect = Effect(n, append.subject, append.event.type)
        journaled = self.journal.effects.get(n)
        if journaled is None and n in self.journal.decided:
            raise self._mismatch(n, self.journal.decided[n].entry.name, _shown(effect))
        if journaled is not None and journaled != effect:
            raise self._mismatch(n, _shown(journaled), _shown(effect))
        if journaled is None:
            self.before_live(n)
            caused = replace(
                append.event,
                runid=self.journal.run,
                causationid=self.event.id,
                correlationid=self.event.correlationid or self.event.id,
                traceparent=self.event.traceparent,
            )
            self._buffer.append((n, replace(append, event=caused)))
        return append.event.id

    def drop_effects(self) -> None:
        """Forget what was buffered behind the last entry: it was not committed, and will not be."""
        self._buffer.clear()

    def again(self) -> Core:
        """The same run for another call of its handler, with the journal as it is now."""
        first = self._first
        assert first.origin is not None
        return Core(
            self._bus, self.agent, self.journal, self.event, self.message, origin=first.origin,
            attempt=self.attempt, holder=first.holder, instance=first.instance,
            clock=self.clock, live=self.live,
        )  # fmt: skip

    def before_end(self) -> None:
        """The handler has returned: nothing stops the run any more, and a replay ends here."""
        if not self.live:
            raise ReplayedToEnd("end")
        self.unwinding = True

    def before_live(self, n: str) -> None:
        """Called where the journal ends: may this call go on live?"""
        if not self.live:
            raise ReplayedToEnd(n)
        if self.unwinding:
            return
        if self.journal.cancel is not None or self.journal.compensating is not None:
            raise RunCancelled
        if self.journal.paused:
            raise Suspended

    async def append(
        self, kind: str, entry: Entry, *, id: str, stop_at_input: bool = False
    ) -> None:
        """Commit an entry with the effects and versions buffered so far; see `Journal.append`."""
        taken, self._buffer = self._buffer, []
        versions, self._new_versions = self._new_versions, []
        if taken or versions:
            effects = [Effect(n, append.subject, append.event.type) for n, append in taken]
            entry = replace(entry, effects=effects, versions=versions)
        if not self.journal.started:
            first = self._first
            entry = replace(
                entry, origin=first.origin, holder=first.holder, instance=first.instance
            )
        try:
            await self.journal.append(
                kind, entry, id=id, effects=[a for _, a in taken], stop_at_input=stop_at_input
            )
        except BaseException:
            self._buffer = taken + self._buffer
            self._new_versions = versions + self._new_versions
            raise
        self.now = max(self.now, self.journal.entries[-1].time)

    def version(self, name: str, since: datetime | None) -> bool:
        if name in self.journal.versions or name in self._new_versions:
            return True
        if self._to_be_asked:
            return False  # it went past here without
        if since is not None and self.message.time < since:
            return False
        self._new_versions.append(name)
        return True

    async def result(self, recorded: Recorded, kind: Any = Any) -> Any:
        """The journaled result, as `kind`."""
        raw = recorded.entry.result
        if recorded.entry.packed:
            return msgspec.convert(await unpack(self.bus.connection, raw), kind)
        return msgspec.json.decode(raw, type=kind)

    def check_end(self) -> None:
        """At the handler's end: JournalMismatch where the journal holds calls it did not make."""
        for n in {**self.journal.decided, **self.journal.effects}:
            if n not in self.asked and n[0].isdigit():
                held = self.journal.effects.get(n)
                shown = _shown(held) if held else self.journal.decided[n].entry.name
                raise self._mismatch(n, shown, "nothing more")

    def _decided_later(self, n: str) -> bool:
        """Whether the journal went on behind this position, in the same branch, without it."""
        if not self._to_be_asked:
            return False
        branch, number = _place(n)
        return any(at == branch and later > number for at, later in map(_place, self._to_be_asked))

    def _mismatch(self, n: str, journaled: str, asked: str) -> JournalMismatch:
        advice = (
            "The handler was changed, or is not deterministic: put the change behind "
            'run.version("…"), or let the run end with the code it began with.'
        )
        return JournalMismatch(self.journal.run, n, journaled, asked, advice)


def _shown(effect: Effect) -> str:
    return f"{effect.type} for {effect.subject}"


def _place(n: str) -> tuple[str, int]:
    """The branch of a position, and its number in it (0: it is none of the handler's)."""
    branch, _, number = n.rpartition(".")
    return branch, int(number) if number.isdigit() else 0
