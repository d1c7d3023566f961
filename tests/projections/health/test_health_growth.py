"""lag, memory, full: what grows."""

from __future__ import annotations

from typing import Any

import pytest

from stratum_bus.thresholds import HealthConfig, Lag, Memory
from stratum_projections.health.observed import Fill, Position

MIB = 1 << 20


@pytest.fixture
def config() -> HealthConfig:
    return HealthConfig(lag=Lag(100, 12), memory=Memory(100 * MIB, 16, 120))


def inbox(world: Any, pending: int, delivered: int) -> None:
    world.positions = [Position("a", "LOG", pending, 3, delivered, delivered - 3)]


def test_an_inbox_that_grows_and_grows_lags(world: Any) -> None:
    world.alive("a")
    for second in range(20):
        inbox(world, 50 + 20 * second, second)
        world.run(1)
    [incident] = world.incidents()
    assert (incident.kind, incident.command) == ("lag", "")
    assert incident.evidence["grown_a_second"] > 10
    inbox(world, 90, 40)
    world.run(1)
    assert world.over() == ["fewer than 100 messages wait"]


def test_an_inbox_that_was_filled_at_once_and_is_worked_off_does_not_lag(world: Any) -> None:
    world.alive("a")
    for second in range(40):
        inbox(world, 5000 - 10 * second, second)
        world.run(1)
    assert world.incidents() == []


def test_memory_that_grows_steadily_is_a_leak_and_the_instance_is_restarted(world: Any) -> None:
    one = world.started("a", "i1")
    world.run(16)
    for _ in range(24):
        one.bytes += 8 * MIB
        world.run(1)
    [incident] = world.incidents()
    assert (incident.kind, incident.instance) == ("memory", "i1")
    assert incident.evidence["bytes"] - incident.evidence["bytes_before"] >= 100 * MIB
    assert world.commands() == [("a", "restart", "i1")]
    world.ended(one, wanted=True, code=0, signal="")
    world.started("a", "i2")
    world.run(3)
    assert world.over() == ["i2 has taken its place"]


def test_a_slow_leak_is_seen_in_the_long_run(world: Any) -> None:
    one = world.alive("a")
    for _ in range(200):
        one.bytes += MIB
        world.run(1)
    assert [incident.kind for incident in world.incidents()] == ["memory"]


def test_what_an_instance_loads_when_it_starts_is_no_leak(world: Any) -> None:
    one = world.alive("a")
    for _ in range(16):
        one.bytes += 20 * MIB
        world.run(1)
    world.run(40)
    assert world.incidents() == []


def test_what_is_loaded_once_is_no_leak(world: Any) -> None:
    one = world.alive("a")
    world.run(20)
    one.bytes += 900 * MIB
    world.run(40)
    assert world.incidents() == []


def test_a_stream_near_its_limit_warns_and_then_calls_a_person(world: Any) -> None:
    world.fills = [Fill("LOG", 85, 100), Fill("BLOBS", 10, 100)]
    world.run(2)
    [incident] = world.incidents()
    assert (incident.kind, incident.agent, incident.about) == ("full", "server", "LOG")
    assert (incident.severity, world.commands()) == ("warning", [])
    world.fills = [Fill("LOG", 96, 100)]
    world.run(2)
    assert world.commands() == [("server", "escalate", "")]
    world.fills = [Fill("LOG", 78, 100)]
    world.run(2)
    assert world.over() == []
    world.fills = [Fill("LOG", 60, 100)]
    world.run(2)
    assert world.over() == ["it holds 60% now"]


def test_a_store_or_a_count_of_messages_may_be_full_too(world: Any) -> None:
    world.fills = [Fill("", 99, 100), Fill("LOG", 0, 0, 9, 10)]
    world.run(2)
    assert sorted((i.about, i.severity) for i in world.incidents()) == [
        ("LOG", "warning"),
        ("store", "critical"),
    ]


def test_a_server_that_was_away_is_named_once_and_is_back_at_once(world: Any) -> None:
    world.now_ns += 3_000_000_000
    world.tick(away_seconds=3.2)
    world.run(0.5)
    world.tick(away_seconds=3.4)
    world.run(60)
    [incident] = world.incidents()
    assert (incident.kind, incident.agent, incident.status) == ("away", "server", "closed")
    assert incident.evidence["away_seconds"] == 3.2
    world.tick(away_seconds=0.05)
    world.run(1)
    assert len(world.incidents()) == 1
