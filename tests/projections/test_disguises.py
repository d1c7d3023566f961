"""Whatever looks like a question and is none is refused in one sentence, and changes nothing."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import pyarrow as pa
import pytest

from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import QueryError
from stratum_bus.tasks import task_group
from stratum_projections import ask
from stratum_projections.answering import serve
from stratum_projections.position import Position
from stratum_projections.select import SQL_CHARACTERS, select

DISGUISES = {
    "statements": [
        "drop table events",
        "delete from events",
        "truncate events",
        "insert into agents (name) values ('mallory')",
        "update messages set state = 'handled'",
        "merge into events using events e on true when matched then delete",
        "create temp table t as select 1",
        "create or replace view reflected as select 7 as sequence",
        "alter table events add column mine int",
        "comment on table events is 'mine'",
        "vacuum",
        "analyze",
        "checkpoint",
        "begin",
        "commit",
        "",
        ";",
    ],
    "settings": [
        "set memory_limit = '100GB'",
        "set enable_external_access = true",
        "set variable x = 1",
        "reset lock_configuration",
        "pragma database_list",
        "pragma memory_limit = '100GB'",
        "use memory",
        "call force_checkpoint()",
        "call pragma_version()",
        "select * from enable_logging()",
        "select * from enable_profiling()",
    ],
    "what returns rows": [
        "with gone as (delete from events returning seq) select * from gone",
        "with new as (insert into agents (name) values ('m') returning name) select * from new",
        "with gone as materialized (delete from events returning *) from gone",
        "(with gone as (delete from events returning *) from gone)",
        "with recursive r as (insert into agents (name) values ('m') returning name) from r",
        "select (with gone as (delete from events returning seq) select * from gone)",
        "select * from (delete from events returning *)",
        "select exists(delete from events)",
        "select * into stolen from events",
        "select * from events for update",
        "select nextval('s')",
    ],
    "explaining": [
        "explain analyze insert into agents (name) values ('mallory')",
        "explain analyze delete from events",
        "explain delete from events",
        "describe delete from events",
    ],
    "several at once": [
        "select 1; drop table events",
        "drop table events; select 1",
        "select 1;\n-- nothing\n;delete from events;",
        "begin; delete from events; commit",
        "pivot events on type using count(*)",
    ],
    "comments and letters": [
        "/* select */ drop table events -- select",
        "delete/**/from/**/events",
        "DELETE\u00a0FROM\u00a0events",
        "\ufeffdelete from events",
        "\u200bdelete from events",
        "\u017felect * from events; drop table events",
        "\uff24\uff25\uff2c\uff25\uff34\uff25 from events",
        "select 1\x00; drop table events",
        "select 1;\x00drop table events",
        "--\rselect 1\ndrop table events",
        "/* /* */ select 1 */ drop table events",
    ],
    "files and other databases": [
        "copy events to '/tmp/stolen.csv'",
        "copy (select * from read_text('/etc/hostname')) to '/dev/null'",
        "export database '/tmp/stolen'",
        "import database '/tmp/stolen'",
        "attach '/tmp/other.duckdb'",
        "detach memory",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/proc/self/environ')",
        "select * from read_blob('/etc/passwd')",
        "select * from sniff_csv('/etc/passwd')",
        "select * from glob('/*')",
        "select * from '/etc/passwd'",
        "from 'secret.parquet'",
        "from read_parquet('http://localhost/x.parquet')",
        "from read_duckdb('other.duckdb')",
        "from parquet_metadata('x.parquet')",
    ],
    "extensions and secrets": [
        "install httpfs",
        "force install httpfs",
        "load json",
        "update extensions",
        "create secret s (type s3)",
        "from duckdb_secrets()",
        "select getenv('HOME')",
        "connect 'quack:host'",
    ],
    "functions that do more": [
        "select * from force_checkpoint()",
        "from checkpoint()",
        'from "checkpoint" /* ( */ ()',
        "from checkpoint -- (\n()",
        "from truncate_duckdb_logs()",
        "select write_log('mine')",
        "from query('delete from events')",
        "from query('from checkpoint()')",
        "from query_table('events')",
        "from query('select * from read_csv(''/etc/passwd'')')",
    ],
    "prepared and defined": [
        "prepare p as delete from events",
        "execute p",
        "deallocate p",
        "create macro m() as 1",
        "create temp macro m() as table select 1",
        "create sequence s",
        "create trigger t after insert on events for each statement delete from events",
    ],
    "through a view": [
        "delete from reflected",
        "insert into reflected values (1)",
        "update reflected set sequence = 9",
        "drop view reflected",
        "truncate reflected",
    ],
}
REASONS = {"not_read_only", "syntax", "failed"}


@pytest.mark.parametrize("kind", DISGUISES)
async def test_only_reading_is_answered(kind: str, bus: Bus, tables: Any, log: Any) -> None:
    log.message()
    tables.apply(log.messages)
    before = await anyio.to_thread.run_sync(tables.dump)
    async with task_group() as tasks:
        position = Position(tables.checkpoint.position)
        await tasks.start(serve, bus.connection, tables.store, position, "main", ProjectorConfig())
        for sql in DISGUISES[kind]:
            with pytest.raises(QueryError) as caught:
                await ask(bus, sql)
            assert caught.value.reason in REASONS, sql
            assert str(caught.value), sql
            assert "\n" not in str(caught.value), sql
        answer = await ask(bus, "select count(*) as n from events")
        assert answer.table.to_pylist() == [{"n": 1}]
        tasks.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(tables.dump) == before
    log.message()
    tables.apply(log.messages[1:])


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
        "select sequence from checkpoint",
        "select 'delete from events' as query",
        "select seq from events where seq in (select sequence from checkpoint)",
        "from (values ('a', 1), ('b', 2)) t(k, v) select sum(v) filter (k = 'a') as a",
    ],
)
def test_every_way_to_read_is_answered(sql: str, tables: Any) -> None:
    reader = tables.store.reader()
    with select(reader, sql, timeout_seconds=5, max_rows=1000) as (sequence, schema, batches):
        table = pa.Table.from_batches(batches, schema)
    reader.close()
    assert sequence == 0
    assert table.num_columns > 0


def test_what_would_take_gigabytes_to_be_read_is_not(tables: Any) -> None:
    reader = tables.store.reader()
    sql = "select " + "(" * SQL_CHARACTERS + "1" + ")" * SQL_CHARACTERS
    with (
        pytest.raises(QueryError, match=r"at most 65,536"),
        select(reader, sql, timeout_seconds=5, max_rows=1),
    ):
        pass
    reader.close()


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
