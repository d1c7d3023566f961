"""The projector with a real server: live, killed, and faced with another stream."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus import connect, testing
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import NotFound, ProjectorError, QueryError
from stratum_bus.event import new
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_bus.tasks import task_group
from stratum_projections import Answer, Projection, ask, query_file, run
from stratum_projections.views.events import EVENTS

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]


@asynccontextmanager
async def projecting(bus: Bus, path: Path, **options: Any) -> AsyncIterator[None]:
    """A projector in this process, stopped at the end."""
    stop = anyio.Event()
    async with task_group() as tasks:

        async def project() -> None:
            await run(bus, path, stop=stop, **options)

        tasks.start_soon(project)
        yield
        stop.set()


async def answer(bus: Bus, sql: str, wait_for: int | None = None) -> Answer:
    """Ask as soon as a projector runs."""

    async def once() -> Answer | None:
        try:
            return await ask(bus, sql, wait_for=wait_for, timeout_seconds=20)
        except QueryError as error:
            if error.reason != "no_projector":
                raise
            return None

    found = await testing.eventually(once, within_seconds=20)
    assert found is not None
    return found


async def one(bus: Bus, sql: str, wait_for: int | None = None) -> Any:
    return (await answer(bus, sql, wait_for)).table.to_pylist()[0].popitem()[1]


async def publish(bus: Bus, messages: Sequence[Message]) -> int:
    """Store the messages of a hand-made log as they are; returns the last sequence."""
    for message in messages:
        headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        await bus.connection.request(message.subject, message.payload, headers)
    info = await bus.connection.api("STREAM.INFO.LOG")
    return int(info["state"]["last_seq"])


async def stored(bus: Bus) -> list[Message]:
    async with bus.read() as reader:
        return [message async for message in reader]


class Process:
    """`python -m stratum_projections`; `lines` is what it said when it has ended."""

    def __init__(self, url: str, path: Path, *options: str) -> None:
        command = [sys.executable, "-m", "stratum_projections", "--url", url, "--path", str(path)]
        self._process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)

    def wait(self) -> int:
        self.lines = self._process.communicate(timeout=20)[1].splitlines()
        return self._process.returncode

    def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        return self.wait()


@pytest.fixture
def start(bus_url: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts projector processes on one file; they are gone at the end."""
    started: list[Process] = []

    def start_one(*options: str) -> Process:
        started.append(Process(bus_url, tmp_path / "projection.duckdb", *options))
        return started[-1]

    yield start_one
    for process in started:
        process.end(signal.SIGKILL)


async def test_what_is_published_can_be_asked_for(bus: Bus, tmp_path: Path) -> None:
    async with projecting(bus, tmp_path / "p.duckdb"):
        for n in range(3):
            ack = await bus.publish("inbox.bob.alice.task", new("task", {"n": n}, source="/a"))
            sql = "select sum((data->>'$.n')::integer) from events"
            assert await one(bus, sql, ack.sequence) == sum(range(n + 1))
    with pytest.raises(QueryError, match="no projector"):
        await ask(bus, "select 1")
    assert query_file(tmp_path / "p.duckdb", "select count(*) as n from messages").sequence == 3


async def test_from_scratch_gives_the_same_tables_as_live(
    bus: Bus, tmp_path: Path, random_log: RandomLog, open_tables: Open
) -> None:
    messages = random_log(5, 200)
    live = ProjectorConfig(batch_milliseconds=20)
    async with projecting(bus, tmp_path / "live.duckdb", config=live):
        for start in range(0, 200, 20):
            await publish(bus, messages[start : start + 20])
        await one(bus, "select 1", 200)
    async with projecting(bus, tmp_path / "scratch.duckdb"):
        await one(bus, "select 1", 200)
    by_hand = open_tables("by_hand")
    by_hand.apply(await stored(bus))
    expected = by_hand.dump()
    assert open_tables("live").dump() == expected
    assert open_tables("scratch").dump() == expected
    assert len(expected["events"]) > 100


