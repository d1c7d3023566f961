"""What the supervisor did, as events: in order, and sooner or later all of them.

Nothing waits for them: what has to be started is started, whatever the server does meanwhile.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import anyio
import msgspec

from stratum_bus import control, subject
from stratum_bus.bus import Bus
from stratum_bus.consume import LOST_SERVER
from stratum_bus.control import PREFIX, SUPERVISOR_SOURCE, Command, Ended, Outcome, Started
from stratum_bus.errors import NoStream, StratumError
from stratum_bus.event import Event, new
from stratum_bus.publish import Append

log = logging.getLogger("stratum.supervisor")

RETRY_SECONDS = 0.2


class Ledger:
    """The events to write; `run` writes them. `on_written` is called for each."""

    def __init__(self, bus: Bus, on_written: Callable[[], None]) -> None:
        self._bus = bus
        self._on_written = on_written
        self._waiting: deque[Append] = deque()
        self._changed = anyio.Event()
        self.own: set[str] = set()

    def started(self, agent: str, what: Started) -> None:
        self._add(agent, control.STARTED, what, f"started-{what.instance}", what.command)

    def ended(self, agent: str, what: Ended) -> str:
        """Returns the event's id."""
        id = ended_id(what.instance)
        self._add(agent, control.ENDED, what, id)
        return id

    def command(self, agent: str, name: str, what: Command, *, also: str = "") -> str:
        """A command of the supervisor's own, which it executes itself; returns the event's id.

        `also` tells commands apart that answer to one event.
        """
        id = control.command_id(what.incident, name) + (f"-{also}" if also else "")
        self.own.add(id)
        self._add(agent, name, what, id, what.incident)
        return id

    def outcome(self, agent: str, what: Outcome) -> None:
        self._add(agent, control.OUTCOME, what, control.outcome_id(what.command), what.command)

    async def run(self) -> None:
        """Write what comes, until cancelled; a lost server and a full disk are waited for."""
        while True:
            if not self._waiting:
                self._changed = anyio.Event()
                await self._changed.wait()
            append = self._waiting[0]
            try:
                await self._bus.publish(append.subject, append.event)
            except (*LOST_SERVER, NoStream) as error:
                log.debug("%s waits to be written: %s", append.event.id, error)
                await anyio.sleep(RETRY_SECONDS)
                continue
            except StratumError as error:  # and the next ones are not to wait for ever behind it
                log.error("%s could not be written: %s", append.event.id, error)
            self._waiting.popleft()
            self._on_written()
            self._changed.set()

    async def written(self, within_seconds: float) -> bool:
        """Wait until all is written; False where it was not within the time."""
        with anyio.move_on_after(within_seconds):
            while self._waiting:
                self._changed = anyio.Event()
                await self._changed.wait()
        return not self._waiting

    def _add(self, agent: str, name: str, what: msgspec.Struct, id: str, cause: str = "") -> None:
        event: Event[object] = new(PREFIX + name, what, source=SUPERVISOR_SOURCE, id=id)
        if cause:
            event = msgspec.structs.replace(event, causationid=cause)
        self._waiting.append(Append(subject.control(agent, name), event))
        self._changed.set()


def ended_id(instance: str) -> str:
    """The id of the event that says that a process ended: what answers to it is made of it."""
    return f"ended-{instance}"
