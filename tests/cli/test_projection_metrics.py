"""The metrics of projections: what a projector says of itself, as Prometheus reads it."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stratum_bus.bus import Bus
from stratum_bus.event import new
from stratum_bus.server import free_port
from stratum_bus.testing import eventually
from stratum_projections.manage import State
from stratum_projections.metrics import Metrics, follow
from stratum_projections.rebuild import Building

BUILDING = Building(version=2, sequence=25, end=100, events_per_s=10, eta_seconds=7.5)


def state(name: str = "papers", **fields: Any) -> State:
    given: dict[str, Any] = {
        "version": 1, "tables": [name], "status": "live", "sequence": 90, "lag_events": 10,
        "lag_seconds": 1.5, "quarantined": 2, "events": 80, "batches": 4, "seconds": 0.25,
        "building": None,
    }  # fmt: skip
    return State(name=name, **{**given, **fields})


def page(metrics: Metrics) -> dict[str, float]:
    """The samples by name and labels, as in `x{projection="papers"}`."""
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    return {
        key: float(value) for key, _, value in (x.rpartition(" ") for x in lines if x[0] != "#")
    }


def test_each_projection_has_its_numbers() -> None:
    metrics = Metrics()
    assert page(metrics) == {}
    metrics.told([state(), state("words", status="paused", building=BUILDING)])
    found = page(metrics)
    label = '{projection="papers"}'
    assert {key.removesuffix(label): value for key, value in found.items() if label in key} == {
        "stratum_projection_events_total": 80, "stratum_projection_batches_total": 4,
        "stratum_projection_seconds_total": 0.25, "stratum_projection_lag_events": 10,
        "stratum_projection_lag_seconds": 1.5, "stratum_projection_quarantined": 2,
        "stratum_projection_paused": 0,
    }  # fmt: skip
    assert found['stratum_projection_paused{projection="words"}'] == 1
    assert found['stratum_projection_built_ratio{projection="words"}'] == 0.25


def test_old_numbers_are_no_numbers() -> None:
    metrics = Metrics(stale_seconds=0)
    metrics.told([state()])
    assert page(metrics) == {}


async def test_without_a_projector_there_are_none(bus: Bus) -> None:
    metrics = Metrics()
    metrics.told([state()])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow, bus, metrics, "nobody")
        await eventually(lambda: not page(metrics), within_seconds=20)
        tasks.cancel_scope.cancel()


@pytest.fixture
def port(bus_url: str, tmp_path: Path) -> Iterator[int]:
    """Where the page of a projector that runs alone is."""
    number = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "stratum_projections", "--url", bus_url, "--path",
         str(tmp_path / "p.duckdb"), "--metrics-port", str(number)],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    yield number
    process.kill()
    process.wait()


async def test_a_projector_that_runs_alone_serves_its_own(port: int, bus: Bus) -> None:
    for n in range(3):
        await bus.publish("topic.alice.number", new("number", n, source="/alice"))

    def counted() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                text = answer.read().decode()
        except urllib.error.URLError:
            return False
        return 'stratum_projection_events_total{projection="events"} 3.0' in text

    async def seen() -> bool:
        return await anyio.to_thread.run_sync(counted)

    await eventually(seen, within_seconds=40)
