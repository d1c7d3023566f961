"""SQL over NATS: only reading, within limits, of one moment."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pyarrow as pa
import pytest

from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import InvalidName, QueryError
from stratum_bus.jetstream import Reply
from stratum_projections import ask
from stratum_projections.answering import CHUNK_BYTES, serve
from stratum_projections.position import Position
from stratum_projections.select import select

DISGUISES = {
    "not_read_only": [
        "drop table events",
        "delete from events",
        "insert into agents (name) values ('mallory')",
        "update messages set state = 'handled'",
        "with gone as (delete from events returning seq) select * from gone",
        "with new as (insert into agents (name) values ('m') returning name) select * from new",
        "explain analyze insert into agents (name) values ('mallory')",
        "select 1; drop table events",
        "create temp table t as select 1",
        "create or replace view reflected as select 7 as sequence",
        "copy events to '/tmp/stolen.csv'",
        "copy (select * from read_text('/etc/hostname')) to '/dev/null'",
        "attach '/tmp/other.duckdb'",
        "pragma database_list",
        "set memory_limit = '100GB'",
        "set enable_external_access = true",
        "reset lock_configuration",
        "install httpfs",
        "load json",
        "checkpoint",
        "select * from force_checkpoint()",
        "vacuum",
        "call force_checkpoint()",
        "prepare p as delete from events",
        "export database '/tmp/stolen'",
        "begin",
        "commit",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/proc/self/environ')",
        "select * from glob('/*')",
        "from read_parquet('http://localhost/x.parquet')",
        "/* select */ drop table events -- select",
        "",
    ],
    "syntax": [
        "selec 1",
        "select * from nowhere",
        "select nothing from events",
        "select '",
        "select * from '/etc/passwd'",
    ],
    "failed": ["select 'x'::integer", "select error('no')"],
}


@pytest.mark.parametrize("reason", DISGUISES)
def test_only_reading_is_answered(reason: str, tables: Any, log: Any) -> None:
    log.message()
    tables.apply(log.messages)
    before = tables.dump()
    for sql in DISGUISES[reason]:
        reader = tables.store.reader()
        with (
            pytest.raises(QueryError) as caught,
            select(reader, sql, timeout_seconds=5, max_rows=10) as (_, _, batches),
        ):
            list(batches)
        reader.close()
        assert caught.value.reason == reason, sql
        assert "\n" not in str(caught.value)
        assert tables.dump() == before, sql
    log.message()
    tables.apply(log.messages[1:])


def test_a_variable_of_the_process_is_no_table(tables: Any) -> None:
    secret = pa.table({"key": ["s3cret"]})
    reader = tables.store.reader()
    with (
        pytest.raises(QueryError, match="secret"),
        select(reader, "select * from secret", timeout_seconds=5, max_rows=10),
    ):
        pass
    reader.close()
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "select 1 as a",
        "with a as (select 1 as a) select * from a",
        "from events",
        "values (1)",
        "describe events",
        "show tables",
        "summarize events",
        "explain select * from events",
        "select 1 as a; -- and no more",
    ],
)
def test_every_way_to_read_is_answered(sql: str, tables: Any) -> None:
    reader = tables.store.reader()
    with select(reader, sql, timeout_seconds=5, max_rows=1000) as (sequence, schema, batches):
        table = pa.Table.from_batches(batches, schema)
    reader.close()
    assert sequence == 0
    assert table.num_columns > 0


@asynccontextmanager
async def serving(bus: Bus, tables: Any, **config: Any) -> AsyncIterator[Position]:
    """A query service without a projector."""
    position = Position(tables.checkpoint.position)
    async with anyio.create_task_group() as tasks:
        settings = ProjectorConfig(**config)
        await tasks.start(serve, bus.connection, tables.store, position, "main", settings)
        yield position
        tasks.cancel_scope.cancel()


async def test_rows_come_with_the_sequence_they_reflect(bus: Bus, tables: Any, log: Any) -> None:
    log.message()
    log.noted(tags=["a", "b"], score=0.5)
    tables.apply(log.messages)
    async with serving(bus, tables):
        answer = await ask(bus, "select seq, type, stored, data from events order by seq")
        notes = await ask(bus, "select tags, score from memory")
    assert answer.sequence == 2
    assert answer.table["seq"].to_pylist() == [1, 2]
    assert str(answer.table.schema.field("stored").type) == "timestamp[us, tz=UTC]"
    assert answer.table["data"].to_pylist()[0] == '{"n":1}'
    assert notes.table.to_pylist() == [{"tags": ["a", "b"], "score": 0.5}]


async def test_an_answer_without_rows_has_columns(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        answer = await ask(bus, "select id, seq from events")
    assert answer.table.column_names == ["id", "seq"]
    assert answer.table.num_rows == 0


async def test_a_large_answer_comes_in_chunks(bus: Bus, tables: Any) -> None:
    sizes: list[int] = []
    sql = "select i, md5(i::varchar) || md5((i + 1)::varchar) as t from range(60_000) r(i)"
    async with (
        serving(bus, tables),
        bus.connection.subscribe("_INBOX.>", lambda reply: sizes.append(len(reply.payload))),
    ):
        answer = await ask(bus, sql)
    assert answer.table.num_rows == 60_000
    assert answer.table["i"].to_pylist() == list(range(60_000))
    assert len(sizes) > 3
    assert max(sizes) == CHUNK_BYTES


async def test_a_query_that_runs_for_ever_is_stopped(bus: Bus, tables: Any) -> None:
    endless = (
        "select count(*) from range(1_000_000_000) a, range(1_000_000) b where a.range % 7 = 3"
    )
    async with serving(bus, tables):
        with pytest.raises(QueryError, match=r"took more than 0.2 s") as caught:
            await ask(bus, endless, timeout_seconds=0.2)
        assert caught.value.reason == "timeout"
        assert (await ask(bus, "select 1 as one")).table.to_pylist() == [{"one": 1}]


async def test_the_projector_bounds_what_a_caller_may_allow(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables, query_seconds=0.2, query_rows=10):
        with pytest.raises(QueryError, match=r"0.2 s"):
            await ask(bus, "select count(*) from range(10_000_000_000) a, range(1_000_000) b")
        with pytest.raises(QueryError, match=r"more than 10 rows") as caught:
            await ask(bus, "from range(11)", max_rows=1000)
        assert caught.value.reason == "too_many_rows"
        assert (await ask(bus, "from range(10)")).table.num_rows == 10


async def test_many_rows_that_come_late_are_refused_too(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        with pytest.raises(QueryError, match=r"more than 150,000 rows"):
            await ask(bus, "select i, md5(i::varchar) from range(200_000) r(i)", max_rows=150_000)


async def test_an_error_is_one_sentence_with_a_reason(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        with pytest.raises(QueryError, match="Table with name nowhere does not exist") as caught:
            await ask(bus, "select *\nfrom nowhere")
        assert caught.value.reason == "syntax"
        with pytest.raises(QueryError, match="ünï"):
            await ask(bus, 'select * from "ünï"')


async def test_an_answer_waits_for_a_sequence(bus: Bus, tables: Any, log: Any) -> None:
    log.message()
    async with serving(bus, tables) as position, anyio.create_task_group() as tasks:

        async def project() -> None:
            await anyio.to_thread.run_sync(tables.apply, log.messages)
            position.advance(1)

        with pytest.raises(QueryError, match="reflect sequence 0, and did not reach 1") as caught:
            await ask(bus, "select 1", wait_for=1, timeout_seconds=0.1)
        assert caught.value.reason == "behind"
        tasks.start_soon(project)
        answer = await ask(bus, "select count(*) as n from events", wait_for=1)
        assert (answer.table.to_pylist(), answer.sequence) == ([{"n": 1}], 1)


async def test_readers_and_the_writer_do_not_wait_for_each_other(
    bus: Bus, tables: Any, log: Any
) -> None:
    """Each answer is of one moment: as many events as the sequence says."""
    for _ in range(300):
        log.message()
    wrong: list[Any] = []

    async def read() -> None:
        for _ in range(5):
            answer = await ask(bus, "select count(*) as n from events")
            if answer.table.to_pylist() != [{"n": answer.sequence}]:
                wrong.append(answer)

    async with serving(bus, tables), anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(read)
        for start in range(0, 300, 20):
            batch = log.messages[start : start + 20]
            await anyio.to_thread.run_sync(tables.apply, batch)
    assert wrong == []


async def test_any_client_may_send_sql_as_it_is(bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        replies: list[Reply] = []
        inbox, done = bus.connection.new_inbox(), anyio.Event()

        def take(reply: Reply) -> None:
            replies.append(reply)
            if "Stratum-Last" in (reply.headers or {}):
                done.set()

        async with bus.connection.subscribe(inbox, take):
            await bus.connection.send("query.main", b"select 42 as answer", reply=inbox)
            await done.wait()
    body = b"".join(reply.payload for reply in replies)
    assert pa.ipc.open_stream(body).read_all().to_pylist() == [{"answer": 42}]
    assert (replies[-1].headers or {})["Stratum-Sequence"] == "0"


@pytest.mark.parametrize("payload", [b'{"sql": 5}', b'{"sequel": "x"}', b"{", b"\xff", b""])
async def test_a_request_that_is_none_is_answered(payload: bytes, bus: Bus, tables: Any) -> None:
    async with serving(bus, tables):
        reply = await bus.connection.request("query.main", payload)
    assert (reply.headers or {})["Stratum-Error"] in ("syntax", "not_read_only")


async def test_a_projector_that_is_not_there_is_said_at_once(bus: Bus) -> None:
    with pytest.raises(QueryError, match="no projector 'main' answers") as caught:
        await ask(bus, "select 1")
    assert caught.value.reason == "no_projector"
    with pytest.raises(InvalidName, match="projector name"):
        await ask(bus, "select 1", projector="a.b")


def test_no_thread_is_left_behind(tables: Any) -> None:
    before = threading.active_count()
    for _ in range(3):
        reader = tables.store.reader()
        with select(reader, "select 1", timeout_seconds=60, max_rows=1) as (_, _, batches):
            list(batches)
        reader.close()
    assert threading.active_count() <= before + 1
