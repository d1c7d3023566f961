"""The page for Prometheus: what beats and incidents say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stratum_agents.supervision import incidents
from stratum_agents.supervision.beats import Beats
from stratum_agents.supervision.metrics import Metrics
from stratum_bus import heartbeat, subject
from stratum_bus.bus import Bus
from stratum_bus.event import encode, new
from stratum_bus.heartbeat import Beat
from stratum_bus.tasks import task_group
from stratum_bus.testing import eventually


async def tell(bus: Bus, id: str, *, opened: str = "") -> None:
    """An incident begins, or is over, as the health projector writes it."""
    data: dict[str, Any] = {"kind": "stuck", "status": "closed" if opened else "open"}
    what = new("stratum.health.incident", {**data, "opened": opened}, source="/health", id=id)
    await bus.publish(subject.control("worker", "incident"), what)


async def test_incidents_are_counted_and_those_that_are_open_are_shown(bus: Bus) -> None:
    metrics = Metrics()
    opened = 'stratum_health_incidents_open{agent="worker",kind="stuck"} '
    total = 'stratum_health_incidents_total{agent="worker",kind="stuck"} '

    async def shows(sample: str) -> None:
        await eventually(lambda: sample in metrics.page().decode(), within_seconds=20)

    await tell(bus, "before")
    await tell(bus, "over", opened="before")
    await tell(bus, "still")
    async with task_group() as tasks:
        tasks.start_soon(incidents.count, bus, metrics)
        await shows(f"{opened}1.0")
        assert total not in metrics.page().decode()  # they were before this supervisor
        await tell(bus, "new")
        await shows(f"{opened}2.0")
        await shows(f"{total}1.0")
        await tell(bus, "new-closed", opened="new")
        await shows(f"{opened}1.0")
        tasks.cancel_scope.cancel()


async def test_what_the_beats_of_all_instances_say_is_put_together(bus: Bus) -> None:
    metrics = Metrics()
    beats = Beats(metrics.heard)

    async def beat(instance: str, holds: int) -> None:
        said = Beat(
            name="worker", instance=instance, kind=heartbeat.AGENT, state=heartbeat.IDLE, pid=1,
            host="here", version="1", started=datetime.now(UTC), every_seconds=60, holds=holds,
            pending=7, resident_bytes=1000, loop_lag_seconds=holds / 2,
        )  # fmt: skip
        payload = encode(new(heartbeat.TYPE, said, source="/agents/worker"))
        await bus.connection.send(subject.health("worker", instance), payload)

    async with beats.heard(bus, ["worker"]):
        await beat("1", 1)
        await beat("2", 2)

        both = 'stratum_supervisor_beats_total{agent="worker"} 2.0'
        await eventually(lambda: both in metrics.page().decode(), within_seconds=20)
    page = metrics.page().decode()
    for name, value in {
        "stratum_agent_in_hand": 3.0,
        "stratum_agent_pending": 7.0,
        "stratum_agent_memory_bytes": 2000.0,
        "stratum_agent_loop_lag_seconds": 1.0,
    }.items():
        assert f'{name}{{agent="worker"}} {value}' in page
