"""Storing what was posted, once: what is answered names the place of an event, whoever asks again."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, Refused
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_cli.gateway.problem import Problem
from stratum_cli.gateway.seen import Seen, same

_DUPLICATE = 10201
"""The server's code for a batch with an id that it has, here under another subject."""


class Stored(Struct, frozen=True):
    """What 202 says of an event."""

    id: str
    stream: str
    sequence: int
    subject: str


async def store(bus: Bus, seen: Seen, appends: Sequence[Append]) -> tuple[list[Stored], int]:
    """Store all that is not there yet, or nothing; returns all and how many were there.

    Within the server's dedupe window it takes no id twice. Beyond that `seen` says where to look,
    and the log whether it is there. Raises Problem 409 where an id is that of another event, and
    what `Bus.commit` raises.
    """
    there: dict[str, int] = {}
    for append in appends:
        if sequence := await _place(bus, seen, append):
            there[append.event.id] = sequence
    new = [append for append in appends if append.event.id not in there]
    repeats = len(there)
    try:
        if len(new) == 1:
            acks = [await bus.publish(new[0].subject, new[0].event)]
        else:
            acks = await bus.commit(new)
    except Refused as error:
        if error.code != _DUPLICATE:
            raise
        text = "the id of an event of the batch is that of another event; nothing was stored"
        raise Problem(409, text) from error
    for append, ack in zip(new, acks, strict=True):
        if ack.duplicate:
            repeats += 1
            _check_same(await bus.get(ack.stream, ack.sequence), append)
        seen.add(append.event.id, ack.sequence)
        there[append.event.id] = ack.sequence
    return [Stored(a.event.id, "LOG", there[a.event.id], a.subject) for a in appends], repeats


async def _place(bus: Bus, seen: Seen, append: Append) -> int:
    """The sequence of the event where it is stored already, else 0."""
    sequence = seen.place(append.event.id)
    if not sequence or not (message := await same(bus, sequence, append.event.id)):
        return 0
    _check_same(message, append)
    return sequence


def _check_same(message: Message, append: Append) -> None:
    """An id that another event has cannot be accepted: it would be stored as if it were that."""
    try:
        source = message.event().source
    except InvalidEvent:
        source = ""
    if message.subject != append.subject or source != append.event.source:
        text = (
            f"the id {append.event.id} is that of another event, {message.stream} "
            f"{message.sequence} ({message.subject} of {source}): an id has to be unique everywhere"
        )
        raise Problem(409, text)
