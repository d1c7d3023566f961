"""The query service beside what it answers: who goes away, who waits, who comes in a crowd."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pyarrow as pa
import pytest

from stratum_bus import connect, testing
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import PermissionDenied, QueryError
from stratum_bus.event import new
from stratum_bus.jetstream import Reply
from stratum_bus.publish import Append
from stratum_bus.server import find_binary, free_port
from stratum_bus.tasks import task_group
from stratum_projections import ask, query, run, stream
from stratum_projections.answering import CHUNK_BYTES, READERS_NICE, serve
from stratum_projections.position import Position
from stratum_projections.query import CANCEL, WINDOW
from stratum_projections.rows import names

ENDLESS = "select count(*) from range(1_000_000_000) a, range(1_000_000) b where a.range % 7 = 3"
MANY = "select i, md5(i::varchar) || md5((i + 1)::varchar) as t from range({rows}) r(i)"


@asynccontextmanager
async def serving(
    bus: Bus, tables: Any, *, query_seconds: float = 600, **options: Any
) -> AsyncIterator[None]:
    """A query service without a projector, which lets queries run for long."""
    async with task_group() as tasks:
        position = Position(tables.checkpoint.position)
        config = ProjectorConfig(query_seconds=query_seconds)

        async def start(*, task_status: Any) -> None:
            await serve(
                bus.connection, tables.store, position, "main", config, task_status=task_status,
                **options,
            )  # fmt: skip

        await tasks.start(start)
        yield
        tasks.cancel_scope.cancel()


class Asked:
    """A request by hand, and all that comes back."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.replies: list[Reply] = []
        self.inbox = bus.connection.new_inbox()

    @asynccontextmanager
    async def asking(self, **request: Any) -> AsyncIterator[None]:
        body = json.dumps(request).encode()
        async with self.bus.connection.subscribe(self.inbox, self.replies.append):
            await self.bus.connection.send("query.main", body, reply=self.inbox)
            yield

    async def until(self, count: int) -> None:
        await testing.eventually(lambda: len(self.replies) >= count, within_seconds=30)

    async def until_last(self) -> dict[str, str]:
        await testing.eventually(lambda: "Stratum-Last" in self.headers, within_seconds=30)
        return self.headers

    @property
    def headers(self) -> dict[str, str]:
        return (self.replies[-1].headers or {}) if self.replies else {}

    @property
    def body(self) -> bytes:
        return b"".join(reply.payload for reply in self.replies)


async def answered(bus: Bus) -> None:
    """The only reader is free again, or will be."""

    async def once() -> bool:
        try:
            return (await ask(bus, "select 1", timeout_seconds=40)).table.num_rows == 1
        except QueryError as error:
            if error.reason != "busy":
                raise
            return False

    await testing.eventually(once, within_seconds=40)


async def test_a_client_that_goes_away_ends_its_query(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, readers=1):
        asked = Asked(bus)
        async with asked.asking(sql=ENDLESS, timeout_seconds=600):
            await asked.until(1)  # the service wants to know whether anybody is there
        await answered(bus)
        with anyio.move_on_after(0.01):
            await ask(bus, ENDLESS, timeout_seconds=600)
        await answered(bus)


async def test_a_query_is_cancelled_by_a_message(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, readers=1):
        asked = Asked(bus)
        async with asked.asking(sql=ENDLESS, timeout_seconds=600):
            await asked.until(1)
            assert asked.replies[0].payload == b""
            await bus.connection.send(asked.replies[0].reply, CANCEL)
            assert (await asked.until_last())["Stratum-Error"] == "cancelled"
            await answered(bus)


async def test_a_projector_that_stops_says_so_to_whoever_waits(bus: Bus, tables: Any) -> None:
    asked, waiting = Asked(bus), Asked(bus)
    async with AsyncExitStack() as projector:
        await projector.enter_async_context(serving(bus, tables, readers=1))
        async with asked.asking(sql=ENDLESS), waiting.asking(sql="select 1"):
            await asked.until(1)
            await waiting.until(1)
            await projector.aclose()
            assert (await asked.until_last())["Stratum-Error"] == "cancelled"
            assert (await waiting.until_last())["Stratum-Error"] == "cancelled"


async def test_a_query_that_cannot_be_interrupted_is_answered_in_time(
    bus: Bus, tables: Any
) -> None:
    stubborn = "select len(list_reduce(range(4_000_000), lambda a, b: a + b)::varchar)"
    async with serving(bus, tables, readers=1):
        with pytest.raises(QueryError) as caught:
            await ask(bus, stubborn, timeout_seconds=0.05)
        assert caught.value.reason == "timeout"
        await answered(bus)


