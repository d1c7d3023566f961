"""Heartbeats: what an instance says of itself twice a second, from a thread of its own.

The thread has its own event loop and connection, so a beat comes while a handler blocks the main
loop, and says so: each beat asks the main loop for an answer and reports how long that is due.
Beats may be lost; they are sent without waiting for the stream.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from stratum_bus import event, jetstream, subject
from stratum_bus.errors import BusError
from stratum_bus.jetstream import Connection
from stratum_bus.schema import event_type

log = logging.getLogger("stratum.heartbeat")

TYPE = "stratum.health.beat"
EVERY_SECONDS = 0.5
BLOCKED_SECONDS = 1.0
"""A loop that has answered nothing for so long is called blocked."""

IN_HAND_MAX = 64
"""How many messages in hand a beat names at most."""

_CLOSE_SECONDS = 5.0

AGENT, PROJECTOR, HEALTH, SUPERVISOR = "agent", "projector", "health", "supervisor"
"""The kinds of what beats."""

STARTING, IDLE, WORKING, BLOCKED, STOPPING = "starting", "idle", "working", "blocked", "stopping"
"""The states."""


class InHand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that was delivered and is not settled.

    `event`, `run` and `step` are known once its handler has begun; `step` is the position that
    the run's journal has come to.
    """

    sequence: int
    subject: str
    stream: str = "LOG"
    event: str = ""
    run: str = ""
    step: str = ""
    attempt: int = 1
    since: datetime | None = None


@event_type(TYPE, roles=("health",))
class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One heartbeat, on `health.<name>.<instance>`.

    `progress` moves only when the log moved for this instance: it counts messages settled and
    entries appended. `pending` is how many messages wait for its consumer, None where unknown.
    `in_hand` is at most IN_HAND_MAX of `holds`, those that have begun first, oldest first.
    """

    name: str
    instance: str
    kind: str
    state: str
    pid: int
    host: str
    version: str
    started: datetime
    every_seconds: float
    progress: int = 0
    in_hand: list[InHand] = []
    holds: int = 0
    loop_lag_seconds: float = 0.0
    resident_bytes: int = 0
    pending: int | None = None


class Vitals:
    """What an instance tells the thread of its beats; set it from the main loop at any time.

    `instance` is one subject token. `refresh` is called in the other thread before each beat.
    """

    def __init__(self, name: str, kind: str, instance: str) -> None:
        self.name = name
        self.kind = kind
        self.instance = instance
        self.state = STARTING
        self.progress = 0
        self.pending: int | None = None
        self.in_hand: list[InHand] = []
        self.refresh: Callable[[], None] = _nothing

    def set_ready(self) -> None:
        """It has started: from now on it is idle or working."""
        self.state = IDLE

    def set_stopping(self) -> None:
        """It takes nothing new and finishes what it has."""
        self.state = STOPPING


@asynccontextmanager
async def beating(
    url: str,
    vitals: Vitals,
    *,
    every_seconds: float = EVERY_SECONDS,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[None]:
    """Beat for the running loop as long as the context; a lost server is waited for.

    The last beat says that it stops. `options` goes to the client library as it is.
    """
    beater = _Beater(url, vitals, every_seconds, options, asyncio.get_running_loop())
    thread = threading.Thread(target=beater.run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        vitals.set_stopping()
        beater.stop()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join, _CLOSE_SECONDS)


class _Beater:
    """What the thread does; what it shares with the loop that it watches are single values."""

    def __init__(
        self,
        url: str,
        vitals: Vitals,
        every_seconds: float,
        options: Mapping[str, Any] | None,
        watched: asyncio.AbstractEventLoop,
    ) -> None:
        self._url = url
        self._vitals = vitals
        self._every_seconds = every_seconds
        self._options = options
        self._watched = watched
        self._asked: float | None = None
        self._lag = 0.0
        self._started = datetime.now(UTC)
        self._subject = subject.health(vitals.name, vitals.instance)
        self._is_stopping = threading.Event()
        self._wake: Callable[[], object] = _nothing

    def stop(self) -> None:
        """Send a last beat and end."""
        self._is_stopping.set()
        self._wake()

    def run(self) -> None:
        anyio.run(self._beat)

    async def _beat(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._wake = lambda: _call_soon(loop, stop.set)
        if self._is_stopping.is_set():
            return
        while not stop.is_set():
            with suppress(BusError):  # no server, or not yet
                async with jetstream.connect(
                    self._url, name=f"heartbeat of {self._vitals.name}", options=self._options
                ) as connection:
                    await self._beat_on(connection, stop)
            with anyio.move_on_after(self._every_seconds):
                await stop.wait()

    async def _beat_on(self, connection: Connection, stop: asyncio.Event) -> None:
        while True:
            stopping = stop.is_set()
            with suppress(BusError):  # lost for now: the connection comes back by itself
                await self._send(connection)
            if stopping:
                return
            self._ask()
            with anyio.move_on_after(self._every_seconds):
                await stop.wait()

    async def _send(self, connection: Connection) -> None:
        try:
            payload = event.encode(
                event.new(TYPE, self._now(), source=event.agent_source(self._vitals.name))
            )
        except RuntimeError as error:  # the loop changed what it has in hand at this very moment
            log.debug("a beat was left out: %s", error)
            return
        await connection.send(self._subject, payload)

    def _now(self) -> Beat:
        vitals = self._vitals
        lag, self._lag = max(self._lag, self._due_seconds()), 0.0
        vitals.refresh()
        holds = sorted(vitals.in_hand, key=_begun_and_oldest_first)
        return Beat(
            name=vitals.name,
            instance=vitals.instance,
            kind=vitals.kind,
            state=_state(vitals.state, bool(holds), self._due_seconds()),
            pid=os.getpid(),
            host=socket.gethostname(),
            version=version(),
            started=self._started,
            every_seconds=self._every_seconds,
            progress=vitals.progress,
            in_hand=holds[:IN_HAND_MAX],
            holds=len(holds),
            loop_lag_seconds=round(lag, 3),
            resident_bytes=resident_bytes(),
            pending=vitals.pending,
        )

    def _due_seconds(self) -> float:
        """How long the watched loop owes its answer."""
        asked = self._asked
        return time.monotonic() - asked if asked is not None else 0.0

    def _ask(self) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            _call_soon(self._watched, self._answer)

    def _answer(self) -> None:
        """Runs in the watched loop."""
        self._lag, self._asked = max(self._lag, self._due_seconds()), None


def _state(state: str, works: bool, lag_seconds: float) -> str:
    if lag_seconds >= BLOCKED_SECONDS:
        return BLOCKED
    return WORKING if works and state == IDLE else state


def _begun_and_oldest_first(held: InHand) -> tuple[bool, float]:
    return not held.event, held.since.timestamp() if held.since else 0.0


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(callback)


def _nothing() -> None:
    """There is nothing to do."""


@cache
def version() -> str:
    """Of the installed distribution."""
    try:
        return importlib.metadata.version("stratum-bus")
    except importlib.metadata.PackageNotFoundError:
        return ""


def resident_bytes() -> int:
    """The memory this process has in RAM; where the system does not say so, the most it had."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