async def test_it_goes_on_where_it_stood(bus: Bus, tmp_path: Path, random_log: RandomLog) -> None:
    messages = random_log(6, 60)
    for start in range(0, 60, 20):
        last = await publish(bus, messages[start : start + 20])
        async with projecting(bus, tmp_path / "p.duckdb"):
            await one(bus, "select 1", last)
    sql = """
        select count(distinct seq) as n, count(*) as m from (
            select seq from events union all select seq from quarantine where projection is null)
    """
    answer = query_file(tmp_path / "p.duckdb", sql)
    assert answer.table.to_pylist() == [{"n": 60, "m": 60}]


async def test_a_killed_projector_leaves_the_tables_of_an_undisturbed_one(
    bus: Bus, start: Callable[..., Process], random_log: RandomLog, open_tables: Open
) -> None:
    chance = random.Random(1)
    messages = random_log(8, 400)
    small = '{"batch_milliseconds": 5, "batch_events": 7}'
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publish, bus, messages)
        for _ in range(4):
            process = start("--config", small)
            await one(bus, "select 1")
            await anyio.sleep(chance.uniform(0.0, 0.3))
            assert await anyio.to_thread.run_sync(process.end, signal.SIGKILL) == -9
    process = start("--config", small)
    await one(bus, "select 1", 400)
    assert await anyio.to_thread.run_sync(process.end, signal.SIGTERM) == 0
    undisturbed = open_tables("undisturbed")
    undisturbed.apply(await stored(bus))
    expected = undisturbed.dump()
    found = open_tables("projection").dump()
    assert found == expected
    assert len(found["events"]) > 200


async def test_a_killed_server_is_waited_for(tmp_path: Path) -> None:
    with testing.server(tmp_path / "server") as server:
        await testing.fresh(server.url)
        async with (
            connect(server.url, patience_seconds=10) as bus,
            projecting(bus, tmp_path / "p.duckdb"),
        ):
            for n in range(60):
                ack = await bus.publish("inbox.bob.alice.task", new("task", {"n": n}, source="/a"))
                if n in (20, 40):
                    await anyio.to_thread.run_sync(server.kill)
                    await anyio.to_thread.run_sync(server.restart)
            sql = "select list(data->>'$.n' order by seq) from events"
            assert await one(bus, sql, ack.sequence) == [str(n) for n in range(60)]


