"""Which way a group of appends goes, and that both ways store and refuse the same."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from stratum_bus import subject
from stratum_bus.batch import PubAck
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import ConnectionLost, WrongSequence
from stratum_bus.event import new
from stratum_bus.group_cost import GroupCost


def _settled(append_seconds: float, batch_seconds: float) -> GroupCost:
    cost = GroupCost()
    for _ in range(50):
        cost.appends_took(10 * append_seconds, 10)
        cost.batch_took(batch_seconds, 10)
    return cost


def test_where_every_append_is_synced_a_batch_pays_for_a_dozen() -> None:
    cost = _settled(append_seconds=0.3e-3, batch_seconds=3e-3)
    assert not cost.favours_batch(4)
    assert cost.favours_batch(16)


def test_where_appends_are_cheap_a_batch_pays_only_for_many() -> None:
    cost = _settled(append_seconds=0.06e-3, batch_seconds=3e-3)
    assert not cost.favours_batch(50)
    assert cost.favours_batch(200)


def test_the_other_way_is_tried_again_after_a_while() -> None:
    cost = _settled(append_seconds=0.3e-3, batch_seconds=1.0)
    decisions = [cost.favours_batch(50) for _ in range(1000)]
    assert not decisions[0]
    assert True in decisions


@pytest.fixture(params=["together", "apart"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    together = request.param == "together"
    monkeypatch.setattr(GroupCost, "favours_batch", lambda self, appends: together)
    yield request.param


async def test_only_the_guilty_append_of_a_group_fails(bus: Bus, way: str) -> None:
    outcomes: dict[int, PubAck | WrongSequence] = {}

    async def append(number: int) -> None:
        event = new("test.thing", number, source="/test")
        expected = 17 if number == 5 else 0
        try:
            outcomes[number] = await bus.publish(
                subject.run("a", f"r{number}"), event, expected_sequence=expected
            )
        except WrongSequence as error:
            outcomes[number] = error

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(append, number)
    refused = [number for number, outcome in outcomes.items() if isinstance(outcome, WrongSequence)]
    assert refused == [5]
    for number, outcome in outcomes.items():
        if isinstance(outcome, PubAck):
            stored = await bus.get("LOG", outcome.sequence)
            assert stored.subject == subject.run("a", f"r{number}")


async def test_an_event_published_twice_at_once_is_stored_once(bus: Bus, way: str) -> None:
    event = new("test.thing", 1, source="/test")
    sequences: list[int] = []

    async def append() -> None:
        sequences.append((await bus.publish(subject.topic("t", "test.thing"), event)).sequence)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(append)
    assert len(sequences) == 20
    async with bus.read() as reader:
        assert [message.id async for message in reader] == [event.id]


async def test_what_still_waits_when_the_bus_is_closed_fails(bus_url: str) -> None:
    failed: list[ConnectionLost] = []
    async with anyio.create_task_group() as outside, connect(bus_url) as bus:

        async def append(number: int) -> None:
            try:
                event = new("test.thing", number, source="/test")
                await bus.publish(subject.topic("t", "test.thing"), event)
            except ConnectionLost as error:
                failed.append(error)

        async with bus._publisher._turn:  # nothing can go out
            for number in range(3):
                outside.start_soon(append, number)
            await anyio.wait_all_tasks_blocked()
    assert len(failed) == 3
