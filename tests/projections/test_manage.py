"""Projections that are built beside the others, paused, resumed and rebuilt, while all else goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus import testing
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import QueryError
from stratum_bus.event import new
from stratum_bus.publish import Append
from stratum_bus.tasks import task_group
from stratum_projections import SHIPPED, Projection, ask, manage, run
from stratum_projections.manage import State

NUMBERS = Projection(
    name="numbers",
    types=("number",),
    tables={"numbers": "seq bigint, n integer"},
    statements=("insert into numbers select seq, (data->>'$.n')::integer from batch",),
)
DOUBLED = Projection(
    name="numbers",
    version=2,
    types=("number",),
    tables={"numbers": "seq bigint, n integer, twice integer"},
    statements=("insert into numbers select seq, (data->>'$.n')::integer as n, 2 * n from batch",),
)
SMALL = ProjectorConfig(batch_events=50, batch_milliseconds=20)


@asynccontextmanager
async def projecting(
    bus: Bus, path: Path, *own: Projection, config: ProjectorConfig = SMALL
) -> AsyncIterator[None]:
    """A projector that answers, stopped at the end."""
    stop = anyio.Event()
    async with task_group() as tasks:

        async def project() -> None:
            await run(bus, path, stop=stop, projections=(*SHIPPED, *own), config=config)

        tasks.start_soon(project)
        await testing.eventually(lambda: answers(bus), within_seconds=20)
        yield
        stop.set()


async def answers(bus: Bus) -> bool:
    try:
        await manage.states(bus)
    except QueryError:
        return False
    return True


async def state(bus: Bus, name: str = "numbers") -> State:
    [found] = [each for each in await manage.states(bus) if each.name == name]
    return found


async def becomes(bus: Bus, status: str, name: str = "numbers", version: int = 1) -> State:
    async def is_so() -> State | None:
        found = await state(bus, name)
        return found if (found.status, found.version) == (status, version) else None

    found = await testing.eventually(is_so, within_seconds=30)
    assert found is not None
    return found


async def publish(bus: Bus, count: int, start: int = 0) -> int:
    events = [new("number", {"n": n}, source="/a") for n in range(start, start + count)]
    await bus.publish_many(Append("topic.a.number", event) for event in events)
    info = await bus.connection.api("STREAM.INFO.LOG")
    return int(info["state"]["last_seq"])


async def rows(bus: Bus, sql: str, wait_for: int | None = None) -> list[dict[str, Any]]:
    answer = await ask(bus, sql, wait_for=wait_for, timeout_seconds=20)
    found: list[dict[str, Any]] = answer.table.to_pylist()
    return found


COUNT = "select count(*) as n, count(distinct n) as d, coalesce(max(n), -1) as last from numbers"


async def test_a_projection_added_later_catches_up_beside_the_others(
    bus: Bus, tmp_path: Path
) -> None:
    async with projecting(bus, tmp_path / "p.duckdb"):
        await rows(bus, "select 1", await publish(bus, 300))
    async with projecting(bus, tmp_path / "p.duckdb", NUMBERS):
        last = await publish(bus, 100, 300)
        assert await rows(bus, "select max(seq) as n from events", last) == [{"n": last}]
        found = await becomes(bus, "live")
        assert (found.sequence, found.lag_events, found.tables) == (last, 0, ["numbers"])
        assert await rows(bus, COUNT, last) == [{"n": 400, "d": 400, "last": 399}]


async def test_a_changed_version_is_built_while_the_old_one_is_asked(
    bus: Bus, tmp_path: Path
) -> None:
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, NUMBERS):
        await rows(bus, "select 1", await publish(bus, 400))
    async with projecting(bus, path, DOUBLED):
        while (await state(bus)).version == 1:
            [row] = await rows(bus, COUNT)
            assert row["n"] >= 400  # never an empty or half-built table
        await becomes(bus, "live", version=2)
        last = await publish(bus, 10, 400)
        found = await rows(bus, "select max(twice) as t, count(*) as n from numbers", last)
        assert found == [{"t": 818, "n": 410}]
        assert len(await rows(bus, "from duckdb_schemas() where schema_name like 'numbers%'")) == 1


async def test_a_rebuild_by_command_gives_the_same_tables(bus: Bus, tmp_path: Path) -> None:
    async with projecting(bus, tmp_path / "p.duckdb", NUMBERS):
        last = await publish(bus, 500)
        before = await rows(bus, "from numbers order by seq", last)
        homes = "select schema_name as s from duckdb_schemas() where schema_name like 'numbers%'"
        [old] = await rows(bus, homes)
        async with task_group() as tasks:
            tasks.start_soon(publish, bus, 300, 500)
            await manage.rebuild(bus, ["numbers", "messages"])

            async def other() -> bool:
                return (
                    await rows(bus, homes) not in ([old], []) and len(await rows(bus, homes)) == 1
                )

            await testing.eventually(other, within_seconds=30)
        await becomes(bus, "live")
        last = int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])
        assert (await rows(bus, "from numbers order by seq", last))[:500] == before
        assert await rows(bus, COUNT) == [{"n": 800, "d": 800, "last": 799}]


async def test_what_is_paused_stands_still_also_over_a_restart(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, NUMBERS):
        await rows(bus, "select 1", await publish(bus, 100))
        await manage.pause(bus, ["numbers"])
        last = await publish(bus, 50, 100)
        assert await rows(bus, "select count(*) as n from events", last) == [{"n": 150}]
        answer = await ask(bus, COUNT)
        assert answer.table.to_pylist() == [{"n": 100, "d": 100, "last": 99}]
        assert answer.sequence == 100
        with pytest.raises(
            QueryError, match="reflects sequence 100, not 150: its projection is paused"
        ):
            await rows(bus, COUNT, last)
        assert (await ask(bus, "select count(*) from events")).sequence == last
    async with projecting(bus, path, NUMBERS):
        last = await publish(bus, 50, 150)
        found = await state(bus)
        assert (found.status, found.sequence) == ("paused", 100)
        assert await rows(bus, "select count(*) as n from events", last) == [{"n": 200}]
        await manage.resume(bus, ["numbers"])
        await becomes(bus, "live")
        assert await rows(bus, COUNT, last) == [{"n": 200, "d": 200, "last": 199}]


async def test_one_that_changed_while_it_was_paused_is_built_when_it_is_resumed(
    bus: Bus, tmp_path: Path
) -> None:
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, NUMBERS):
        await rows(bus, "select 1", await publish(bus, 100))
        await manage.pause(bus, ["numbers"])
    async with projecting(bus, path, DOUBLED):
        last = await publish(bus, 50, 100)
        await rows(bus, "select count(*) as n from events", last)
        assert (await state(bus)).status == "paused"
        assert await rows(bus, COUNT) == [{"n": 100, "d": 100, "last": 99}]
        await manage.resume(bus, ["numbers"])
        await becomes(bus, "live", version=2)
        found = await rows(bus, "select max(twice) as t, count(*) as n from numbers", last)
        assert found == [{"t": 298, "n": 150}]


async def test_a_projector_stopped_while_it_builds_goes_on_with_that(
    bus: Bus, tmp_path: Path
) -> None:
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, NUMBERS):
        last = await publish(bus, 3_000)
        await rows(bus, "select 1", last)
        await manage.rebuild(bus, ["numbers"])
    async with projecting(bus, path, NUMBERS):
        await becomes(bus, "live")
        assert await rows(bus, COUNT, last) == [{"n": 3_000, "d": 3_000, "last": 2_999}]
        assert len(await rows(bus, "from duckdb_schemas() where schema_name like 'numbers%'")) == 1


async def test_an_unknown_projection_is_named(bus: Bus, tmp_path: Path) -> None:
    async with projecting(bus, tmp_path / "p.duckdb"):
        with pytest.raises(
            QueryError, match="no projection 'nope' here; there are agents"
        ) as caught:
            await manage.pause(bus, ["nope"])
        assert caught.value.reason == "unknown"
        assert {each.status for each in await manage.states(bus)} == {"live"}


async def test_without_a_projector_it_is_said(bus: Bus) -> None:
    with pytest.raises(QueryError, match="no projector 'main' answers") as caught:
        await manage.states(bus)
    assert caught.value.reason == "no_projector"


async def test_the_state_counts_work_lag_and_quarantine(bus: Bus, tmp_path: Path) -> None:
    async with projecting(bus, tmp_path / "p.duckdb", NUMBERS):
        await publish(bus, 20)
        ack = await bus.publish("topic.a.number", new("number", {"n": "x"}, source="/a"))
        await rows(bus, "select 1", ack.sequence)
        found = await state(bus)
        assert (found.quarantined, found.lag_events, found.lag_seconds) == (1, 0, 0.0)
        assert found.events >= 20
        assert found.batches >= 1
        assert found.seconds > 0
