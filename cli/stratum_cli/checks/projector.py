"""Checks of the projector: whether it answers, how far it is, and what it could not read."""

from __future__ import annotations

from collections.abc import AsyncIterator

from stratum_bus.bus import Bus
from stratum_bus.errors import NotFound, QueryError
from stratum_cli.checks.finding import Finding, note, ok, wrong

LAG_MANY = 10_000
_SECONDS = 5.0
_QUESTION = """
    select (select count(*) from quarantine),
        (select list(name order by name) from projections where paused)
"""


async def projector(bus: Bus) -> AsyncIterator[Finding]:
    """Raises BusError where the server goes away meanwhile."""
    from stratum_projections.query import ask

    try:
        stored = (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"]
    except NotFound:
        return  # without a log there is nothing to project
    try:
        found = await ask(bus, _QUESTION, timeout_seconds=_SECONDS)
    except QueryError as error:
        mend = "start it with `stratum up`"
        if error.reason != "no_projector":
            mend = "look at its log; its file can be removed, it is built anew from the log"
        yield wrong("projector", str(error).partition(":")[0], mend)
        return
    lag = max(0, stored - found.sequence)
    reflects = f"it reflects LOG {found.sequence:,} of {stored:,}"
    if lag > LAG_MANY:
        yield wrong("projector", reflects, "let it catch up; if it does not, look at its log")
    else:
        yield ok("projector", reflects)
    if unreadable := found.table.column(0)[0].as_py():
        mend = "look at them with `stratum projection quarantine list`"
        yield note("quarantine", f"{unreadable:,} events could not be taken in", mend)
    if paused := found.table.column(1)[0].as_py():
        mend = f"let them go on with `stratum projection resume {' '.join(paused)}`"
        yield note("projections", f"paused: {', '.join(paused)}", mend)
