"""Bringing projections to where the others are, while those go on; and then into their midst.

That is how a changed version, a projection that was added, one that was paused, and one that is to
be rebuilt by command all come about: folded from their own position, in transactions of their own,
and at the end, in one moment in which nothing else is folded, up to the very sequence of the others
and into the place of what was there before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from time import monotonic

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from stratum_projections import catalog
from stratum_projections.fold import Fold
from stratum_projections.ingest import batches
from stratum_projections.live import Live
from stratum_projections.projection import BESIDE, Projection

log = logging.getLogger("stratum.projector")

NEAR_EVENTS = 2_000
"""How many may be left when the others are made to wait for the rest."""


class Building(msgspec.Struct):
    """How far a projection has come. `end` is where the others are, `eta_seconds` None if unknown."""

    version: int
    sequence: int
    end: int
    events_per_s: float = 0.0
    eta_seconds: float | None = None


class _Task(msgspec.Struct):
    """The building of projections that go together."""

    slots: list[Projection]
    scope: anyio.CancelScope
    ended: anyio.Event


class Builder:
    """What is being built. Its tasks run in the group that it is given."""

    def __init__(self, live: Live, tasks: TaskGroup) -> None:
        self._live = live
        self._tasks = tasks
        self.building: dict[str, Building] = {}
        self._running: dict[str, _Task] = {}

    def start(self, projections: Sequence[Projection]) -> None:
        """Bring projections (by the names under which they are built) to where the others are.

        Those that stand at the same place go together, so that the log is read once for them.
        """

        def at(projection: Projection) -> int:
            return self._live.checkpoint.positions[projection.name]

        for _, group in groupby(sorted(projections, key=at), key=at):
            task = _Task(list(group), anyio.CancelScope(), anyio.Event())
            self._running |= {slot.name: task for slot in task.slots}
            self._note(task.slots)
            self._tasks.start_soon(self._build, task)

    async def rebuild(self, projections: Sequence[Projection]) -> None:
        """Begin projections anew beside themselves."""
        slots = [projection.beside() for projection in projections]
        for projection, slot in zip(projections, slots, strict=True):
            await self.stop(slot.name)
            await self.stop(projection.name)  # what is on its way there is to be replaced
        async with self._live.turn:
            await anyio.to_thread.run_sync(self._begin, slots)
        self.start(slots)

    def _begin(self, slots: Sequence[Projection]) -> None:
        store, checkpoint = self._live.store, self._live.checkpoint
        with store.transaction():
            for slot in slots:
                catalog.begin(store, slot)
                catalog.enrol(store, checkpoint, slot.name)

    async def stop(self, name: str) -> None:
        """End the building of a projection, if there is one. Others of its group begin again."""
        if task := self._running.get(name):
            task.scope.cancel()
            await task.ended.wait()
            left = self._live.checkpoint.positions  # or it was built just then
            self.start([slot for slot in task.slots if slot.name != name and slot.name in left])

    async def _build(self, task: _Task) -> None:
        live, slots = self._live, task.slots
        try:
            with task.scope:
                store = await anyio.to_thread.run_sync(live.store.beside)
                try:
                    fold = await anyio.to_thread.run_sync(Fold, store, live.checkpoint, slots)
                    await self._approach(fold, slots)
                    async with live.turn:
                        await self._join(fold, slots)
                finally:
                    store.close()
        finally:
            for slot in slots:
                self.building.pop(_final(slot), None)
                del self._running[slot.name]
            task.ended.set()

    async def _approach(self, fold: Fold, slots: Sequence[Projection]) -> None:
        """Fold until few are left. The others move on meanwhile."""
        live, positions = self._live, self._live.checkpoint.positions
        first, began = positions[slots[0].name], monotonic()

        def note() -> None:
            done = positions[slots[0].name] - first
            self._note(slots, done / max(monotonic() - began, 1e-3))

        while (end := live.position.sequence) - positions[slots[0].name] > NEAR_EVENTS:
            await self._fold(fold, slots, end, note)

    def _note(self, slots: Sequence[Projection], rate: float = 0.0) -> None:
        """Let it be known how far they are."""
        at, end = self._live.checkpoint.positions[slots[0].name], self._live.position.sequence
        eta = max(0, end - at) / rate if rate else None
        for slot in slots:
            self.building[_final(slot)] = Building(slot.version, at, end, rate, eta)

    async def _join(self, fold: Fold, slots: Sequence[Projection]) -> None:
        """With nothing else being folded: the rest, and into the midst of the others."""
        live = self._live
        await self._fold(fold, slots, live.checkpoint.core, lambda: None)
        with anyio.CancelScope(shield=True):
            for slot in slots:
                await anyio.to_thread.run_sync(
                    catalog.adopt, live.store, live.checkpoint, slot.name
                )
                live.fold.take_in(live.projections[_final(slot)], fold.work[slot.name])
        log.info("built %s", ", ".join(map(_final, slots)))

    async def _fold(
        self, fold: Fold, slots: Sequence[Projection], end: int, note: Callable[[], None]
    ) -> None:
        """Fold up to sequence `end`; `note` is called after each batch."""
        live = self._live
        start = live.checkpoint.positions[slots[0].name] + 1
        if start > end:
            return
        reading = batches(
            live.bus, live.checkpoint.stream, start=start, end=end, config=live.config,
            projections=slots,
            lake=live.lake,
        )  # fmt: skip
        async with reading as found:
            async for batch in found:
                if batch.decoded is not None:
                    await anyio.to_thread.run_sync(fold.fold, batch.decoded)
                    note()


def _final(slot: Projection) -> str:
    """The name that the projection has when it is built."""
    return slot.name.removesuffix(BESIDE)