async def test_too_many_queries_are_refused_at_once(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, readers=1, waiting=1):
        first, second = Asked(bus), Asked(bus)
        async with first.asking(sql=ENDLESS, timeout_seconds=600):
            await first.until(1)
            with pytest.raises(QueryError, match=r"no turn within 0.2 s") as caught:
                await ask(bus, "select 1", timeout_seconds=0.2)
            assert caught.value.reason == "busy"
            async with second.asking(sql="select 1", timeout_seconds=600):
                await second.until(1)
                with pytest.raises(QueryError, match="2 queries run or wait already") as caught:
                    await ask(bus, "select 1", timeout_seconds=600)
                assert caught.value.reason == "busy"
        await answered(bus)


async def test_queries_give_way_to_a_writer_that_lacks_memory(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, readers=1):
        asked = Asked(bus)
        async with asked.asking(sql=ENDLESS, timeout_seconds=600):
            await asked.until(1)
            await anyio.to_thread.run_sync(tables.store.on_shortage)
            headers = await asked.until_last()
        assert headers["Stratum-Error"] == "failed"
        assert "needed the memory" in headers["Stratum-Error-Text"]
        await answered(bus)


async def test_an_answer_of_too_many_bytes_breaks_off(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, max_bytes=CHUNK_BYTES):
        with pytest.raises(QueryError, match="more than 700,000 bytes") as caught:
            await ask(bus, MANY.format(rows=60_000))
        assert caught.value.reason == "too_large"
        await answered(bus)


async def test_an_answer_in_json_needs_no_arrow(bus: Bus, tables: Any, log: Any) -> None:
    log.noted(data={"k": [1, None]})
    tables.apply(log.messages)
    sql = "select stored is not null as s, data, 1.5::decimal(3, 1) as d from events"
    async with serving(bus, tables):
        asked = Asked(bus)
        async with asked.asking(sql=sql, format="json"):
            headers = await asked.until_last()
    assert headers == {"Stratum-Last": "1", "Stratum-Sequence": "1"}
    [row] = map(json.loads, asked.body.splitlines())
    assert row == {"s": True, "data": {"text": "it rains", "data": {"k": [1, None]}}, "d": "1.5"}


