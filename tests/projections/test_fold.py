"""A batch into all tables: where batches are cut makes no difference, and nothing disappears."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from stratum_bus.errors import ProjectorError
from stratum_bus.message import Message
from stratum_projections import SHIPPED, Projection
from stratum_projections.checkpoint import CORE

RandomLog = Callable[[int, int], list[Message]]
Open = Callable[..., Any]

NUMBERS = Projection(
    name="numbers",
    types=("number",),
    tables={"numbers": "seq bigint, n integer"},
    statements=("insert into numbers select seq, (data->>'$.n')::integer from batch",),
)


def cut(messages: Sequence[Message], seed: int) -> list[Sequence[Message]]:
    """Batches of 1 to 40."""
    chance, batches, start = random.Random(seed), [], 0
    while start < len(messages):
        end = start + chance.randrange(1, 41)
        batches.append(messages[start:end])
        start = end
    return batches


@pytest.mark.parametrize("seed", range(2))
def test_where_batches_are_cut_makes_no_difference(
    seed: int, random_log: RandomLog, open_tables: Open
) -> None:
    messages = random_log(seed, 220)
    whole, pieces = open_tables("whole"), open_tables("pieces")
    whole.apply(messages)
    for batch in cut(messages, seed):
        pieces.apply(batch)
    expected = whole.dump()
    assert pieces.dump() == expected
    for name in ("events", "messages", "memory", "memory_changes", "agents", "dead_letters"):
        assert len(expected[name]) > 1, name


def test_one_event_at_a_time_gives_the_same_tables(
    random_log: RandomLog, open_tables: Open
) -> None:
    messages = random_log(99, 40)
    whole, single = open_tables("whole"), open_tables("single")
    whole.apply(messages)
    for message in messages:
        single.apply([message])
    assert single.dump() == whole.dump()


def test_every_message_is_an_event_or_in_quarantine(tables: Any, random_log: RandomLog) -> None:
    messages = random_log(7, 300)
    tables.apply(messages)
    read = {row["seq"] for row in tables.rows("select seq from events")}
    parked = tables.rows("select * from quarantine where projection is null")
    assert {row["seq"] for row in parked} == {m.sequence for m in messages} - read
    for row in parked:
        message = messages[row["seq"] - 1]
        assert row["payload"] == message.payload
        assert row["subject"] == message.subject
        assert row["time"] == message.time.isoformat()
        assert row["reason"] in ("utf8", "json", "shape")
        assert row["detail"]


def test_the_event_that_breaks_a_statement_is_found_and_the_rest_goes_on(
    log: Any, open_tables: Open
) -> None:
    tables = open_tables(projections=(*SHIPPED, NUMBERS))
    for n in range(700):
        bad = n in (3, 4, 350, 699)
        log.add("topic.a.number", "number", {"n": "three" if bad else n})
    applied = tables.apply(log.messages)
    assert applied.quarantined == 4
    assert tables.one("select count(*) n, count(distinct n) d from numbers") == {"n": 696, "d": 696}
    assert tables.one("select count(*) n from events") == {"n": 700}
    parked = tables.rows("select seq, projection, reason, detail from quarantine order by seq")
    assert [row["seq"] for row in parked] == [4, 5, 351, 700]
    assert {row["projection"] for row in parked} == {"numbers"}
    assert {row["reason"] for row in parked} == {"statement"}
    assert "'three'" in parked[0]["detail"]
    assert set(tables.checkpoint.positions.values()) == {700}


def test_memory_events_of_the_wrong_shape_are_parked_at_once(tables: Any, log: Any) -> None:
    for n in range(50):
        log.noted(text=f"note {n}")
        log.raw("memory.alice.note", b'{"text": 5}')
    log.raw("memory.alice.note", b'{"tags": "red"}')
    applied = tables.apply(log.messages)
    assert applied.quarantined == 51
    assert tables.one("select count(*) n from memory") == {"n": 50}
    last = tables.one("select * exclude (payload) from quarantine where seq = 101")
    assert (last["projection"], last["reason"]) == ("memory", "data")
    assert "Expected `array`, got `str` - at `$.tags`" in last["detail"]


def test_the_event_at_which_prepare_fails_is_found_and_the_rest_goes_on(
    log: Any, open_tables: Open
) -> None:
    def prepare(batch: pa.Table) -> pa.Table:
        texts: list[Any] = batch["data"].to_pylist()
        numbers = [10 // int(json.loads(text)["n"]) for text in texts]
        refused = pa.nulls(len(numbers), pa.string())
        return pa.table({"seq": batch["seq"], "n": numbers, "refused": refused})

    careless = Projection(
        name="careless",
        types=("number",),
        prepare=prepare,
        tables={"careless": "seq bigint, n bigint"},
        statements=("insert into careless from batch",),
    )
    tables = open_tables(projections=(*SHIPPED, careless))
    for n in range(1, 101):
        log.add("topic.a.number", "number", {"n": 0 if n == 37 else n})
    assert tables.apply(log.messages).quarantined == 1
    assert tables.one("select count(*) n from careless") == {"n": 99}
    parked = tables.one("select seq, projection, reason, detail from quarantine")
    assert (parked["seq"], parked["projection"], parked["reason"]) == (37, "careless", "statement")
    assert "prepare: ZeroDivisionError: " in parked["detail"]


def test_a_batch_that_fails_leaves_nothing_behind(tables: Any, log: Any) -> None:
    log.message()
    tables.apply(log.messages)
    before = tables.dump()
    log.message()
    tables.checkpoint.epoch -= 1
    with pytest.raises(ProjectorError) as caught:
        tables.apply(log.messages[1:])
    assert caught.value.reason == "fenced"
    assert tables.dump() == before


def test_a_disk_that_is_full_is_said_and_loses_nothing(log: Any, open_tables: Open) -> None:
    """Its stand-in needs no root: no file of this process may grow beyond 3 MB."""
    for n in range(2000):
        log.add("topic.a.number", "number", {"n": n, "text": "x" * 2000})
    tables = open_tables("full")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, before[1]))
    try:
        with pytest.raises(ProjectorError, match=r"cannot write .*full\.duckdb: ") as caught:
            for start in range(0, 2000, 500):
                tables.apply(log.messages[start : start + 500])
        position = tables.checkpoint.position
        tables.store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.reason == "file"
    assert 0 < position < 2000
    tables = open_tables("full")
    assert tables.checkpoint.position == position
    assert tables.one("select count(*) n from events") == {"n": position}
    tables.apply(log.messages[position:])
    assert tables.one("select count(distinct seq) n from events") == {"n": 2000}


def test_a_batch_applied_twice_is_refused(tables: Any, log: Any) -> None:
    log.message()
    late = dict(tables.checkpoint.positions)
    tables.apply(log.messages)
    tables.checkpoint.positions = late
    with pytest.raises(ProjectorError, match="taken over"):
        tables.apply(log.messages)
    assert tables.one("select count(*) n from events") == {"n": 1}


def test_a_projection_added_later_is_built_from_the_beginning(log: Any, open_tables: Open) -> None:
    for n in range(5):
        log.add("topic.a.number", "number", {"n": n})
        log.raw("topic.a.number", b"{")
    first = open_tables("grown")
    first.apply(log.messages)
    before = first.dump()
    first.store.close()
    log.add("topic.a.number", "number", {"n": 5})
    second = open_tables("grown", (*SHIPPED, NUMBERS))
    assert second.fresh == ["numbers"]
    assert second.checkpoint.position == 0
    second.apply(log.messages[:7])
    second.apply(log.messages[7:])
    assert [row["n"] for row in second.rows("select n from numbers order by seq")] == [*range(6)]
    assert len(second.dump()["events"]) == len(before["events"]) + 1
    assert second.dump()["quarantine"] == before["quarantine"]


def test_a_changed_version_is_built_anew(log: Any, open_tables: Open) -> None:
    log.add("topic.a.number", "number", {"n": 1})
    log.add("topic.a.number", "number", {"n": "x"})
    first = open_tables("versions", (NUMBERS,))
    first.apply(log.messages)
    assert len(first.dump()["quarantine"]) == 1
    first.store.close()
    changed = Projection(
        name="numbers",
        version=2,
        tables={"doubles": "n integer"},
        statements=("insert into doubles select 2 * try_cast(data->>'$.n' as integer) from batch",),
    )
    second = open_tables("versions", (changed,))
    second.apply(log.messages)
    dump = second.dump()
    assert [row["n"] for row in dump["doubles"]] == [2, None]
    assert "numbers" not in dump
    assert dump["quarantine"] == []


def test_wrong_sql_is_said_at_the_start(open_tables: Open) -> None:
    wrong = Projection(
        name="wrong", tables={"t": "a bigint"}, statements=("insert into t select nope from batch",)
    )
    with pytest.raises(ProjectorError, match=r"projection wrong: .*nope") as caught:
        open_tables("wrong", (wrong,))
    assert caught.value.reason == "projection"


def test_two_statements_in_one_text_are_refused_at_the_start(open_tables: Open) -> None:
    both = "insert into t select seq from batch; insert into t select seq from batch"
    wrong = Projection(name="wrong", tables={"t": "a bigint"}, statements=(both,))
    with pytest.raises(ProjectorError, match="2 statements in one text, give each its own"):
        open_tables("wrong", (wrong,))


def test_the_core_has_a_position_of_its_own(tables: Any, log: Any) -> None:
    log.raw("inbox.a.b.c", b"{")
    tables.apply(log.messages)
    assert tables.checkpoint.positions[CORE] == 1
