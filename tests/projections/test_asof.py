"""A query as of a moment is answered as by a projector that was stopped there."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest

from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError, QueryError
from stratum_bus.message import Message
from stratum_bus.tasks import task_group
from stratum_projections import SHIPPED, kept
from stratum_projections.asof import as_of, reads
from stratum_projections.lake.export import exporter
from stratum_projections.lake.hot import Hot
from stratum_projections.lake.segment import Folder
from stratum_projections.moment import parse
from stratum_projections.snapshot import take

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]
TABLES = [table for projection in SHIPPED for table in projection.tables]


async def publish(bus: Bus, messages: Sequence[Message]) -> list[Message]:
    """Store the messages of a hand-made log; returns them as they stand in the stream."""
    for message in messages:
        headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        await bus.connection.request(message.subject, message.payload, headers)
    async with bus.read() as reader:
        return [message async for message in reader]


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows in one order, times as ISO text."""
    return sorted(
        (
            {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()}
            for row in table.to_pylist()
        ),
        key=repr,
    )


async def count(bus: Bus, at: int | datetime, folder: Path, **options: Any) -> int:
    answer = await as_of(bus, "select count(*) as n from events", at, folder=folder, **options)
    return int(answer.table["n"][0].as_py())


async def test_every_table_is_that_of_a_projector_stopped_there(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    chance = random.Random(3)
    log = await publish(bus, random_log(31, 150))
    for at, tables in (
        (1, chance.sample(TABLES, 1)),
        (chance.randrange(50, 100), ["quarantine", *TABLES]),
        (150, chance.sample(TABLES, 3)),
    ):
        stopped = open_tables(f"stopped{at}")
        stopped.apply(log[:at])
        for table in tables:
            answer = await as_of(bus, f"select * from {table}", at, folder=tmp_path)
            assert answer.sequence == at
            assert rows(answer.table) == rows(stopped.store.arrow(f"select * from {table}")), table
        whole = await as_of(bus, "select * from all_events", at, folder=tmp_path)
        assert rows(whole.table) == rows(stopped.store.arrow("select * from events"))


async def test_a_snapshot_saves_reading_what_it_holds(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    log = await publish(bus, random_log(32, 100))
    live = open_tables("p")
    live.checkpoint.bind((await bus.connection.api("STREAM.INFO.LOG"))["created"])
    live.apply(log[:60])
    live.store.execute("insert into events_1.events(seq, id) values (-1, 'only in the snapshot')")
    take(live.store)
    sql = "select count(*) filter (where seq < 0) as n from events"
    after = await as_of(bus, sql, 80, folder=tmp_path)
    before = await as_of(bus, sql, 59, folder=tmp_path)
    assert (rows(after.table), rows(before.table)) == ([{"n": 1}], [{"n": 0}])


async def test_a_snapshot_without_the_old_rows_is_not_used_for_events(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    log = await publish(bus, random_log(33, 60))
    folder = Folder(tmp_path / "lake")
    async with exporter(bus, folder, segment_events=20) as ours:
        await ours.export()
    live = open_tables("p")
    live.checkpoint.bind((await bus.connection.api("STREAM.INFO.LOG"))["created"])
    live.apply(log)
    Hot(live.store, folder, None).refresh()
    live.store.execute("insert into lake values ('LOG', 20, 'events_1')")
    live.store.execute("delete from events_1.events where seq <= 20")
    live.store.execute("update messages_1.messages set sender = 'of the snapshot'")
    take(live.store)
    expected = open_tables("expected")
    expected.apply(log)
    sql = "select * from all_events"
    answer = await as_of(bus, sql, 60, folder=tmp_path, lake=str(folder.lake))
    assert rows(answer.table) == rows(expected.store.arrow("select * from events"))
    other = await as_of(bus, "select distinct sender from messages", 60, folder=tmp_path)
    assert rows(other.table) == [{"sender": "of the snapshot"}]


async def test_a_moment_that_the_stream_no_longer_holds_comes_from_the_lake(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    log = await publish(bus, random_log(34, 60))
    lake = tmp_path / "lake"
    async with exporter(bus, Folder(lake), segment_events=20) as ours:
        await ours.export(end=50)
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.UPDATE.LOG", {**config, "max_msgs": 15})
    with pytest.raises(LakeError, match="LOG begins at 46"):
        await as_of(bus, "from messages", 30, folder=tmp_path)
    with pytest.raises(QueryError, match="LOG begins at 46 by now, and that is later than"):
        await as_of(bus, "from messages", log[9].time, folder=tmp_path)
    expected = open_tables("expected")
    expected.apply(log[:30])
    for at in (30, log[29].time):
        answer = await as_of(bus, "from messages", at, folder=tmp_path, lake=str(lake))
        assert answer.sequence == 30
        assert rows(answer.table) == rows(expected.store.arrow("from messages"))


async def test_a_time_is_all_that_was_stored_by_then(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    log = await publish(bus, random_log(35, 20))
    sql = "select max(seq) as n from events"
    for message in (log[0], log[7], log[19]):
        answer = await as_of(bus, sql, message.time, folder=tmp_path)
        assert answer.sequence == max(m.sequence for m in log if m.time <= message.time)
    answer = await as_of(bus, sql, datetime.now(UTC), folder=tmp_path)
    assert answer.sequence == 20
    zone = log[7].time.isoformat()
    assert parse(zone) == log[7].time


async def test_a_moment_that_is_none_is_refused_in_one_sentence(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    with pytest.raises(QueryError, match="LOG is empty"):
        await count(bus, 1, tmp_path)
    log = await publish(bus, random_log(36, 5))
    for at, text in (
        (0, "LOG has no sequence 0: it goes from 1 to 5"),
        (-3, "LOG has no sequence -3"),
        (6, "LOG has no sequence 6: it goes from 1 to 5"),
        (log[0].time - timedelta(days=1), "nothing was stored by .*Z: the first event .* later"),
        (datetime.now(UTC) + timedelta(hours=1), "is still to come: the server has"),
        (datetime(2026, 1, 1), "has no time zone"),
    ):
        with pytest.raises(QueryError, match=text) as caught:
            await count(bus, at, tmp_path)
        assert caught.value.reason == "moment"
    with pytest.raises(QueryError, match="'yesterday' is no moment"):
        parse("yesterday")
    assert parse(" 17 ") == 17
    assert (
        parse("2026-11-01T12:00Z") == parse("2026-11-01T12:00") == parse("2026-11-01T13:00+01:00")
    )


async def test_a_wrong_query_is_refused_before_anything_is_built(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    await publish(bus, random_log(37, 5))
    for sql, reason in (
        ("select nothing from events", "syntax"),
        ("select * from no_table", "syntax"),
        ("drop table events", "not_read_only"),
        ("select 1; select 2", "not_read_only"),
        (
            "with a as (insert into events_1.events(seq) values (1) returning seq) from a",
            "not_read_only",
        ),
    ):
        with pytest.raises(QueryError) as caught:
            await as_of(bus, sql, 5, folder=tmp_path)
        assert caught.value.reason == reason
    assert os.listdir(tmp_path / "asof") == [".lock"]


async def test_the_second_question_about_a_moment_reads_nothing(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    await publish(bus, random_log(38, 40))
    told: list[tuple[int, int]] = []

    def tell(*at: int) -> None:
        told.append((at[0], at[1]))

    assert await count(bus, 30, tmp_path, progress=tell) > 0
    assert told == [(30, 30)]
    await count(bus, 30, tmp_path, progress=tell)
    assert told == [(30, 30)]
    both = "select count(*) from events, messages"
    await as_of(bus, both, 30, folder=tmp_path, progress=tell)
    await as_of(bus, "from messages", 30, folder=tmp_path, progress=tell)
    assert told == [(30, 30), (30, 30)]
    for projection in SHIPPED:
        assert projection in reads("from information_schema.tables", SHIPPED)


async def test_only_the_newest_files_stay(
    bus: Bus, tmp_path: Path, random_log: RandomLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(bus, random_log(39, 10))

    def moments() -> list[int]:
        return sorted(int(path.name.split(".")[1]) for path in (tmp_path / "asof").glob("*.duckdb"))

    monkeypatch.setattr(kept, "KEPT", 2)
    for at in (1, 2, 1, 3):
        await count(bus, at, tmp_path)
    assert moments() == [1, 3]
    monkeypatch.setattr(kept, "KEPT_BYTES", 1)
    await count(bus, 4, tmp_path)
    assert moments() == [4]
    assert len(os.listdir(tmp_path / "asof")) == 2  # and the lock


async def test_many_questions_at_once(
    bus: Bus, tmp_path: Path, random_log: RandomLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "KEPT", 1)
    log = await publish(bus, random_log(40, 12))
    readable = {m.sequence for m in log if not _unreadable(m)}
    found: dict[int, set[Any]] = {}

    async def ask(at: int) -> None:
        answer = await as_of(bus, "select seq from events", at, folder=tmp_path)
        found.setdefault(at, set()).update(answer.table["seq"].to_pylist())

    async with task_group() as tasks:
        for at in (3, 6, 12, 3, 6, 12):
            tasks.start_soon(ask, at)
    assert found == {at: {n for n in readable if n <= at} for at in (3, 6, 12)}


def _unreadable(message: Message) -> bool:
    try:
        message.event()
    except Exception:  # noqa: BLE001 - whatever it is, it is no event
        return True
    return False


async def test_a_cancelled_question_leaves_nothing(
    bus: Bus, tmp_path: Path, random_log: RandomLog
) -> None:
    await publish(bus, random_log(41, 12))
    with anyio.CancelScope() as scope:
        await count(bus, 12, tmp_path, progress=lambda *_: scope.cancel())
    assert scope.cancelled_caught
    assert os.listdir(tmp_path / "asof") == [".lock"]
