"""The health projector as a process: reads HEALTH and control events, ticks, stores what it decides."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

import anyio
from msgspec.structs import replace

from stratum_bus import event, subject
from stratum_bus.bus import Bus
from stratum_bus.consume import LOST_SERVER
from stratum_bus.data_dir import DataDir
from stratum_bus.errors import NoStream, PermissionDenied, StratumError, WrongSequence
from stratum_bus.heartbeat import EVERY_SECONDS, Vitals, beating
from stratum_bus.heartbeat import HEALTH as KIND
from stratum_bus.message import Message
from stratum_bus.tasks import task_group
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health import observed as ticks
from stratum_projections.health.decide import Decision
from stratum_projections.health.incident import INCIDENT, SOURCE, Incident
from stratum_projections.health.look import Look
from stratum_projections.health.machine import Machine

log = logging.getLogger("stratum.health")

NAME = "health"
STREAM = "HEALTH"
LOOKBACK_SECONDS = 60
"""How far back it reads what was said before it started."""

OWN_TICK_SECONDS = 30.0
"""Connected, and no tick of its own came back for so long: it ends, to be started again."""

UNRETURNED_TICKS, UNRETURNED_SECONDS = 4, 2.0
"""So many ticks have to get lost, for so long, before the server is called away; or the connection
breaks."""

_CONTROL = ["control.>"]
_RETRY_SECONDS = 0.2
_LOST = (*LOST_SERVER, NoStream)


async def run(
    bus: Bus,
    config: HealthConfig,
    *,
    stop: anyio.Event,
    instance: str,
    folder: DataDir | None = None,
    beat_seconds: float = EVERY_SECONDS,
) -> None:
    """Judge until `stop` is set. Any number may run on one bus: they come to one judgement.

    `folder` is that of the server's data, where it is on this machine. A lost server is waited for.
    Raises NotFound where the streams are not there, StratumError where its ticks do not come back.
    """
    vitals = Vitals(NAME, KIND, instance)
    projector = _Projector(bus, config, vitals, Look(bus, config, folder))
    async with beating(bus.connection.url, vitals, every_seconds=beat_seconds):
        start = await projector.read_past()
        async with task_group() as tasks:
            tasks.start_soon(projector.follow_control)
            tasks.start_soon(projector.follow_health, start)
            tasks.start_soon(projector.tick)
            await stop.wait()
            vitals.set_stopping()
            tasks.cancel_scope.cancel()


class _Projector:
    def __init__(self, bus: Bus, config: HealthConfig, vitals: Vitals, look: Look) -> None:
        self._bus = bus
        self._vitals = vitals
        self._look = look
        self._seconds = config.tick_seconds
        self._subject = subject.health(NAME, vitals.instance)
        self._machine = Machine(config)
        # What follows from ticks before its own was decided by others, or is past.
        self._machine.silent = True
        self._control = 0
        self._read_more = anyio.Event()
        self._health = 0
        self._own_tick = anyio.current_time()
        self._unreturned = 0
        self._broke = False

    async def read_past(self) -> datetime | int:
        """Learn all control events so far; returns from when on HEALTH is to be read."""
        async with self._bus.read(filters=_CONTROL) as reader:
            async for message in reader:
                self._machine.learn([message])
                self._control = message.sequence
        info = await self._bus.connection.api(f"STREAM.INFO.{STREAM}")
        if not info["state"]["messages"]:
            return 1
        return datetime.fromisoformat(info["ts"]) - timedelta(seconds=LOOKBACK_SECONDS)

    async def follow_control(self) -> None:
        start = self._control + 1
        async with self._bus.read(filters=_CONTROL, start=start, follow=True) as reader:
            async for message in reader:
                self._machine.learn([message])
                self._control = message.sequence
                self._read_more.set()

    async def follow_health(self, start: datetime | int) -> None:
        """Judge at each tick, whoever made it."""
        while True:
            async with (
                self._bus.read(STREAM, start=start, follow=True) as reader,
                task_group() as tasks,
            ):
                tasks.start_soon(self._watch_end, tasks.cancel_scope)
                async for message in reader:
                    self._health = message.sequence
                    await self._judge(message)
            start = self._health + 1

    async def tick(self) -> None:
        """Say at each tick what the server says, until cancelled."""
        connection = self._bus.connection
        while True:
            try:
                away = self._away_seconds()
                self._unreturned += 1
                seen = await self._look.take(self._machine.known, self._control, away)
                tick = event.new(ticks.TYPE, seen, source=SOURCE)
                await connection.send(self._subject, event.encode(tick))
            except _LOST as error:
                log.debug("no tick: %s", error)
                await anyio.sleep(_RETRY_SECONDS)
            if connection.connected and self._away_seconds() > OWN_TICK_SECONDS:
                raise StratumError(
                    f"no tick of {self._subject} came back within {OWN_TICK_SECONDS:g} s: stream "
                    f"{STREAM} does not store them, or cannot be read"
                )
            await anyio.sleep(self._seconds)

    def _away_seconds(self) -> float:
        """How long no tick came back, where the connection broke or ticks got lost; else 0."""
        seconds = anyio.current_time() - self._own_tick
        lost = self._unreturned >= UNRETURNED_TICKS and seconds >= UNRETURNED_SECONDS
        return seconds if lost or self._broke else 0.0

    async def _judge(self, message: Message) -> None:
        tick = self._machine.tick_in(message)
        while tick is not None and tick.log > self._control:
            self._read_more = anyio.Event()
            await self._read_more.wait()
        if tick is not None and message.subject == self._subject:
            self._machine.silent = False
            self._own_tick, self._unreturned = anyio.current_time(), 0
            self._broke = self._broke and not tick.away_seconds
            self._vitals.set_ready()
            self._vitals.progress += 1
        for decision in self._machine.feed(message):
            await self._store(decision)

    async def _store(self, decision: Decision) -> None:
        fence = subject.control(decision.agent, INCIDENT)
        appends = decision.appends
        for i, append in enumerate(appends):
            if append.subject == fence:
                fenced = replace(append, expected_sequence=decision.expected_sequence)
                appends = [*appends[:i], fenced, *appends[i + 1 :]]
                break
        try:
            await self._bus.commit(appends)
        except WrongSequence:
            log.debug("another health projector was faster about %s", decision.agent)
        except _LOST as error:
            log.info("about %s nothing could be stored, and is again: %s", decision.agent, error)
        else:
            _say(decision)

    async def _watch_end(self, scope: anyio.CancelScope) -> None:
        """Begin again where a server came back with less of HEALTH than was read: it may."""
        changed = anyio.Event()

        def on_change(denied: PermissionDenied | None) -> None:
            self._broke = self._broke or not self._bus.connection.connected
            changed.set()

        forget = self._bus.connection.on_change(on_change)
        try:
            while True:
                await changed.wait()
                changed = anyio.Event()
                try:
                    await self._bus.connection.wait_connected(60)
                    info = await self._bus.connection.api(f"STREAM.INFO.{STREAM}")
                except _LOST:
                    changed.set()
                    await anyio.sleep(_RETRY_SECONDS)
                    continue
                if (last := info["state"]["last_seq"]) < self._health:
                    self._health = last
                    scope.cancel()
        finally:
            forget()


def _say(decision: Decision) -> None:
    for append in decision.appends:
        said = append.event.data
        if isinstance(said, Incident):
            who = f"{said.agent} {said.instance}".rstrip()
            what = f"over: {said.over}" if said.over else said.text
            log.warning("%s %s: %s", who, said.kind, what)
        else:
            log.warning("%s", append.subject)
