"""Whatever is not as the log says is found, and named; and nothing else is."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from stratum_bus import testing
from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError, QueryError
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_bus.tasks import task_group
from stratum_projections import SHIPPED, ask, manage, run, snapshot
from stratum_projections.asof import as_of
from stratum_projections.batch import decode, of_messages
from stratum_projections.lake.export import exporter
from stratum_projections.lake.hot import Hot
from stratum_projections.lake.segment import Folder
from stratum_projections.store import Store
from stratum_projections.verify import Verdict, verify
from stratum_projections.whole import whole

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]


async def publish(bus: Bus, messages: Sequence[Message]) -> list[Message]:
    """Store the messages of a hand-made log; returns them as they stand in the stream."""
    for message in messages:
        headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        await bus.connection.request(message.subject, message.payload, headers)
    async with bus.read() as reader:
        return [message async for message in reader]


class File:
    """A projector's file that nobody has open."""

    def __init__(self, bus: Bus, path: Path, tables: Any) -> None:
        self.bus = bus
        self.path = path
        self.tables = tables

    async def fold(self, messages: Sequence[Message]) -> None:
        created = (await self.bus.connection.api("STREAM.INFO.LOG"))["created"]
        self.tables.checkpoint.bind(created)
        if messages:
            self.tables.apply(messages)
        self.tables.store.close()

    def change(self, *statements: str) -> None:
        store = Store.open(self.path)
        try:
            for statement in statements:
                store.execute(statement)
        finally:
            store.close()

    async def verdict(self, **options: Any) -> Verdict:
        verdict = await verify(self.bus, path=self.path, **options)
        assert os.listdir(self.path.parent / "verify") == [".lock"]
        return verdict


@pytest.fixture
async def file(bus: Bus, tmp_path: Path, open_tables: Open, random_log: RandomLog) -> File:
    """With a log of 150 messages folded in."""
    made = File(bus, tmp_path / "p.duckdb", open_tables("p"))
    await made.fold(await publish(bus, random_log(51, 150)))
    return made


async def test_tables_as_the_log_says_are_fine(file: File) -> None:
    told: list[tuple[str, int, int]] = []
    verdict = await file.verdict(progress=lambda *each: told.append(each))
    assert verdict.ok and not verdict.left_out
    assert (verdict.sequence, verdict.messages) == (150, 150)
    names = {(each.projection, each.table) for each in verdict.tables}
    assert names >= {(p.name, table) for p in SHIPPED for table in p.tables}
    assert all(each.sequence == 150 for each in verdict.tables)
    assert max(each.rows for each in verdict.tables if each.table == "events") > 100
    assert told[0] == ("building", 150, 150)
    assert told[-1] == ("comparing", len(names), len(names))


async def test_a_row_that_is_not_as_the_log_says_is_named(file: File) -> None:
    store = Store.open(file.path)
    [(seq,)] = store.execute("select seq from messages order by seq limit 1 offset 3")
    [(first,)] = store.execute("select min(first_seq) from memory")
    [(bad,)] = store.execute("select min(seq) from quarantine where projection = 'memory'")
    store.close()
    file.change(
        f"update messages_1.messages set state = 'lost' where seq = {seq}",
        "update agents_1.agents set sent = sent + 1 where name = 'bob'",
        f"update memory_1.memory set text = null where first_seq = {first}",
        f"delete from quarantine where seq = {bad} and projection = 'memory'",
        "insert into dead_letters_1.dead_letters by name select 7 as seq, 'x' as letter",
        "insert into messages_1.message_letters from message_letters limit 1",
    )
    verdict = await file.verdict()
    assert not verdict.ok and not verdict.gaps
    found = {each.table: each for each in verdict.differences}
    counts = {name: (each.live_only, each.fresh_only) for name, each in found.items()}
    changed = dict.fromkeys(("messages", "agents", "memory"), (1, 1))
    added = dict.fromkeys(("dead_letters", "message_letters"), (1, 0))
    assert counts == {**changed, **added, "quarantine": (0, 1)}
    assert found["messages"].row == {"seq": str(seq)}
    assert (found["messages"].column, found["messages"].live) == ("state", "lost")
    assert found["agents"].row["name"] == "bob"
    assert int(found["agents"].live or 0) == int(found["agents"].fresh or 0) + 1
    assert found["memory"].row["first_seq"] == str(first)
    assert (found["memory"].column, found["memory"].live) == ("text", None)
    assert "it has text NULL, and a fresh fold " in str(found["memory"])
    assert (found["quarantine"].projection, found["quarantine"].row["seq"]) == ("memory", str(bad))
    assert found["quarantine"].live is None and "it is missing" in str(found["quarantine"])
    assert found["dead_letters"].row == {"seq": "7", "letter": "x"}
    for name in added:
        assert found[name].fresh is None and "it should not be there" in str(found[name])


