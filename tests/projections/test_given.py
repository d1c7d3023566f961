"""Registered tables take each other's place, and a plan reads the one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from stratum_projections import Projection
from stratum_projections.projection import Step
from stratum_projections.store import StatementFailed, Store

ADD = "insert into t by name select n, 'text' as kind from batch"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "projection.duckdb")
    store.execute("create table t(n bigint, kind varchar)")
    store.execute("create schema other")
    store.execute("create table other.t(n bigint, kind varchar)")
    yield store
    store.close()


def numbers(*values: int) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def texts(*values: str) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.string())})


def add(store: Store, table: pa.Table) -> None:
    store.register("batch", table)
    with store.transaction():
        store.repeat_planned(ADD, reads="batch")


def stored(store: Store, table: str = "main.t") -> list[int]:
    return [n for (n,) in store.execute(f"select n from {table} order by rowid")]


def test_a_plan_reads_the_table_that_is_registered_now(store: Store) -> None:
    add(store, numbers(1, 2))
    add(store, numbers())
    add(store, numbers(3))
    assert stored(store) == [1, 2, 3]


def test_tables_of_other_columns_take_turns_under_one_name(store: Store) -> None:
    for number in range(1, 7, 2):
        add(store, numbers(number))
        add(store, texts(str(number + 1)))
    assert stored(store) == [1, 2, 3, 4, 5, 6]


def test_a_plan_is_of_the_tables_of_one_schema(store: Store) -> None:
    add(store, numbers(1))
    with store.within("other"):
        add(store, numbers(2))
    add(store, numbers(3))
    assert (stored(store), stored(store, "other.t")) == ([1, 3], [2])


def test_what_was_registered_in_a_transaction_that_failed_is_read_no_more(store: Store) -> None:
    add(store, numbers(1))
    with pytest.raises(StatementFailed), store.transaction():
        store.register("batch", texts("two"))
        store.repeat_planned(ADD, reads="batch")
    add(store, numbers(3))
    add(store, texts("4"))
    assert stored(store) == [1, 3, 4]


def test_a_table_that_is_replaced_is_let_go_of(store: Store) -> None:
    before = pa.total_allocated_bytes()
    add(store, numbers(*range(200_000)))
    add(store, numbers(1))
    add(store, texts("2"))
    assert pa.total_allocated_bytes() - before < 100_000


def test_only_what_reads_nothing_but_the_batch_is_planned_once() -> None:
    projection = Projection(
        name="notes",
        tables={"notes": "seq bigint, n bigint", "notes_open": "seq bigint"},
        statements=(
            "insert into notes by name select seq, 1 as n from batch where kind = 'note'",
            "insert into notes_open select b.seq from batch b anti join notes n on n.seq = b.seq",
            "delete from notes_open using batch b where notes_open.seq = b.seq",
            "update notes set n = 2",
            Step("INSERT INTO notes_open SELECT seq FROM batch"),
        ),
    )
    found = [projection.only_adds(step) for step in projection.steps()]
    assert found == [True, False, False, False, True]
