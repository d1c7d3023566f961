"""Messages with their data, where that was kept as a blob and tables are made of it."""

from __future__ import annotations

import logging

import anyio
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus import event
from stratum_bus.blob import PREFIX
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, ConnectionLost, InvalidEvent, NoAnswer, NoStream
from stratum_bus.message import Message
from stratum_projections.batch import Column, Stored, rows_where

log = logging.getLogger("stratum.projector")

ROLES = ("memory", "dead")
"""The first tokens of the subjects whose data becomes columns: notes and dead letters."""

RETRY_SECONDS = 0.2
LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)

_REFERENCE = f'"dataref":"{PREFIX}'
_SUBJECTS = tuple(f"{role}." for role in ROLES)


async def whole(bus: Bus, stored: Stored, *, patience_seconds: float = float("inf")) -> Stored:
    """The messages; those that refer to a blob with its data in them.

    One whose blob is missing or damaged stays as it is, and that is logged. A lost server is waited
    for, for `patience_seconds` a message; then ConnectionLost, NoAnswer or NoStream is raised.
    """
    rows = _referring(stored)
    if not rows:
        return stored
    payloads = stored.payload.to_pylist()
    for row in rows:
        payloads[row] = await _payload(bus, stored.message(row), patience_seconds)
    return msgspec.structs.replace(stored, payload=pa.array(payloads, pa.binary()))


def _referring(stored: Stored) -> list[int]:
    """The rows whose tables are made of data that is not in the message."""
    subjects: list[str] = stored.subject.dictionary.to_pylist()
    ours = pa.array([subject.startswith(_SUBJECTS) for subject in subjects], pa.bool_())
    rows: Column = pa.array(rows_where(ours.take(stored.subject.indices)), pa.int64())
    if not len(rows):
        return []
    found = rows.filter(pc.match_substring(stored.payload.take(rows), pattern=_REFERENCE))
    return list(found.to_pylist())


async def _payload(bus: Bus, message: Message, patience_seconds: float) -> bytes:
    give_up = anyio.current_time() + patience_seconds
    while True:
        try:
            return event.encode(await bus.event(message))
        except (InvalidEvent, BlobError) as error:
            log.warning("%s %d: %s", message.stream, message.sequence, error)
            return message.payload
        except LOST_SERVER as error:
            if bus.connection.closed or anyio.current_time() > give_up:
                raise
            log.debug("waiting for a blob: %s", error)
            await anyio.sleep(RETRY_SECONDS)
