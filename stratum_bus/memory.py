"""The memory log of an agent: notes, their revisions and retractions, each an event.

Nothing is overwritten. What the agent believes now, or believed at a sequence or a time, is a fold
of `memory.<agent>.>`; read from the log itself, so that own notes are visible at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent, InvalidName, NotFound
from stratum_bus.event import Event, RawEvent, agent_source, new, typed
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.schema import event_type

NOTED, REVISED, RETRACTED = (
    "stratum.memory.noted",
    "stratum.memory.revised",
    "stratum.memory.retracted",
)
DEFAULT_KIND = "note"


@event_type(NOTED, roles=("memory",))
class Noted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A new note. `score` is how much it matters, 0 to 1; `about` an id of the domain."""

    text: str = ""
    note: str | None = None
    data: Any = None
    tags: list[str] = []
    about: str | None = None
    score: float | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None


@event_type(REVISED, roles=("memory",))
class Revised(msgspec.Struct, frozen=True, omit_defaults=True):
    """What changed in a note; fields that are not there stay as they were."""

    note: str
    text: str | msgspec.UnsetType = msgspec.UNSET
    data: Any = msgspec.UNSET
    tags: list[str] | msgspec.UnsetType = msgspec.UNSET
    about: str | msgspec.UnsetType | None = msgspec.UNSET
    score: float | msgspec.UnsetType | None = msgspec.UNSET
    valid_from: datetime | msgspec.UnsetType | None = msgspec.UNSET
    valid_to: datetime | msgspec.UnsetType | None = msgspec.UNSET


@event_type(RETRACTED, roles=("memory",))
class Retracted(msgspec.Struct, frozen=True, omit_defaults=True):
    """The agent does not believe the note any more."""

    note: str
    reason: str = ""


class Note(msgspec.Struct, frozen=True, omit_defaults=True):
    """A note as it stands. `revision` counts from 0; `time` is when it was noted, `changed` last."""

    id: str
    agent: str
    kind: str
    text: str
    data: Any
    tags: tuple[str, ...]
    about: str | None
    score: float | None
    time: datetime
    changed: datetime
    first_sequence: int
    last_sequence: int
    revision: int = 0
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    retracted: bool = False


def noted(
    agent: str,
    kind: str,
    text: str,
    *,
    data: Any = None,
    tags: Sequence[str] = (),
    about: str | None = None,
    score: float | None = None,
    valid_from: datetime | None = None,
    valid_to: datetime | None = None,
    note: str | None = None,
    id: str | None = None,
) -> Append:
    """The append that makes a note; the note's id is `note`, without one the event's."""
    body = Noted(
        text, note=note, data=data, tags=list(tags), about=about, score=score,
        valid_from=valid_from, valid_to=valid_to,
    )  # fmt: skip
    event = new(NOTED, body, source=agent_source(agent), id=id, subject=about)
    return Append(subject.memory(agent, kind), event)


def revised(agent: str, kind: str, note: str, *, id: str | None = None, **changes: Any) -> Append:
    """The append that revises a note; `changes` are fields of `Revised`."""
    event = new(REVISED, Revised(note, **changes), source=agent_source(agent), id=id)
    return Append(subject.memory(agent, kind), event)


def retracted(
    agent: str, kind: str, note: str, reason: str = "", *, id: str | None = None
) -> Append:
    """The append that retracts a note."""
    event = new(RETRACTED, Retracted(note, reason), source=agent_source(agent), id=id)
    return Append(subject.memory(agent, kind), event)