async def test_a_row_that_is_gone_is_named(file: File) -> None:
    store = Store.open(file.path)
    [(seq,)] = store.execute("select min(seq) from messages")
    store.close()
    file.change(f"delete from messages_1.messages where seq = {seq}")
    [difference] = (await file.verdict(names=["messages"])).differences
    assert str(difference).startswith(
        f"projection messages, table messages, seq {seq}: it is missing"
    )
    assert (difference.live_only, difference.fresh_only) == (0, 1)


async def test_the_first_of_many_differences_is_named_and_all_are_counted(file: File) -> None:
    file.change(
        "update events_1.events set data = '{\"n\":' || seq || '}' where seq >= 90",
        "delete from events_1.events where seq = 95",
    )
    verdict = await file.verdict(names=["events"])
    assert {each.projection for each in verdict.tables} == {"events", "quarantine"}
    [difference] = verdict.differences
    assert difference.row["seq"] == "90"
    assert difference.column == "data"
    assert difference.live == '{"n":90}'
    assert difference.fresh_only == difference.live_only + 1 > 30


async def test_a_lost_event_is_named_also_where_every_fold_would_lose_it(file: File) -> None:
    store = Store.open(file.path)
    [(lost,)] = store.execute("select seq from events order by seq limit 1 offset 10")
    store.close()
    file.change(f"delete from events_1.events where seq = {lost}")
    verdict = await file.verdict()
    expected = "of 150 messages up to LOG 150, events and quarantine account for 149: "
    assert verdict.gaps == [f"{expected}LOG {lost} is the first that is not"]
    assert [each.row["seq"] for each in verdict.differences] == [str(lost)]
    file.change(f"insert into events_1.events from events where seq = {lost - 1}")
    verdict = await file.verdict(names=["memory"])
    assert len(verdict.gaps) == 2 and not verdict.differences
    assert verdict.gaps[0] == f"1 messages are there twice, LOG {lost - 1} first"


async def test_a_checkpoint_that_was_changed_is_found(file: File) -> None:
    file.change("update checkpoint set sequence = 100 where projection = 'messages'")
    verdict = await file.verdict(names=["messages"])
    assert verdict.gaps == ["messages stands at 100, and those that it moves on with at 150"]
    assert {(each.projection, each.sequence) for each in verdict.differences} == {("messages", 100)}
    file.change(
        "update checkpoint set sequence = 140",
        "update checkpoint set sequence = 151 where projection = 'messages'",
    )
    verdict = await file.verdict(names=["messages", "events", "agents"])
    assert {each.projection for each in verdict.differences} >= {"events", "agents"}
    assert "messages stands at 151, and LOG ends at 150" in verdict.gaps
    assert [each.projection for each in verdict.left_out] == ["messages"]
    file.change("update checkpoint set created = 'another'")
    verdict = await file.verdict()
    assert "the tables are of a LOG created at another" in verdict.gaps[0]
    assert not verdict.tables


async def test_what_cannot_be_compared_is_said(file: File) -> None:
    file.change(
        "update projections set version = 9 where name = 'agents'",
        "delete from projections where name = 'memory'",
        "drop view dead_letters",
    )
    known = [projection for projection in SHIPPED if projection.name != "incidents"]
    verdict = await file.verdict(projections=known)
    why = {each.projection: each.why for each in verdict.left_out}
    assert why["agents"].startswith("the file has version 9, and 2 is not built yet")
    assert why["memory"].startswith("the file does not have it")
    assert why["incidents"].startswith("the file has it, and it is not among")
    assert verdict.gaps == ["projection dead_letters, table dead_letters: it is not there"]
    with pytest.raises(QueryError, match="there is no projection 'nothing': there are agents, "):
        await file.verdict(names=["nothing"])
    with pytest.raises(QueryError, match="there is no projection at"):
        await verify(file.bus, path=file.path.with_name("none.duckdb"))


