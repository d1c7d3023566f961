"""A message with its data, where that was kept as a blob and tables are made of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
from msgspec.structs import replace

from stratum_bus import event
from stratum_bus.blob import PREFIX
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, ConnectionLost, InvalidEvent, NoAnswer, NoStream
from stratum_bus.message import Message

log = logging.getLogger("stratum.projector")

ROLES = ("memory", "dead")
"""The first tokens of the subjects whose data becomes columns: notes and dead letters."""

REFERENCE = f'"dataref":"{PREFIX}'.encode()
"""What the payload of an event holds whose data is a blob of ours."""

_SUBJECTS = tuple(f"{role}." for role in ROLES)
_RETRY_SECONDS = 0.2
_LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)


def refers(message: Message) -> bool:
    """Whether tables are made of data that is not in the message."""
    return message.subject.startswith(_SUBJECTS) and REFERENCE in message.payload


async def whole(
    bus: Bus, messages: Sequence[Message], *, patience_seconds: float = float("inf")
) -> list[Message]:
    """The messages; those that refer to a blob with its data in them.

    One whose blob is missing or damaged stays as it is, and that is logged. A lost server is waited
    for, for `patience_seconds` a message; then ConnectionLost, NoAnswer or NoStream is raised.
    """
    return [await _one(bus, each, patience_seconds) if refers(each) else each for each in messages]


async def _one(bus: Bus, message: Message, patience_seconds: float) -> Message:
    give_up = anyio.current_time() + patience_seconds
    while True:
        try:
            return replace(message, payload=event.encode(await bus.event(message)))
        except (InvalidEvent, BlobError) as error:
            log.warning("%s %d: %s", message.stream, message.sequence, error)
            return message
        except _LOST_SERVER as error:
            if bus.connection.closed or anyio.current_time() > give_up:
                raise
            log.debug("waiting for a blob: %s", error)
            await anyio.sleep(_RETRY_SECONDS)
