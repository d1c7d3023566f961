"""The test kit of projections: rows from made-up events, and the promises that it holds them to."""

from __future__ import annotations

from typing import Any

import pytest

from stratum_bus.errors import ProjectorError
from stratum_bus.event import new
from stratum_projections import SHIPPED, Projection
from stratum_projections.testing import START, project


def table(statement: str, columns: str = "seq bigint, n bigint", **fields: Any) -> Projection:
    return Projection(name="mine", tables={"mine": columns}, statements=(statement,), **fields)


NUMBERS = table("insert into mine select seq, (data->>'$.n')::bigint from batch")
GIVEN = [(f"topic.alice.number.{i}", {"n": i}) for i in range(5)]


def test_gives_the_rows_of_each_table() -> None:
    tables = project(NUMBERS, GIVEN)
    assert tables["mine"] == [{"seq": i + 1, "n": i} for i in range(5)]
    assert tables["quarantine"] == []
    assert project(NUMBERS, [])["mine"] == []


def test_an_event_is_completed_as_any_message_is() -> None:
    columns = "id varchar, source varchar, sender varchar, type varchar, time timestamptz"
    names = "id, source, sender, type, time"
    mine = table(f"insert into mine by name select {names} from batch", columns)
    event = new("number.odd", 1, source="/shop", id="mine", time=START)
    rows = project(mine, [("topic.alice.number.even", 2), ("topic.alice.number.odd", event)])
    assert [tuple(row.values())[:4] for row in rows["mine"]] == [
        ("LOG-1", "/agents/alice", "alice", "number.even"),
        ("mine", "/shop", "alice", "number.odd"),
    ]
    assert rows["mine"][0]["time"] == START


def test_the_shipped_projections_keep_their_promises() -> None:
    tables = project(
        SHIPPED, [*GIVEN, ("inbox.bob.alice.task", {}), ("memory.bob.note", {"text": "a"})]
    )
    assert [row["text"] for row in tables["memory"]] == ["a"]
    assert len(tables["events"]) == 7


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "insert into mine select max(seq), count(*) from batch",
            "one event a batch, the table mine",
        ),
        ("insert into mine select seq, epoch_us(now()) from batch", "one event a batch, the table"),
        ("insert into mine select seq, (random() * 1e9)::bigint from batch", "the table mine"),
        (
            "insert into mine select seq, n from (select *, (from mine select count(*)) n from batch)",
            "the table mine is another: (seq: 2, n: 1) instead of (seq: 2, n: 0)",
        ),
    ],
)
def test_a_table_that_depends_on_more_than_the_order_is_shown(statement: str, said: str) -> None:
    with pytest.raises(AssertionError) as caught:
        project(table(statement), GIVEN)
    assert said in str(caught.value)
    assert "the log's order alone may decide" in str(caught.value)


def test_an_event_that_is_stored_twice_counts_once() -> None:
    event = new("number", {"n": 1}, source="/shop")
    assert len(project(NUMBERS, [("topic.alice.number", event)] * 2)["mine"]) == 1


def test_what_is_quarantined_must_be_expected() -> None:
    given = [*GIVEN[:1], ("topic.alice.number.x", {"n": "many"}), ("topic.alice.number.y", b"{")]
    with pytest.raises(
        AssertionError, match=r"event 2 was quarantined by mine \(statement\): .*many"
    ):
        project(NUMBERS, given)
    tables = project(NUMBERS, given, quarantined=[2, 3])
    assert len(tables["mine"]) == 1
    assert [row["reason"] for row in tables["quarantine"]] == ["statement", "json"]
    with pytest.raises(AssertionError, match="event 1 was not quarantined"):
        project(NUMBERS, given, quarantined=[1, 2, 3])


def test_wrong_sql_is_said_by_the_name_of_the_projection() -> None:
    with pytest.raises(ProjectorError, match=r"projection mine: .*nowhere"):
        project(table("insert into mine select seq, 1 from nowhere"), GIVEN)