async def test_rows_that_only_the_lake_has_are_compared_too(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    await publish(bus, random_log(52, 40))
    await Memory(bus, "alice").note("x" * 100_000)
    log = await publish(bus, random_log(53, 59))
    file = File(bus, tmp_path / "p.duckdb", open_tables("p"))
    file.tables.fold.fold(await whole(bus, decode(of_messages(log)), SHIPPED))
    await file.fold([])
    lake = Folder(tmp_path / "lake")
    async with exporter(bus, lake, segment_events=30) as ours:
        await ours.export()
    store = Store.open(file.path, directories=[lake.lake])
    hot = Hot(store, lake, None)
    hot.refresh()
    for segment in lake.listing().segments[:2]:
        hot._remove(segment)
        store.execute("insert or replace into lake values ('LOG', ?, 'events_1')", [segment.last])
    store.close()
    with pytest.raises(LakeError, match="old rows of events are in a lake only"):
        await file.verdict()
    verdict = await file.verdict(lake=str(lake.lake))
    assert verdict.ok and verdict.messages == 100
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.UPDATE.LOG", {**config, "max_msgs": 20})
    verdict = await file.verdict(lake=str(lake.lake))
    assert verdict.ok and verdict.messages == 100
    first = lake.listing().segments[0]
    first.path.unlink()
    with pytest.raises(LakeError, match="does not hold LOG 1 to 30"):
        await file.verdict(lake=str(lake.lake))


async def test_a_cancelled_verification_leaves_nothing(file: File) -> None:
    with anyio.CancelScope() as scope:
        await verify(file.bus, path=file.path, progress=lambda *_: scope.cancel())
    assert scope.cancelled_caught
    assert os.listdir(file.path.parent / "verify") == [".lock"]


@asynccontextmanager
async def projecting(bus: Bus, path: Path) -> AsyncIterator[None]:
    """A projector in this process, stopped at the end."""
    stop = anyio.Event()
    async with task_group() as tasks:

        async def project() -> None:
            await run(bus, path, stop=stop)

        tasks.start_soon(project)
        await testing.eventually(partial(answers, bus), within_seconds=30)
        yield
        stop.set()


async def answers(bus: Bus) -> bool:
    try:
        await ask(bus, "select 1")
    except QueryError:
        return False
    return True


async def test_paused_and_rebuilt_projections_are_as_the_log_says(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    path = tmp_path / "p.duckdb"

    async def live(name: str) -> bool:
        [state] = [each for each in await manage.states(bus) if each.name == name]
        return state.status == "live" and not state.building

    async with projecting(bus, path):
        await publish(bus, random_log(55, 60))
        await ask(bus, "select 1", wait_for=60, timeout_seconds=30)
        await manage.pause(bus, ["messages"])
        log = await publish(bus, random_log(56, 60))
        await ask(bus, "select 1", wait_for=120, timeout_seconds=30)
        verdict = await verify(bus, path=path)
        assert verdict.ok and not verdict.left_out
        at = {each.table: each.sequence for each in verdict.tables}
        assert (at["messages"], at["events"]) == (60, 120)
        await snapshot.ask(bus)
        answer = await as_of(bus, "select * from messages", 120, folder=tmp_path)
        expected = open_tables("expected")
        expected.apply(log)
        found = {repr(row) for row in answer.table.to_pylist()}
        assert found == {
            repr(row) for row in expected.store.arrow("select * from messages").to_pylist()
        }
        await manage.rebuild(bus, ["memory", "events"])
        await testing.eventually(partial(live, "events"), within_seconds=30)
        await testing.eventually(partial(live, "memory"), within_seconds=30)
        await manage.resume(bus, ["messages"])
        await testing.eventually(partial(live, "messages"), within_seconds=30)
        verdict = await verify(bus, path=path)
        assert verdict.ok and not verdict.left_out
        assert {each.sequence for each in verdict.tables} == {120}


@pytest.fixture
def start(bus_url: str, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts projector processes on one file; they are gone at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_one() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stratum_projections", "--url", bus_url]
        small = '{"batch_milliseconds": 5, "batch_events": 7}'
        options = ["--path", str(tmp_path / "p.duckdb"), "--config", small]
        started.append(subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.wait()


async def test_a_running_projector_is_verified_also_after_it_was_killed(
    bus: Bus,
    start: Callable[[], subprocess.Popen[bytes]],
    tmp_path: Path,
    random_log: RandomLog,
) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish, bus, random_log(54, 120))
        process = start()
        await testing.eventually(partial(answers, bus), within_seconds=30)
        await anyio.sleep(random.Random(4).uniform(0.0, 0.2))
        process.send_signal(signal.SIGKILL)
        await anyio.to_thread.run_sync(process.wait)
        start()
        await testing.eventually(partial(answers, bus), within_seconds=30)
        verdict = await verify(bus, path=tmp_path / "p.duckdb")
        assert verdict.ok and not verdict.left_out
    await ask(bus, "select 1", wait_for=120, timeout_seconds=30)
    verdict = await verify(bus, path=tmp_path / "p.duckdb")
    assert verdict.ok and (verdict.sequence, verdict.messages) == (120, 120)
    assert not list((tmp_path / "snapshots").iterdir())
