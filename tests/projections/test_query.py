"""SQL over NATS: within limits, of one moment."""

from __future__ import annotations

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
