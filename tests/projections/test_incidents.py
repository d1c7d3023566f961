"""The table `incidents`: the story of what was wrong, for SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from stratum_bus.message import utc
from stratum_projections.health.incident import Finding, Incident, closing, opening

START_NS = 1_767_225_600_000_000_000


def found(instance: str, first: int) -> Finding:
    return Finding(
        kind="dead", agent="bob", instance=instance, since_ns=START_NS, first=first,
        text="nothing was heard of it", evidence={"last_beat": first},
    )  # fmt: skip


def add(log: Any, append: Any) -> Any:
    return log.again(append.subject, append.event)


def story(log: Any) -> None:
    """Two incidents, one closed twice, all of it stored twice somewhere."""
    first = add(log, opening(found("i1", 5), START_NS))
    add(log, opening(found("i2", 6), START_NS))
    over = closing(first.id, msgspec.convert(first.data, Incident), "i3 runs", "restart", START_NS)
    until = msgspec.structs.replace(over.event.data, until=utc(START_NS + 4_000_000_000))
    ended = msgspec.structs.replace(over.event, data=until)
    log.again("control.bob.incident", ended)
    log.again("control.bob.incident", first)
    again = msgspec.structs.replace(until, over="not this one")
    log.again("control.bob.incident", msgspec.structs.replace(ended, id="another", data=again))
    log.message()
    log.again("control.bob.incident", ended)


def test_an_incident_is_open_until_it_is_closed(tables: Any, log: Any) -> None:
    story(log)
    tables.apply(log.messages[:2])
    assert tables.rows("select instance, status, seq from incidents order by seq") == [
        {"instance": "i1", "status": "open", "seq": 1},
        {"instance": "i2", "status": "open", "seq": 2},
    ]
    tables.apply(log.messages[2:])
    row = tables.one("select * from incidents where instance = 'i1'")
    assert (row["status"], row["over"], row["command"]) == ("closed", "i3 runs", "restart")
    assert (row["closed_seq"], row["seconds"]) == (3, 4.0)
    assert (row["kind"], row["agent"], row["evidence"]) == ("dead", "bob", '{"last_beat":5}')
    assert row["since"] == "2026-01-01T00:00:00+00:00"
    other = tables.one("select status, over, seconds from incidents where instance = 'i2'")
    assert other == {"status": "open", "over": None, "seconds": None}


@pytest.mark.parametrize("cut", range(1, 8))
def test_where_the_batches_are_cut_makes_no_difference(
    cut: int, open_tables: Callable[..., Any], log: Any
) -> None:
    story(log)
    whole, parts = open_tables("whole"), open_tables("parts")
    whole.apply(log.messages)
    for start in range(0, len(log.messages), cut):
        parts.apply(log.messages[start : start + cut])
    assert parts.dump()["incidents"] == whole.dump()["incidents"]
    assert len(whole.dump()["incidents"]) == 2
