"""Durable timers, kept and fired by the server.

A timer is a message under `timer.<agent>.<run>.<name>`; when it is due the server moves it to
`fire.<agent>.<run>.<name>`, within about 250 ms, also after a restart. Publishing it again
reschedules it. Timers below a second do not belong here.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from stratum_bus import subject
from stratum_bus.jetstream import Connection, api_answer
from stratum_bus.read import last

STREAM = "TIMERS"
FIRED_TTL, REPEATED_TTL = "8760h", "168h"
"""How long what has fired waits to be taken in, so how long all of an agent may be down."""

SECONDS = 5.0

_SCHEDULE = "Nats-Schedule"


class Due(msgspec.Struct, frozen=True):
    """The message of a timer, no event: who set it, and its name."""

    run: str
    timer: str


async def schedule(connection: Connection, agent: str, run: str, name: str, at: datetime) -> int:
    """Have a timer fire at a time (past: at once); returns its sequence."""
    when = at.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return await _publish(connection, agent, run, name, f"@at {when}", FIRED_TTL)


async def keep(connection: Connection, agent: str, run: str, name: str, every: str) -> None:
    """Have a timer fire again and again: `@every 90s`, or a cron line of six fields.

    One that is there already is left alone: to set it again would begin its time anew, and an
    agent that is restarted more often than that would never see it fire.
    """
    there = await last(connection, STREAM, subject.timer(agent, run, name))
    if there is None or (there.headers or {}).get(_SCHEDULE) != every:
        await _publish(connection, agent, run, name, every, REPEATED_TTL)


async def cancel(connection: Connection, agent: str, run: str, name: str) -> None:
    """Remove a timer that has not fired; nothing happens where there is none."""
    body = {"filter": subject.timer(agent, run, name)}
    await connection.api(f"STREAM.PURGE.{STREAM}", body)


async def _publish(
    connection: Connection, agent: str, run: str, name: str, pattern: str, ttl: str
) -> int:
    to = subject.timer(agent, run, name)
    headers = {
        _SCHEDULE: pattern,
        "Nats-Schedule-Target": subject.fire(agent, run, name),
        "Nats-Schedule-TTL": ttl,
    }
    payload = msgspec.json.encode(Due(run, name))
    reply = await connection.request(to, payload, headers, timeout_seconds=SECONDS)
    sequence: int = api_answer(reply, to)["seq"]
    return sequence