async def test_a_stream_made_anew_is_noticed(bus: Bus, bus_url: str, tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    with pytest.raises(
        ProjectorError, match=r"LOG was (deleted|made anew at .*): .* remove that file"
    ) as caught:
        async with projecting(bus, path):
            ack = await bus.publish("inbox.b.a.task", new("task", 1, source="/a"))
            await one(bus, "select 1", ack.sequence)
            await testing.fresh(bus_url)
            await anyio.sleep_forever()
    assert caught.value.reason == "stream"
    for _ in range(3):
        await bus.publish("inbox.b.a.task", new("task", 2, source="/a"))
    with pytest.raises(ProjectorError, match="was made anew"):
        await run(bus, path, stop=anyio.Event())
    assert query_file(path, "select data from events").table.to_pylist() == [{"data": "1"}]
    path.unlink()
    async with projecting(bus, path):
        assert await one(bus, "select count(*) from events", 3) == 3


async def test_a_deleted_stream_is_noticed(bus: Bus, tmp_path: Path) -> None:
    with pytest.raises(ProjectorError, match="stream LOG was deleted"):
        async with projecting(bus, tmp_path / "p.duckdb"):
            ack = await bus.publish("inbox.b.a.task", new("task", 1, source="/a"))
            await one(bus, "select 1", ack.sequence)
            await bus.connection.api("STREAM.DELETE.LOG")
            await anyio.sleep_forever()


async def test_a_stream_that_is_shorter_than_what_was_read_is_noticed(
    bus: Bus, tmp_path: Path, open_tables: Open, log: Any
) -> None:
    for _ in range(3):
        log.message()
    tables = open_tables("p")
    tables.apply(log.messages)
    tables.checkpoint.bind((await bus.connection.api("STREAM.INFO.LOG"))["created"])
    tables.store.close()
    with pytest.raises(ProjectorError, match="ends at 0, before what was read, 3"):
        await run(bus, tables.path, stop=anyio.Event())


async def test_without_the_stream_it_says_so(bus: Bus, tmp_path: Path) -> None:
    await bus.connection.api("STREAM.DELETE.LOG")
    with pytest.raises(NotFound, match="no stream LOG"):
        await run(bus, tmp_path / "p.duckdb", stop=anyio.Event())


async def test_a_note_that_was_kept_as_a_blob_is_believed_whole(bus: Bus, tmp_path: Path) -> None:
    text = "x" * 100_000
    async with projecting(bus, tmp_path / "p.duckdb"):
        memory = Memory(bus, "alice")
        await memory.revise(await memory.note("short"), text=text)
        await memory.note(text, about="large")
        last = await bus.connection.api("STREAM.INFO.LOG")
        sql = "select list(text order by first_seq) from memory"
        assert await one(bus, sql, last["state"]["last_seq"]) == [text, text]


@pytest.mark.parametrize(("blobs", "length"), [(None, 100_000), (("paper",), 100_000), ((), None)])
async def test_data_in_a_blob_is_there_for_the_projections_that_want_it(
    blobs: tuple[str, ...] | None, length: int | None, bus: Bus, tmp_path: Path
) -> None:
    papers = Projection(
        name="papers",
        types=("paper",),
        blobs=blobs,
        tables={"papers": "seq bigint, length bigint"},
        statements=("insert into papers select seq, strlen(data->>'$.text') from batch",),
    )
    async with projecting(bus, tmp_path / "p.duckdb", projections=(EVENTS, papers)):
        await bus.publish("topic.a.paper", new("paper", {"text": "short"}, source="/a"))
        ack = await bus.publish("topic.a.paper", new("paper", {"text": "x" * 100_000}, source="/a"))
        sql = "select list(length order by seq) from papers"
        assert await one(bus, sql, ack.sequence) == [5, length]
        sql = "select data is null and dataref like 'blob:%' from events where seq = 2"
        assert await one(bus, sql) is True


async def test_a_dead_letter_that_was_kept_as_a_blob_is_listed(bus: Bus, tmp_path: Path) -> None:
    letter = {"reason": "failed", "error": "boom", "attempts": 2, "trace": "x" * 100_000}
    async with projecting(bus, tmp_path / "p.duckdb"):
        event = new("stratum.dead.lettered", letter, source="/agents/bob")
        ack = await bus.publish("dead.bob.task", event)
        sql = "select reason || ' ' || error || ' ' || attempts from dead_letters"
        assert await one(bus, sql, ack.sequence) == "failed boom 2"


async def test_a_second_projector_is_refused_in_one_sentence(
    bus: Bus, start: Callable[..., Process]
) -> None:
    first = start()
    await one(bus, "select 1")
    second = start()
    assert await anyio.to_thread.run_sync(second.wait) == 1
    assert len(second.lines) == 1
    assert "one file has one projector" in second.lines[0]
    assert await one(bus, "select 7 as n") == 7
    assert await anyio.to_thread.run_sync(first.end, signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly(
    number: signal.Signals, bus: Bus, start: Callable[..., Process], tmp_path: Path
) -> None:
    process = start()
    ack = await bus.publish("inbox.b.a.task", new("task", 1, source="/a"))
    await one(bus, "select 1", ack.sequence)
    before = time.monotonic()
    assert await anyio.to_thread.run_sync(process.end, number) == 0
    assert time.monotonic() - before < 10
    assert "stopped at LOG 1" in process.lines[-1]
    assert not any("Traceback" in line for line in process.lines)
    assert "projection.duckdb.wal" not in os.listdir(tmp_path)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    process = Process("nats://127.0.0.1:1", tmp_path / "p.duckdb")
    assert process.wait() == 1
    assert len(process.lines) == 1
    assert "cannot connect to nats://127.0.0.1:1" in process.lines[0]
