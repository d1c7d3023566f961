"""The incidents that the health projector writes, counted for the page of metrics."""

from __future__ import annotations

import logging

import anyio
from msgspec import Struct

from stratum_agents.supervision.metrics import Metrics
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, StratumError
from stratum_bus.event import typed
from stratum_bus.message import Message

log = logging.getLogger("stratum.supervisor")

FILTERS = ["control.*.incident"]
OPEN = "open"
RETRY_SECONDS = 5.0


class _Incident(Struct):
    """As much of it as is counted; the whole of it is in stratum_projections."""

    kind: str
    status: str = OPEN
    opened: str = ""


async def count(bus: Bus, metrics: Metrics) -> None:
    """Follow them until cancelled; those before now count as far as they are open."""
    counted = _Counted(metrics)
    while True:
        try:
            async with bus.read(filters=FILTERS, start=counted.read_to + 1, follow=True) as reader:
                if not counted.read_to:
                    counted.new_from = reader.stored + 1
                async for message in reader:
                    counted.take(message)
        except StratumError as error:
            log.debug("incidents cannot be counted: %s", error)
            await anyio.sleep(RETRY_SECONDS)


class _Counted:
    def __init__(self, metrics: Metrics) -> None:
        self.read_to = 0
        self.new_from = 0
        self._metrics = metrics
        self._open: dict[str, tuple[str, str]] = {}

    def take(self, message: Message) -> None:
        self.read_to = message.sequence
        try:
            event = message.event()
            incident = typed(event, _Incident).data
        except InvalidEvent:
            return
        agent = subject.parse(message.subject).agent
        if incident.status != OPEN:
            if (labels := self._open.pop(incident.opened, None)) is not None:
                self._metrics.incidents_open.labels(*labels).dec()
            return
        if event.id in self._open:
            return
        labels = self._open[event.id] = (agent, incident.kind)
        self._metrics.incidents_open.labels(*labels).inc()
        if message.sequence >= self.new_from:
            self._metrics.incidents.labels(*labels).inc()
