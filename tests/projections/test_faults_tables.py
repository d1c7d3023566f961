"""Faults that tables, queries and commands must stand, each verified against the log."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import ProjectorError
from stratum_bus.message import Message
from stratum_bus.tasks import task_group
from stratum_projections import SHIPPED, Projection, ask, manage, query_file, run
from stratum_projections.catalog import install
from stratum_projections.lake.export import Writing, exporter
from stratum_projections.lake.hot import VIEW, Hot
from stratum_projections.lake.read import sequence_at
from stratum_projections.lake.segment import Folder
from stratum_projections.store import Store
from tests.projections.faults import (
    Process,
    becomes,
    is_right,
    publish,
    publish_numbers,
    reaches,
)

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]

DAY_NS = 86_400_000_000_000

NUMBERS = Projection(
    name="numbers",
    types=("number",),
    tables={"numbers": "seq bigint, n integer"},
    statements=("insert into numbers select seq, (data->>'$.n')::integer from batch",),
)
OWN = """
from stratum_projections import Projection

NUMBERS = Projection(
    name="numbers", version={version}, types=("number",),
    tables={{"numbers": "seq bigint, n integer"}},
    statements=("insert into numbers select seq, {version} * (data->>'$.n')::int from batch",),
)
"""


@asynccontextmanager
async def projecting(bus: Bus, path: Path, *own: Projection, **config: Any) -> AsyncIterator[None]:
    """A projector in this process, stopped at the end."""
    stop = anyio.Event()
    async with task_group() as tasks:

        async def project() -> None:
            found = ProjectorConfig(**config)
            await run(bus, path, stop=stop, projections=(*SHIPPED, *own), config=found)

        tasks.start_soon(project)
        yield
        stop.set()


async def test_a_projector_whose_file_was_taken_over_writes_nothing_more(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    """The locks prevent it where they work. Here one is taken away, and DuckDB lets the same
    process in twice.
    """
    messages, path = random_log(71, 60), tmp_path / "p.duckdb"
    with pytest.raises(ProjectorError, match="another projector has taken over") as caught:
        async with projecting(bus, path):
            await reaches(bus, await publish(bus, messages[:40]))
            os.remove(f"{path}.lock")
            other = await anyio.to_thread.run_sync(Store.open, path)
            await anyio.to_thread.run_sync(install, other, SHIPPED)
            await publish(bus, messages[40:])
            await anyio.sleep_forever()
    assert caught.value.reason == "fenced"
    other.close()
    [row] = query_file(path, "select max(seq) as n from events").table.to_pylist()
    assert row["n"] <= 40
    await is_right(bus, path, sequence=40)
    async with projecting(bus, path):
        await reaches(bus, 60)
    await is_right(bus, path)


def test_one_event_of_5000_that_breaks_a_statement_costs_a_few_transactions_more(
    log: Any, open_tables: Open
) -> None:
    for n in range(5_000):
        log.add("topic.a.number", "number", {"n": "three" if n == 3_333 else n})
    tables = open_tables(projections=(*SHIPPED, NUMBERS))
    applied = tables.apply(log.messages)
    assert applied.quarantined == 1
    assert tables.one("select count(*) n, count(distinct n) d from numbers") == {
        "n": 4_999, "d": 4_999,
    }  # fmt: skip
    assert tables.one("select count(*) n from events") == {"n": 5_000}
    [parked] = tables.rows("select seq, projection from quarantine")
    assert parked == {"seq": 3_334, "projection": "numbers"}
    halvings = math.ceil(math.log2(5_000))
    assert tables.fold.work["numbers"].batches <= 2 * halvings + 2


def set_back(messages: list[Message]) -> list[Message]:
    """Three days forth after a third of them, and back by half of that after two thirds."""
    third, days = len(messages) // 3, (0.0, 3.0, 1.5)
    return [
        replace(m, time_ns=m.time_ns + int(days[(m.sequence - 1) // third] * DAY_NS))
        for m in messages
    ]


def test_times_that_go_back_change_nothing_but_the_times(log: Any, open_tables: Open) -> None:
    """The clock was set back: sequences decide."""
    for n in range(60):
        log.message(id=f"m{n}", time=None)
        log.completed(f"m{n}")
    back = set_back(log.messages)
    straight, turned = open_tables("straight"), open_tables("turned")
    straight.apply(log.messages)
    for start in range(0, len(back), 7):
        turned.apply(back[start : start + 7])
    sql = "select seq, id, state, sender, receiver from messages order by seq"
    assert turned.rows(sql) == straight.rows(sql)
    assert {row["state"] for row in turned.rows(sql)} == {"handled"}
    stored = turned.rows("select seq, stored from events order by seq")
    assert [row["seq"] for row in stored] == [*range(1, 121)]
    assert [row["stored"] for row in stored] == [m.time.isoformat() for m in back]
    assert turned.one("select count(*) n from quarantine") == {"n": 0}


async def test_a_lake_whose_days_go_back_has_every_event_once(
    bus: Bus, tmp_path: Path, log: Any, tables: Any
) -> None:
    for _ in range(120):
        log.message()
    back, folder = set_back(log.messages), Folder(tmp_path / "lake")
    tables.apply(back)
    created = (await bus.connection.api("STREAM.INFO.LOG"))["created"]
    async with exporter(bus, folder, segment_events=25) as ours:
        writing = Writing(ours, 1, created, lambda _: None)
        for _, run in groupby(back, lambda message: message.time.date()):
            for some in batched(list(run), 10):
                await writing.add(some)
        await writing.finish(120)
    days = [segment.day for segment in folder.listing().segments]
    assert days != sorted(days)
    for at in (back[0], back[39], back[40], back[79], back[100]):
        later = next(m.sequence for m in back if m.time >= at.time)
        assert sequence_at(folder, at.time) == later
    tables.store.close()
    store = Store.open(tables.path, directories=[folder.root])
    assert Hot(store, folder, 0).refresh() == 40
    sql = f"select count(*), count(distinct seq), max(seq) from {VIEW}"
    assert store.execute(sql) == [(120, 120, 120)]
    store.close()


def batched(messages: list[Message], size: int) -> list[list[Message]]:
    return [messages[start : start + size] for start in range(0, len(messages), size)]


async def test_a_query_that_runs_for_ever_keeps_nothing_from_being_folded(
    bus: Bus, tmp_path: Path
) -> None:
    endless = (
        "select count(*) from range(1_000_000_000) a, range(1_000_000) b where a.range % 7 = 3"
    )
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, query_seconds=60, batch_milliseconds=20):
        await reaches(bus, await publish_numbers(bus, 10))
        async with task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(partial(ask, bus, endless, timeout_seconds=60))
            for _ in range(3):
                await reaches(bus, await publish_numbers(bus, 100))
            tasks.cancel_scope.cancel()
        await is_right(bus, path, sequence=310)


async def test_what_is_resumed_and_rebuilt_at_once_is_built_once(bus: Bus, tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    async with projecting(bus, path, NUMBERS, batch_events=200, batch_milliseconds=5):
        await reaches(bus, await publish_numbers(bus, 500))
        await manage.pause(bus, ["numbers"])
        end = await publish_numbers(bus, 4_000)
        await manage.resume(bus, ["numbers"])
        await manage.rebuild(bus, ["numbers", "numbers", "messages"])
        await manage.pause(bus, ["messages"])
        await manage.resume(bus, ["messages"])
        for name in ("numbers", "messages"):
            await becomes(bus, name, lambda s: s.status == "live" and s.sequence == end)
        found = await reaches(bus, end, "select count(*) as n from numbers")
        assert found == 4_500
        await is_right(bus, path, (*SHIPPED, NUMBERS))
        assert await homes(bus) == 1


async def homes(bus: Bus) -> int:
    """How many schemas there are for the tables of the one projection."""
    sql = "select count(*) as n from duckdb_schemas() where schema_name like 'numbers%'"
    answer = await ask(bus, sql)
    count: int = answer.table.to_pylist()[0]["n"]
    return count


@pytest.fixture
def start(bus_url: str, tmp_path: Path) -> Iterator[Callable[[int], Process]]:
    """Starts projectors with a version of `numbers`; they are gone at the end."""
    started: list[Process] = []

    def start_one(version: int) -> Process:
        own = tmp_path / "own.py"
        own.write_text(OWN.format(version=version))
        config = f'{{"projections": ["{own}"], "batch_events": 100, "batch_milliseconds": 5}}'
        started.append(Process(bus_url, tmp_path / "p.duckdb", "--config", config))
        return started[-1]

    yield start_one
    for process in started:
        process.destroy()


async def test_what_is_paused_or_built_stays_so_over_kill_9(
    bus: Bus, start: Callable[[int], Process], tmp_path: Path
) -> None:
    process = start(1)
    await reaches(bus, await publish_numbers(bus, 300))
    await manage.pause(bus, ["numbers"])
    assert await process.end(signal.SIGKILL) != 0
    end = await publish_numbers(bus, 3_000)
    process = start(1)
    await becomes(bus, "numbers", lambda s: s.status == "paused" and s.sequence == 300)
    await becomes(bus, "events", lambda s: s.sequence == end)
    await manage.rebuild(bus, ["messages", "events"])
    await manage.resume(bus, ["numbers"])
    assert await process.end(signal.SIGKILL) != 0
    process = start(2)
    await becomes(bus, "numbers", lambda s: s.building is not None or s.version == 2)
    assert await process.end(signal.SIGKILL) != 0
    start(2)
    for name in ("numbers", "messages", "events"):
        await becomes(bus, name, lambda s: s.status == "live" and s.sequence == end)
    second = replace_version(2)
    found = await reaches(bus, end, "select sum(n)::bigint as n from numbers")
    assert found == 2 * (sum(range(300)) + sum(range(3_000)))
    await is_right(bus, tmp_path / "p.duckdb", (*SHIPPED, second))
    assert await homes(bus) == 1


def replace_version(version: int) -> Projection:
    """`numbers` as the processes have it."""
    statement = f"insert into numbers select seq, {version} * (data->>'$.n')::int from batch"
    return Projection(
        name="numbers", version=version, types=("number",),
        tables={"numbers": "seq bigint, n integer"}, statements=(statement,),
    )  # fmt: skip
