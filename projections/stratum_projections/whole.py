"""The data of events that was kept as a blob, for the projections that want it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import anyio
import msgspec
import pyarrow.compute as pc

from stratum_bus.blob import PREFIX
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, ConnectionLost, InvalidEvent, NoAnswer, NoStream
from stratum_bus.event import encode_value
from stratum_bus.message import Message
from stratum_projections.batch import Decoded
from stratum_projections.projection import Projection

log = logging.getLogger("stratum.projector")

RETRY_SECONDS = 0.2
LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)


async def whole(
    bus: Bus,
    batch: Decoded,
    projections: Collection[Projection],
    *,
    patience_seconds: float = float("inf"),
) -> Decoded:
    """The batch with the data that one of the projections wants and that is in a blob.

    Where a blob is missing or damaged the data stays away, and that is logged. A lost server is
    waited for, for `patience_seconds` a blob; then ConnectionLost, NoAnswer or NoStream is raised.
    """
    blobs = {}
    for sequence in sorted(_wanted(batch, projections)):
        message = batch.message(sequence)
        if (data := await _data(bus, message, patience_seconds)) is not None:
            blobs[sequence] = data
    return msgspec.structs.replace(batch, blobs=blobs) if blobs else batch


def _wanted(batch: Decoded, projections: Collection[Projection]) -> set[int]:
    """The sequences of the events whose data is in a blob that is wanted."""
    rows = batch.rows.filter(pc.starts_with(batch.rows["dataref"], pattern=PREFIX))
    if not rows.num_rows:
        return set()
    wanted: list[Any] = [each.whole(rows)["seq"].to_pylist() for each in projections]
    return set().union(*wanted)


async def _data(bus: Bus, message: Message, patience_seconds: float) -> str | None:
    give_up = anyio.current_time() + patience_seconds
    while True:
        try:
            found = await bus.event(message)
            return encode_value(found.data).decode()
        except (InvalidEvent, BlobError) as error:
            log.warning("%s %d: %s", message.stream, message.sequence, error)
            return None
        except LOST_SERVER as error:
            if bus.connection.closed or anyio.current_time() > give_up:
                raise
            log.debug("waiting for a blob: %s", error)
            await anyio.sleep(RETRY_SECONDS)
