"""The live picture: who there is and how they are, as beats, control events and consumers say now."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from msgspec import Struct
from msgspec.structs import replace

from stratum_bus.bus import Bus
from stratum_bus.heartbeat import AGENT, HEALTH
from stratum_bus.message import nanoseconds
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.known import NS, Known, Life, Moment, Opened
from stratum_projections.health.look import Look
from stratum_projections.health.machine import Machine
from stratum_projections.health.observed import Observed, Position

BEATS_SECONDS = 15
"""How far back beats are read: who has not beaten for so long is not in the picture."""

SILENT, STOPPED, PAUSED, QUARANTINED = "silent", "stopped", "paused", "quarantined"
UNHEARD, ABSENT = "started, no beat", "not running"
"""States beside those of the beats."""


class Row(Struct, omit_defaults=True):
    """An instance, or an agent that has none. `pending` messages wait for the agent; its `restarts`
    were not asked for by a person; `incidents` are open.
    """

    agent: str
    instance: str
    kind: str
    state: str
    beat_seconds_ago: float | None = None
    in_hand: int = 0
    pending: int = 0
    restarts: int = 0
    incidents: list[str] = []
    resident_bytes: int = 0
    loop_lag_seconds: float = 0.0
    progress: int = 0
    pid: int = 0
    host: str = ""
    version: str = ""
    started: datetime | None = None


class Picture(Struct):
    """`judged`: a health projector ticks, so that incidents are found."""

    rows: list[Row]
    open: list[Opened]
    judged: bool


async def picture(bus: Bus, config: HealthConfig, agents: Collection[str]) -> Picture:
    """How things are now; `agents` are in it even where nothing is heard of them.

    Raises NotFound without the streams, ConnectionLost, NoAnswer.
    """
    known, seen = await _known(bus, config)
    positions = {each.agent: each for each in seen.positions or []}
    rows = [_row(known, config, life, positions) for life in known.lives.values()]
    there = {row.agent for row in rows}
    names = {*agents, *positions, *(name for name, state in known.agents.items() if state.down)}
    rows += [_absent(known, name, positions) for name in names - there]
    rows.sort(key=lambda row: (row.kind != AGENT, row.agent, row.instance))
    opened = sorted(known.open.values(), key=lambda each: each.at.sequence)
    judged = any(row.kind == HEALTH and row.state != SILENT for row in rows)
    return Picture(rows, opened, judged)


async def _known(bus: Bus, config: HealthConfig) -> tuple[Known, Observed]:
    machine = Machine(config)
    machine.silent = True
    async with bus.read(filters=["control.>"]) as reader:
        machine.learn([message async for message in reader])
    machine.learn_all()
    info = await bus.connection.api("STREAM.INFO.HEALTH")
    now = datetime.fromisoformat(info["ts"])
    if info["state"]["messages"]:
        start = now - timedelta(seconds=BEATS_SECONDS)
        async with bus.read("HEALTH", start=start) as reader:
            async for message in reader:
                machine.feed(message)
    known = machine.known
    known.now = Moment(max(nanoseconds(now), known.now.ns), known.now.sequence)
    return known, await Look(bus, config).take(known, known.log)


def _row(known: Known, config: HealthConfig, life: Life, positions: dict[str, Position]) -> Row:
    state = known.agent(life.agent)
    row = Row(
        agent=life.agent, instance=life.instance, kind=life.kind, state=UNHEARD,
        pending=_pending(life, positions), restarts=state.restarts,
        incidents=_incidents(known, life.agent, life.instance),
    )  # fmt: skip
    if life.last is None or life.beat is None:
        return row
    beat, ago = life.beat, (known.now.ns - life.last.ns) / NS
    said = SILENT if ago > config.of(life.agent).dead.seconds else beat.state
    return replace(
        row, state=PAUSED if state.paused and said != SILENT else said,
        beat_seconds_ago=round(max(0.0, ago), 2), in_hand=beat.holds, resident_bytes=beat.resident_bytes,
        loop_lag_seconds=beat.loop_lag_seconds, progress=beat.progress, pid=beat.pid,
        host=beat.host, version=beat.version, started=beat.started,
    )  # fmt: skip


def _absent(known: Known, agent: str, positions: dict[str, Position]) -> Row:
    state = known.agent(agent)
    said = STOPPED if state.stopped else QUARANTINED if state.quarantined else ABSENT
    waits = positions[agent].pending if agent in positions else 0
    return Row(
        agent=agent, instance="", kind=AGENT, state=said, pending=waits,
        restarts=state.restarts,
        incidents=_incidents(known, agent, ""),
    )  # fmt: skip


def _pending(life: Life, positions: dict[str, Position]) -> int:
    """An agent's as the server says; a projector's as it says itself."""
    if life.agent in positions:
        return positions[life.agent].pending
    said = life.beat.pending if life.beat is not None and life.kind != AGENT else None
    return said or 0


def _incidents(known: Known, agent: str, instance: str) -> list[str]:
    """Open incidents of one instance, or of the whole agent; of those that are gone too where
    there is none to show them at."""
    return sorted(
        {
            each.incident.kind
            for each in known.opened(agent)
            if not instance
            or each.incident.instance in ("", instance)
            or (agent, each.incident.instance) not in known.lives
        }
    )
