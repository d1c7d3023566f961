"""A moment of the log: a sequence, or a time.

A time means everything stored at or before it, to the microsecond, as the column `stored` shows it.
Sequences decide: it ends before the first message that the server finds to be stored later, also
where a clock was set back and some behind it bear an earlier time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio.to_thread
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import QueryError
from stratum_projections.checkpoint import STREAM
from stratum_projections.lake.read import sequence_at
from stratum_projections.lake.segment import Folder

_EMPTY = f"{STREAM} is empty: there is no moment to ask about"


class Moment(Struct, frozen=True):
    """A sequence of the log, and when that log was created."""

    sequence: int
    created: str


def parse(text: str) -> int | datetime:
    """A sequence, or a time in ISO 8601 (UTC where it names no zone); raises QueryError `moment`."""
    text = text.strip()
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise QueryError(
            "moment",
            f"{text!r} is no moment: name a sequence of the log, or a time as 2026-11-01T12:00Z",
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


async def find(bus: Bus, at: int | datetime, lake: str = "") -> Moment:
    """The moment of a sequence or a time. With `lake` that is asked for what the stream has no more.

    Raises QueryError `moment` where the log has none (any longer, or yet), NotFound, ConnectionLost.
    """
    info: dict[str, Any] = await bus.connection.api(f"STREAM.INFO.{STREAM}")
    last = info["state"]["last_seq"]
    if isinstance(at, datetime):
        sequence = await _sequence(bus, at, lake, info)
    elif 1 <= at <= last:
        sequence = at
    else:
        text = f"{STREAM} has no sequence {at}: it goes from 1 to {last}" if last else _EMPTY
        raise QueryError("moment", text)
    return Moment(sequence, info["created"])


async def _sequence(bus: Bus, at: datetime, lake: str, info: dict[str, Any]) -> int:
    if at.tzinfo is None:
        raise QueryError("moment", f"{at} has no time zone: which moment is it?")
    at = at.astimezone(UTC)
    now = datetime.fromisoformat(info["ts"][:19] + "+00:00") + timedelta(seconds=1)
    if at > now:
        raise QueryError("moment", f"{_shown(at)} is still to come: the server has {_shown(now)}")
    first, last = info["state"]["first_seq"], info["state"]["last_seq"]
    if not last:
        raise QueryError("moment", _EMPTY)
    later = await _first_at(bus, at + timedelta(microseconds=1), lake)
    if later is None:
        return int(last)
    if later == 1:
        text = f"nothing was stored by {_shown(at)}: the first event of {STREAM} came later"
        raise QueryError("moment", text)
    if later == first and not lake:
        text = f"{STREAM} begins at {first} by now, and that is later than {_shown(at)}"
        raise QueryError("moment", text)
    return later - 1


async def _first_at(bus: Bus, time: datetime, lake: str) -> int | None:
    """The first sequence stored at a time or later; None where there is none yet."""
    if lake:
        found = await anyio.to_thread.run_sync(sequence_at, Folder(lake, STREAM), time)
        if found is not None:
            return found
    async with bus.read(STREAM, start=time, window=1) as reader:
        messages = await reader.batch(1, None, gather=False)
    return messages[0].sequence if messages else None


def _shown(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
