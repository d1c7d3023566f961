"""What the test kit gives to agents: a time that stands still, and a process that may die."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio.lowlevel
from msgspec.structs import replace

from stratum_agents.clock import Clock
from stratum_bus.batch import PubAck
from stratum_bus.bus import Bus
from stratum_bus.errors import BusError
from stratum_bus.event import Event
from stratum_bus.message import Message, nanoseconds
from stratum_bus.publish import Append

OFF = timedelta(days=36_525)
"""How far the timers of a standing clock lie off, so that the server never fires them itself."""


class StandingClock(Clock):
    """A time that passes when the test says so."""

    def __init__(self, now: datetime | None = None) -> None:
        self.time = now or datetime.now(UTC)
        self.due: list[datetime] = []

    def now(self) -> datetime:
        return self.time

    async def wait_until(self, at: datetime) -> None:
        await anyio.lowlevel.checkpoint()
        self.time = max(self.time, at)

    def on_server(self, at: datetime) -> datetime:
        self.due.append(at)
        return at + OFF


class Crash(BaseException):
    """The process of an agent is gone. Not an Exception, so that nothing in it notices."""


class Process(Bus):
    """The bus as the agents' process has it: it may die at an append."""

    def __init__(self, bus: Bus, clock: StandingClock) -> None:
        self.connection = bus.connection
        self._publisher = bus._publisher
        self._clock = clock
        self._times: dict[int, int] = {}
        self.left, self.stored = 0, False

    def seen(self, message: Message) -> Message:
        """A message of the log as stored when the standing clock says, for ever."""
        time = self._times.setdefault(message.sequence, nanoseconds(self._clock.time))
        return replace(message, time_ns=time)

    async def get(self, stream: str, sequence: int) -> Message:
        message = await super().get(stream, sequence)
        return self.seen(message) if stream == "LOG" else message

    async def commit(self, appends: Sequence[Append]) -> list[PubAck]:
        async with self._maybe_dying(appends[-1].subject):
            return await super().commit(appends)

    async def publish(
        self, to: str, event: Event[Any], *, expected_sequence: int | None = None
    ) -> PubAck:
        async with self._maybe_dying(to):
            return await super().publish(to, event, expected_sequence=expected_sequence)

    @asynccontextmanager
    async def _maybe_dying(self, to: str) -> AsyncIterator[None]:
        if not to.startswith("run."):
            yield
            return
        self.left -= 1
        dies = self.left == 0
        if dies and not self.stored:
            raise Crash
        try:
            yield
        except BusError:
            self.left += 1  # it was refused, and is no append
            raise
        if dies:
            raise Crash
