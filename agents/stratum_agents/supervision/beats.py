"""What the instances said last of themselves."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent
from stratum_bus.event import read, typed
from stratum_bus.hand import Left
from stratum_bus.heartbeat import BLOCKED, STARTING, STOPPING, Beat
from stratum_bus.jetstream import Reply
from stratum_bus.message import utc

SILENT_BEATS = 4
"""After so many beats left out an instance does not answer."""


REMEMBERED = 5000
"""Instances, here and elsewhere, whose last beats are kept."""


class Beats:
    """The last beat of each instance, and when it came. `on_beat` is called at each beat, with the
    name and the last beats of all instances of it that answer."""

    def __init__(self, on_beat: Callable[[str, Sequence[Beat]], None]) -> None:
        self._last: dict[str, tuple[float, Beat]] = {}
        self._on_beat = on_beat

    @asynccontextmanager
    async def heard(self, bus: Bus, names: list[str]) -> AsyncIterator[None]:
        """Listen to instances of these names as long as the context."""
        wanted = set(names)

        def hear(reply: Reply) -> None:
            if reply.subject.split(".")[1] in wanted:
                self._take(reply)

        async with bus.connection.subscribe("health.>", hear):
            yield

    def of(self, instance: str) -> Beat | None:
        found = self._last.get(instance)
        return found[1] if found else None

    def answers(self, instance: str) -> bool:
        """False for an instance that beat once, and is blocked or silent now."""
        found = self._last.get(instance)
        if found is None:
            return True
        heard, beat = found
        silent = time.monotonic() - heard > SILENT_BEATS * beat.every_seconds
        return not silent and beat.state != BLOCKED

    def has_started(self, instance: str) -> bool:
        """Whether it said that it has started."""
        beat = self.of(instance)
        return beat is not None and beat.state != STARTING

    def left(self, instance: str) -> list[Left]:
        """What it said last that it has in hand."""
        beat = self.of(instance)
        held = beat.in_hand if beat else []
        return [Left(each.stream, each.sequence, bool(each.event), each.attempt) for each in held]

    def others(self, name: str, known: Collection[str]) -> bool:
        """Whether instances of this name live that are not of the known ones: on another host, or
        started by hand."""
        now = time.monotonic()
        return any(
            beat.name == name
            and instance not in known
            and now - heard < SILENT_BEATS * beat.every_seconds
            and beat.state != STOPPING
            for instance, (heard, beat) in self._last.items()
        )

    def _of_name(self, name: str) -> list[Beat]:
        return [
            beat
            for instance, (_, beat) in self._last.items()
            if beat.name == name and (self.answers(instance) or beat.state == BLOCKED)
        ]

    def forget(self, instance: str) -> None:
        self._last.pop(instance, None)

    def _take(self, reply: Reply) -> None:
        now = utc(time.time_ns())
        try:
            event = read(
                reply.payload, reply.headers, subject=reply.subject, stream="HEALTH", sequence=0,
                time=now,
            )  # fmt: skip
            beat = typed(event, Beat).data
        except InvalidEvent:
            return  # the health projector says so
        self._last[beat.instance] = (time.monotonic(), beat)
        if len(self._last) > REMEMBERED:
            oldest = min(self._last, key=lambda instance: self._last[instance][0])
            del self._last[oldest]
        self._on_beat(beat.name, self._of_name(beat.name))
