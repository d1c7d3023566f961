"""The load: orders at a steady rate, each kept in mind once the server has acknowledged it."""

from __future__ import annotations

import sys
import time

import anyio

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BusError
from stratum_bus.event import new

SOURCE = "/agents/customer"


class Load:
    """`accepted` maps the id of an order to the sequence that the server acknowledged."""

    def __init__(self, bus: Bus, rate: float) -> None:
        self.accepted: dict[str, int] = {}
        self.unknown: list[str] = []
        self.seconds: list[float] = []
        self._bus = bus
        self._rate = rate
        self._stop = anyio.Event()

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Place orders until stopped, and wait for the last acknowledgements."""
        number = 0
        async with anyio.create_task_group() as tasks:
            while not self._stop.is_set():
                number += 1
                tasks.start_soon(self._place, number)
                with anyio.move_on_after(1 / self._rate):
                    await self._stop.wait()

    async def _place(self, number: int) -> None:
        event = new("order.placed", {"number": number}, source=SOURCE)
        began = time.monotonic()
        try:
            ack = await self._bus.publish(subject.inbox("clerk", "customer", event.type), event)
        except BusError as error:
            self.unknown.append(event.id)
            print(f"order {number} is not acknowledged: {error}", file=sys.stderr)
        else:
            self.accepted[event.id] = ack.sequence
            self.seconds.append(time.monotonic() - began)
