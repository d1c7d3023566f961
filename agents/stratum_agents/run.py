"""A run: one piece of work of an agent, started by one event.

What a handler does to the world through its run (send, publish, remember) is buffered and becomes
one atomic commit with the entry that ends the run's journal. Ids are derived from the event's, and
the entry expects the journal to be empty: handled twice, the second commit is refused whole, so
an event's messages and notes stand in the log exactly once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_bus import memory, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import WrongSequence
from stratum_bus.event import Event, RawEvent, agent_source, new
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.schema import event_type

COMPLETED = "stratum.run.completed"


@event_type(COMPLETED)
class Completed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last entry of a run's journal; `effects` counts the messages and notes before it."""

    agent: str
    handler: str
    attempt: int
    effects: int = 0
    started: datetime | None = None


def run_id(agent: str, event_id: str) -> str:
    """The id of the run that an event starts at an agent: the same whenever it is delivered."""
    digest = hashlib.sha256(f"{agent}\0{event_id}".encode()).digest()
    return "r" + base64.b32encode(digest[:15]).decode().lower()


class Run:
    """What a handler may ask for. Nothing is sent before the handler returns."""

    def __init__(
        self, bus: Bus, agent: str, event: RawEvent, message: Message, attempt: int
    ) -> None:
        self.bus = bus
        self.agent = agent
        self.event = event
        self.message = message
        self.attempt = attempt
        self.id = run_id(agent, event.id)
        self.memory = Memory(bus, agent)
        self._started = datetime.now(UTC)
        self._effects: list[Append] = []

    def now(self) -> datetime:
        """The time of this run: when its event was stored. The same at every attempt."""
        return self.message.time

    async def send(self, to: str, type: str, data: Any, *, about: str | None = None) -> str:
        """A message to another agent's inbox; returns the event's id."""
        return self._effect(subject.inbox(to, self.agent, type), type, data, about)

    async def publish(self, type: str, data: Any, *, about: str | None = None) -> str:
        """A message to all who follow the type; returns the event's id."""
        return self._effect(subject.topic(self.agent, type), type, data, about)

    async def remember(
        self,
        kind: str,
        text: str,
        *,
        data: Any = None,
        tags: Sequence[str] = (),
        about: str | None = None,
        score: float | None = None,
        note: str | None = None,
    ) -> str:
        """A note in the agent's memory; returns its id (`note`, where the id is given)."""
        append = memory.noted(
            self.agent, kind, text, data=data, tags=tags, about=about, score=score,
            note=note or self._next_id(),
        )  # fmt: skip
        return self._add(append)

    async def revise(self, note: str, kind: str, **changes: Any) -> str:
        """Change fields of a note (see `memory.Revised`)."""
        return self._add(memory.revised(self.agent, kind, note, id=self._next_id(), **changes))

    async def retract(self, note: str, kind: str, reason: str = "") -> str:
        """Take a note back."""
        return self._add(memory.retracted(self.agent, kind, note, reason, id=self._next_id()))

    async def complete(self, handler: str) -> bool:
        """Commit the effects and the end of the run; False where it was complete before."""
        body = Completed(self.agent, handler, self.attempt, len(self._effects), self._started)
        end = new(
            COMPLETED, body, source=agent_source(self.agent), id=f"{self.id}-end",
            cause=self.event, runid=self.id,
        )  # fmt: skip
        entry = Append(subject.run(self.agent, self.id), end, expected_sequence=0)
        try:
            acks = await self.bus.commit([*self._effects, entry])
        except WrongSequence:
            return False
        return not acks[-1].duplicate

    def _next_id(self) -> str:
        return f"{self.id}-{len(self._effects) + 1}"

    def _effect(self, to: str, type: str, data: Any, about: str | None) -> str:
        event: Event[Any] = new(
            type, data, source=agent_source(self.agent), id=self._next_id(), subject=about,
        )  # fmt: skip
        return self._add(Append(to, event))

    def _add(self, append: Append) -> str:
        caused = replace(
            append.event,
            runid=self.id,
            causationid=self.event.id,
            correlationid=self.event.correlationid or self.event.id,
            traceparent=self.event.traceparent,
        )
        self._effects.append(replace(append, event=caused))
        return append.event.id
