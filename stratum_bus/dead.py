"""Dead letters: what could not be handled, why, and what was decided about it.

A letter is an event under `dead.<agent>.<type>` that refers to the original in the log, which is
never moved. Redriving publishes the original again, as a new event, to the agent alone; dropping
only says so. Each decision is an event behind the letter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent, InvalidName, NotFound, StratumError
from stratum_bus.event import Event, RawEvent, agent_source, new, typed
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.schema import event_type

DETAIL_MAX = 4_000
"""Bytes of an error, and of its trace, that a letter keeps."""

OPEN, REDRIVEN, DROPPED = "open", "redriven", "dropped"


class Cause(msgspec.Struct, frozen=True):
    """Why: `reason` is rejected, failed, unreadable, undeliverable or poison; `detail` says more."""

    reason: str
    detail: str
    trace: str = ""


class Origin(msgspec.Struct, frozen=True):
    """The message that could not be handled."""

    stream: str
    sequence: int
    subject: str
    id: str


@event_type("stratum.dead.lettered", roles=("dead",))
class Lettered(msgspec.Struct, frozen=True, omit_defaults=True):
    agent: str
    reason: str
    error: str
    attempts: int
    origin: Origin
    trace: str = ""
    run: str = ""


@event_type("stratum.dead.redriven", roles=("dead",))
class Redriven(msgspec.Struct, frozen=True, omit_defaults=True):
    letter: str
    event: str
    reason: str = ""


@event_type("stratum.dead.dropped", roles=("dead",))
class Dropped(msgspec.Struct, frozen=True, omit_defaults=True):
    letter: str
    reason: str = ""


class Letter(msgspec.Struct, frozen=True):
    """A dead letter as it stands: `state` is open, redriven or dropped."""

    id: str
    sequence: int
    subject: str
    time: str
    state: str
    letter: Lettered


async def bury(
    bus: Bus, agent: str, message: Message, attempts: int, cause: Cause, *, run: str = ""
) -> None:
    """Append the dead letter of a message; the same message makes the same letter.

    `run` is the run that it had started, where that is to be gone on with.
    """
    try:
        event: Event[Any] = message.event()
        type = _fitting(subject.event_type, event.type, "message")
    except InvalidEvent:
        id = message.id or f"{message.stream}-{message.sequence}"
        event = new("message", None, source=agent_source(agent), id=id)
        type = _fitting(subject.event_type, _place(message.subject).type, "message")
    letter = Lettered(
        agent,
        cause.reason,
        shown(cause.detail, DETAIL_MAX),
        attempts,
        Origin(message.stream, message.sequence, message.subject, event.id),
        shown(cause.trace, DETAIL_MAX),
        run,
    )
    dead = new(
        "stratum.dead.lettered",
        letter,
        source=agent_source(agent),
        id=f"dead-{agent}-{message.stream}-{message.sequence}",
        cause=event,
    )
    await bus.publish(subject.dead(agent, type), dead)


async def letters(bus: Bus, agent: str | None = None) -> list[Letter]:
    """All dead letters, of one agent or of all, oldest first, each with its state."""
    found: dict[str, Letter] = {}
    pattern = f"dead.{subject.token(agent, 'agent name')}.>" if agent else "dead.>"
    async with bus.read(filters=[pattern]) as reader:
        async for message in reader:
            try:
                _fold(found, message, await bus.event(message))
            except (InvalidEvent, BlobError):
                continue  # the projector quarantines it
    return list(found.values())


def shown(text: object, limit_bytes: int) -> str:
    """Whatever a handler said, as text that can be stored and is not too long."""
    return str(text).encode(errors="replace")[:limit_bytes].decode(errors="ignore")


def _place(of: str) -> subject.Subject:
    """What the subject of a message says, where it is of the grammar."""
    try:
        return subject.parse(of)
    except InvalidName:
        return subject.Subject("")


def _fitting(check: Callable[[str], str], value: str, otherwise: str) -> str:
    try:
        return check(value)
    except InvalidName:
        return otherwise


def _fold(found: dict[str, Letter], message: Message, event: RawEvent) -> None:
    if event.type == "stratum.dead.lettered":
        found.setdefault(
            event.id,
            Letter(
                event.id,
                message.sequence,
                message.subject,
                message.time.isoformat(),
                OPEN,
                typed(event, Lettered).data,
            ),
        )
    elif event.type in ("stratum.dead.redriven", "stratum.dead.dropped"):
        state = REDRIVEN if event.type.endswith("redriven") else DROPPED
        decided = typed(event, Dropped).data
        if letter := found.get(decided.letter):
            found[decided.letter] = msgspec.structs.replace(letter, state=state)


async def find(bus: Bus, id: str) -> Letter:
    """A dead letter by its id, or by the sequence of the letter or of its origin.

    Raises NotFound.
    """
    for letter in await letters(bus):
        if id in (letter.id, str(letter.sequence), str(letter.letter.origin.sequence)):
            return letter
    raise NotFound("dead letter", id)


async def redrive(bus: Bus, letter: Letter, reason: str = "") -> int:
    """Send the original to the agent again, as a new event; returns its sequence.

    One commit holds the event and the note that the letter was redriven. Raises StratumError for
    a letter that is not open, InvalidEvent for an original that cannot be read.
    """
    origin = letter.letter.origin
    message = await bus.get(origin.stream, origin.sequence)
    original = message.event()
    place = _place(message.subject)
    again = msgspec.structs.replace(
        original,
        id=redriven_id(letter),
        correlationid=original.correlationid or original.id,
        causationid=letter.id,
    )
    sender = _fitting(subject.token, place.sender or place.agent, "unknown")
    type = _fitting(subject.event_type, original.type, "message")
    to = subject.inbox(letter.letter.agent, sender, type)
    acks = await bus.commit([Append(to, again), redriven(letter, again.id, reason)])
    return acks[0].sequence


def redriven_id(letter: Letter) -> str:
    """The id of the event that `redrive` sends."""
    return f"redrive-{letter.id}"


def redriven(letter: Letter, event: str, reason: str = "") -> Append:
    """The note that a letter was redriven as an event, or a run; StratumError if it is not open."""
    _must_be_open(letter)
    body = Redriven(letter.id, event, reason)
    source = agent_source(letter.letter.agent)
    noted = new("stratum.dead.redriven", body, source=source, id=f"redriven-{letter.id}")
    return Append(letter.subject, noted)


async def drop(bus: Bus, letter: Letter, reason: str = "") -> None:
    """Note that nothing will be done about the letter."""
    _must_be_open(letter)
    dropped = new(
        "stratum.dead.dropped",
        Dropped(letter.id, reason),
        source=agent_source(letter.letter.agent),
        id=f"dropped-{letter.id}",
    )
    await bus.publish(letter.subject, dropped)


def _must_be_open(letter: Letter) -> None:
    if letter.state != OPEN:
        raise StratumError(f"dead letter {letter.id} is already {letter.state}")