class Notes:
    """The fold: feed it the messages of a memory log in order.

    `applied` is the last sequence it has seen. An event that is no memory event, stands outside
    `memory.<agent>.<kind>`, or refers to a note that is not there, changes nothing (the projector
    quarantines what cannot be read).
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Note] = {}
        self.applied = 0

    def apply(self, message: Message, event: RawEvent | None = None) -> Note | None:
        """Take in one message (`event`: where its data was a blob); returns the note it changed."""
        self.applied = max(self.applied, message.sequence)
        try:
            event = event or message.event()
            if event.type == NOTED:
                return self._noted(message, typed(event, Noted))
            if event.type == REVISED:
                return self._revised(message, typed(event, Revised))
            if event.type == RETRACTED:
                return self._retracted(message, typed(event, Retracted))
        except (InvalidEvent, InvalidName):
            pass
        return None

    def current(self) -> list[Note]:
        """What is believed, in the order it was first noted."""
        return [note for note in self.by_id.values() if not note.retracted]

    def _noted(self, message: Message, event: Event[Noted]) -> Note | None:
        body, place = event.data, subject.parse(message.subject)
        id = body.note or event.id
        if id in self.by_id:
            return None
        time = event.time or message.time
        self.by_id[id] = note = Note(
            id, place.agent, place.kind, body.text, body.data, tuple(body.tags), body.about,
            body.score, time, time, message.sequence, message.sequence,
            valid_from=body.valid_from, valid_to=body.valid_to,
        )  # fmt: skip
        return note

    def _revised(self, message: Message, event: Event[Revised]) -> Note | None:
        changes = {
            field: value
            for field in ("text", "data", "tags", "about", "score", "valid_from", "valid_to")
            if (value := getattr(event.data, field)) is not msgspec.UNSET
        }
        if "tags" in changes:
            changes["tags"] = tuple(changes["tags"])
        return self._change(message, event, event.data.note, changes)

    def _retracted(self, message: Message, event: Event[Retracted]) -> Note | None:
        return self._change(message, event, event.data.note, {"retracted": True})

    def _change(
        self, message: Message, event: RawEvent | Event[Any], id: str, changes: dict[str, Any]
    ) -> Note | None:
        note = self.by_id.get(id)
        if note is None or note.retracted:
            return None
        self.by_id[id] = note = replace(
            note,
            changed=event.time or message.time,
            last_sequence=message.sequence,
            revision=note.revision + 1,
            **changes,
        )
        return note


class Memory:
    """One agent's memory. Writing returns when it is stored."""

    def __init__(self, bus: Bus, agent: str) -> None:
        self._bus = bus
        self.agent = subject.token(agent, "agent name")

    async def note(self, text: str, *, kind: str = DEFAULT_KIND, **fields: Any) -> str:
        """Make a note (fields as in `noted`) and return its id."""
        # its own id as the event's, too: the same note made again is a duplicate
        append = noted(self.agent, kind, text, id=fields.get("note"), **fields)
        await self._bus.publish(append.subject, append.event)
        return append.event.id

    async def revise(self, note: str, **changes: Any) -> None:
        """Change fields of a note; raises NotFound where it is not there or retracted."""
        append = revised(self.agent, (await self._get(note)).kind, note, **changes)
        await self._bus.publish(append.subject, append.event)

    async def retract(self, note: str, reason: str = "") -> None:
        """Take a note back; raises NotFound where it is not there or already retracted."""
        append = retracted(self.agent, (await self._get(note)).kind, note, reason)
        await self._bus.publish(append.subject, append.event)

    async def notes(
        self,
        *,
        kind: str | None = None,
        about: str | None = None,
        tags: Iterable[str] = (),
        as_of: int | datetime | None = None,
        retracted: bool = False,
    ) -> list[Note]:
        """What the agent believes, or believed at a sequence or a time; oldest first.

        `tags` must all be there; `retracted` shows what was taken back too.
        """
        folded = await self._fold(kind, as_of)
        wanted = set(tags)
        return [
            note
            for note in folded.by_id.values()
            if (retracted or not note.retracted)
            and (about is None or note.about == about)
            and wanted <= set(note.tags)
        ]

    async def _fold(self, kind: str | None, as_of: int | datetime | None) -> Notes:
        pattern = subject.memory(self.agent, kind) if kind else f"memory.{self.agent}.>"
        notes = Notes()
        end = as_of if isinstance(as_of, int) else None
        if end is not None and end < 1:
            return notes
        async with self._bus.read(filters=[pattern], end=end) as reader:
            async for message in reader:
                if isinstance(as_of, datetime) and message.time > as_of:
                    break
                await apply_resolved(self._bus, notes, message)
        return notes

    async def _get(self, id: str) -> Note:
        found = (await self._fold(None, None)).by_id.get(id)
        if found is None or found.retracted:
            raise NotFound("note", f"{id} in the memory of {self.agent}")
        return found


async def apply_resolved(bus: Bus, notes: Notes, message: Message) -> Note | None:
    """`notes.apply`, with data that was kept as a blob brought in."""
    try:
        return notes.apply(message, await bus.event(message))
    except (InvalidEvent, BlobError):
        return notes.apply(message)
