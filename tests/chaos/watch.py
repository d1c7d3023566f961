"""What the harness knows while it runs: control events and letters, as the log gets them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import anyio
import msgspec

from stratum_bus.bus import Bus
from stratum_bus.heartbeat import STARTING, STOPPING
from stratum_bus.jetstream import Reply
from tests.chaos.log import Case, Entry, cases, entry

T = TypeVar("T")


class TooLate(Exception):
    """Something did not happen in time."""


class Watch:
    """Follows what concerns health: control events, letters, and what beats say."""

    def __init__(self, bus: Bus) -> None:
        self.seen: list[Entry] = []
        self._states: dict[str, str] = {}
        self._bus = bus
        self._changed = anyio.Event()

    async def run(self) -> None:
        filters = ["control.>", "dead.>"]
        async with (
            self._bus.connection.subscribe("health.>", self._hear),
            self._bus.read(filters=filters, follow=True) as reader,
        ):
            async for message in reader:
                self.seen.append(entry(message))
                self._changed.set()

    def _hear(self, said: Reply) -> None:
        data = msgspec.json.decode(said.payload)["data"]
        if "state" in data:
            self._states[data["instance"]] = data["state"]

    async def until(self, check: Callable[[], T | None], what: str, seconds: float) -> T:
        """The first true answer of `check`. Raises TooLate."""
        give_up = time.monotonic() + seconds
        while True:
            if answer := check():
                return answer
            left = give_up - time.monotonic()
            if left <= 0:
                raise TooLate(f"not within {seconds:g} s: {what}")
            self._changed = anyio.Event()
            with anyio.move_on_after(min(left, 0.5)):
                await self._changed.wait()

    def cases(self, kind: str, agent: str, **match: str) -> list[Case]:
        """Incidents of a kind, by agent and by other attributes (`instance`, `about`)."""
        return [
            case
            for case in cases(self.seen)
            if (case.kind, case.agent) == (kind, agent)
            and all(getattr(case, name) == value for name, value in match.items())
        ]

    def over(self, kind: str, agent: str, **match: str) -> Case | None:
        """An incident that is closed."""
        return next((case for case in self.cases(kind, agent, **match) if case.closed), None)

    def calm(self) -> bool:
        """Whether nobody is just being put right: each end that nobody wanted has its incident, and
        no incident is open."""
        found = cases(self.seen)
        named = {case.instance for case in found if case.kind == "dead"}
        ended = {
            each.data["instance"]
            for each in self.seen
            if each.type == "stratum.control.ended" and not each.data.get("wanted")
        }
        return ended <= named and all(case.closed for case in found)

    def ready(self, agents: Iterable[str]) -> bool:
        """Whether something of each runs, and all that does has said that it has started."""
        running = {agent: self.running(agent) for agent in agents}
        states = [self._states.get(e.data["instance"]) for all in running.values() for e in all]
        return all(running.values()) and not {None, STARTING, STOPPING}.intersection(states)

    def running(self, agent: str) -> list[Entry]:
        """The start of each instance that has not ended, as far as is told, one a slot."""
        slots: dict[int, Entry] = {}
        for each in self.seen:
            if each.subject == f"control.{agent}.started":
                slots[each.data.get("slot", 1)] = each
        ended = {e.data["instance"] for e in self.seen if e.subject == f"control.{agent}.ended"}
        return [each for each in slots.values() if each.data["instance"] not in ended]

    def started_after(self, agent: str, sequence: int) -> Entry | None:
        """The first start of an instance behind a sequence."""
        subject = f"control.{agent}.started"
        return next((e for e in self.seen if e.subject == subject and e.sequence > sequence), None)

    def letter(self, stream_sequence: int) -> Entry | None:
        """The dead letter of a message."""
        for each in self.seen:
            if each.type == "stratum.dead.lettered":
                origin: dict[str, Any] = each.data["origin"]
                if (origin["stream"], origin["sequence"]) == ("LOG", stream_sequence):
                    return each
        return None