async def test_a_large_answer_in_json_comes_in_chunks(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        asked = Asked(bus)
        async with asked.asking(sql=MANY.format(rows=30_000), format="json"):
            await asked.until_last()
    sizes = [len(reply.payload) for reply in asked.replies if reply.payload]
    assert (len(sizes), max(sizes)) == (len(asked.body) // CHUNK_BYTES + 1, CHUNK_BYTES)
    rows = [json.loads(line) for line in asked.body.splitlines()]
    assert [row["i"] for row in rows] == list(range(30_000))


async def test_rows_are_read_as_they_come_and_no_faster_than_they_are_used(
    bus: Bus, tables: Any
) -> None:
    sizes: list[int] = []

    def spy(reply: Reply) -> None:
        if reply.payload:
            sizes.append(len(reply.payload))

    async with (
        serving(bus, tables),
        bus.connection.subscribe("_INBOX.*", spy),
        stream(bus, MANY.format(rows=300_000), max_rows=300_000, timeout_seconds=50) as rows,
    ):
        assert rows.schema.names == ["i", "t"]
        await testing.eventually(lambda: len(sizes) >= WINDOW, within_seconds=30)
        assert rows.sequence == 0
        count = 0
        async for batch in rows:
            assert batch["i"][0].as_py() == count
            # One more than the window: the reader has begun with the first.
            assert len(sizes) * CHUNK_BYTES <= 80 * count + (WINDOW + 2) * CHUNK_BYTES
            count += batch.num_rows
    assert count == 300_000
    assert len(sizes) > 2 * WINDOW


async def test_leaving_a_stream_ends_its_query(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, readers=1):
        async with stream(bus, MANY.format(rows=10_000_000), max_rows=10_000_000) as rows:
            async for batch in rows:
                assert batch.num_rows
                break
        await answered(bus)
        with pytest.raises(QueryError, match="nowhere"):
            async with stream(bus, "select * from nowhere"):
                pass
        with pytest.raises(QueryError, match=r"more than 150,000 rows"):
            async with stream(bus, MANY.format(rows=200_000), max_rows=150_000) as rows:
                assert sum([batch.num_rows async for batch in rows]) < 150_000


async def test_a_wrong_number_in_a_request_is_said(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        for wrong in ({"timeout_seconds": 0}, {"window": 0}, {"format": "xml"}, {"max_rows": -1}):
            reply = await bus.connection.request(
                "query.main", json.dumps({"sql": "select 1", **wrong}).encode()
            )
            assert (reply.headers or {})["Stratum-Error"] == "syntax"


async def test_twenty_readers_do_not_stop_the_writer(bus: Bus, tmp_path: Path) -> None:
    """Half of them ask much; each answer is of one moment, all the same for all its tables."""
    heavy = (
        "select count(*) as n, (select count(distinct md5(a.i || id)) from events, range(50) a(i))"
        " > 0 as some from events"
    )
    positions: set[int] = set()
    total, served, enough, stop = 2000, 0, anyio.Event(), anyio.Event()

    async def read(sql: str) -> None:
        nonlocal served
        while not enough.is_set():
            answer = await ask(bus, sql, timeout_seconds=50)
            assert answer.table["n"].to_pylist() == [answer.sequence]
            positions.add(answer.sequence)
            served += 1

    async def project() -> None:
        await run(bus, tmp_path / "t.duckdb", stop=stop, config=ProjectorConfig(query_seconds=50))

    async with task_group() as tasks:
        tasks.start_soon(project)
        await testing.eventually(lambda: _answers(bus), within_seconds=30)
        async with task_group() as readers:
            for number in range(20):
                readers.start_soon(
                    read, heavy if number % 2 else "select count(*) as n from events"
                )
            for _ in range(total // 100):
                await bus.publish_many(
                    Append("inbox.bob.alice.task", new("task", 1, source="/alice"))
                    for _ in range(100)
                )
            await testing.eventually(lambda: max(positions, default=0) == total, within_seconds=45)
            enough.set()
        stop.set()
    assert served >= 20
    assert len(positions) > 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own there")
async def test_queries_run_below_the_writer(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        await ask(bus, "select 1")
        reading = [each for each in threading.enumerate() if each.name.startswith("query_")]
        nice = {os.getpriority(os.PRIO_PROCESS, each.native_id or 0) for each in reading}
    assert nice == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + READERS_NICE)}


async def _answers(bus: Bus) -> bool:
    try:
        await ask(bus, "select 1")
    except QueryError:
        return False
    return True


@pytest.fixture
def forbidding(tmp_path: Path) -> Iterator[str]:
    """The address of a server that lets nobody ask."""
    port, file = free_port(), tmp_path / "server.conf"
    file.write_text(
        f'listen: "127.0.0.1:{port}"\nports_file_dir: "{tmp_path}"\n'
        'authorization { users: [{user: a, password: a, permissions: '
        '{publish: {deny: ["query.>"]}}}] }\n'
    )  # fmt: skip
    process = subprocess.Popen([find_binary(), "-c", file], stderr=subprocess.DEVNULL)
    yield f"nats://a:a@127.0.0.1:{port}"
    process.kill()
    process.wait()


async def test_who_may_not_ask_is_told_at_once(forbidding: str, tmp_path: Path) -> None:
    await testing.eventually(lambda: list(tmp_path.glob("*.ports")), within_seconds=20)
    async with connect(forbidding) as bus:
        with anyio.fail_after(9), pytest.raises(PermissionDenied) as refused:
            await ask(bus, "select 1", timeout_seconds=60)
    assert refused.value.subject == "query.main"


async def test_a_table_is_one_call_away(
    bus: Bus, bus_url: str, tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = "select count(*) as n from events"
    expected = pa.table({"n": [0]})
    monkeypatch.chdir(tmp_path)
    async with serving(bus, tables):
        assert await query(sql, bus=bus) == expected
        assert await query(sql, url=bus_url) == expected
        monkeypatch.setenv("STRATUM_NATS_URL", bus_url)
        assert await query(sql, wait_for=0) == expected


async def test_a_table_as_of_a_moment_needs_no_projector(
    bus: Bus, bus_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for n in range(2):
        await bus.publish("inbox.bob.alice.task", new("task", n, source="/alice"))
    sql = "select count(*) as n from events"
    assert (await query(sql, as_of=1, url=bus_url)).to_pylist() == [{"n": 1}]
    assert (await query(sql, as_of=datetime.now(UTC), bus=bus)).to_pylist() == [{"n": 2}]
    with pytest.raises(QueryError, match="no moment"):
        await query(sql, as_of="someday", bus=bus)
    with pytest.raises(ValueError, match="exclude each other"):
        await query(sql, as_of=1, wait_for=1, bus=bus)


async def test_without_a_projector_its_file_is_read(
    bus_url: str, tables: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("", bus_url):
        monkeypatch.setenv("STRATUM_NATS_URL", url)
        with pytest.raises(QueryError, match="`stratum up`") as caught:
            await query("select 1")
        assert caught.value.reason == "no_projector"
    (tmp_path / "stratum.toml").write_text(f'[projector]\npath = "{tables.path}"\n')
    tables.store.close()
    assert (await query("select 1 as n")).to_pylist() == [{"n": 1}]
    with pytest.raises(QueryError, match="no projector 'main' answers"):
        await query("select 1", url=bus_url)


def test_columns_of_one_name_are_told_apart() -> None:
    schema = pa.schema([(name, pa.int64()) for name in ("n", "n", "m", "n")])
    assert names(schema) == ["n", "n_2", "m", "n_3"]
