"""The lake beside the projector: exports as events come, compacts, and lets the hot end go.

Nothing that goes wrong here stops the projector. It is said once, and tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

from stratum_bus.bus import Bus
from stratum_bus.config import LakeConfig
from stratum_bus.errors import ConnectionLost, LakeError, NoAnswer, NoStream, StratumError
from stratum_bus.tasks import task_group
from stratum_projections.lake.compact import GRACE_SECONDS, compact
from stratum_projections.lake.delta import Delta
from stratum_projections.lake.export import Exporter, exporter, state
from stratum_projections.lake.hot import Hot
from stratum_projections.lake.segment import Folder
from stratum_projections.position import Position
from stratum_projections.store import StatementFailed, Store

log = logging.getLogger("stratum.lake")

CHECK_SECONDS = 1.0
LOOK_SECONDS = GRACE_SECONDS / 3
"""The view is renewed before what was replaced is removed."""

RETRY_SECONDS = 5.0
PATIENCE_SECONDS = 300.0
BUSY_EVENTS = 20_000
HOT_STREAM = "LOG"
"""The stream whose events the table `events` holds."""

_LOST_SERVER = (ConnectionLost, NoAnswer, NoStream)

T = TypeVar("T")


async def keep(bus: Bus, store: Store, config: LakeConfig, position: Position) -> None:
    """Keep the lake until cancelled. `store` is the projector's open file, `position` its own.

    While the tables are far behind, they come first; but for no longer than some minutes.
    """
    beside = await anyio.to_thread.run_sync(store.beside)
    try:
        async with task_group() as tasks:
            for stream in config.streams:
                tasks.start_soon(_Keeper(bus, beside, config, stream, position).run)
    finally:
        beside.close()


class _Keeper:
    """Keeps the lake of one stream."""

    def __init__(
        self, bus: Bus, store: Store, config: LakeConfig, stream: str, position: Position
    ) -> None:
        self._bus = bus
        self._position = position
        self._config = config
        self._folder = Folder(config.path, stream)
        self._hot = Hot(store, self._folder, config.keep_hot_days) if stream == HOT_STREAM else None
        self._delta: Delta | None = None
        self._said: dict[str, str] = {}

    async def run(self) -> None:
        while True:
            try:
                size = self._config.segment_events
                async with exporter(self._bus, self._folder, segment_events=size) as ours:
                    await self._follow(ours)
            except _LOST_SERVER as error:
                log.debug("%s: %s", self._folder.root, error)
            except StratumError as error:
                self._say("export", str(error))
            await anyio.sleep(RETRY_SECONDS)

    async def _follow(self, ours: Exporter) -> None:
        """Export when there is enough, or when it has waited long enough."""
        size, seconds = self._config.segment_events, self._config.segment_seconds
        closed, looked = anyio.current_time(), 0.0
        done = (await anyio.to_thread.run_sync(self._folder.listing)).last
        while True:
            await anyio.sleep(min(CHECK_SECONDS, seconds / 4))
            waiting = (await state(self._bus, self._folder.stream)).last - done
            age = anyio.current_time() - closed
            late = age >= seconds
            yields = self._busy() and age < seconds + PATIENCE_SECONDS
            if (waiting >= size or (waiting and late)) and not yields:
                done += waiting if late else waiting - waiting % size
                await ours.export(end=done)
                self._said.pop("export", None)
                closed, looked = anyio.current_time(), 0.0
            # Also when nothing comes: another process may have compacted.
            if anyio.current_time() - looked >= LOOK_SECONDS:
                await self._look_after()
                looked = anyio.current_time()

    def _busy(self) -> bool:
        """Whether the tables are being built, or have a lot to catch up with."""
        left = self._position.left
        return left is not None and left > BUSY_EVENTS

    async def _look_after(self) -> None:
        """What follows new segments; each part for itself, so that one does not hold up another."""
        folder, config = self._folder, self._config
        done = await self._try("compact", lambda: compact(folder))
        if config.delta:
            await self._try("delta", self._follow_delta)
            if done and self._delta:
                await self._try("delta", self._delta.compact)
        if self._hot:
            removed = await self._try("hot", self._hot.refresh)
            if removed:
                log.info("%d events are in the lake alone now", removed)

    def _follow_delta(self) -> None:
        self._delta = self._delta or Delta(self._config.delta, self._folder)
        self._delta.follow()

    async def _try(self, part: str, work: Callable[[], T]) -> T | None:
        try:
            result = await anyio.to_thread.run_sync(work)
        except LakeError as error:
            if error.reason != "locked":  # somebody else is at it: next time
                self._say(part, str(error))
            return None
        except (StratumError, StatementFailed) as error:
            self._say(part, str(error))
            return None
        self._said.pop(part, None)
        return result

    def _say(self, part: str, text: str) -> None:
        if self._said.get(part) != text:
            log.error("%s: %s", part, text)
            self._said[part] = text
