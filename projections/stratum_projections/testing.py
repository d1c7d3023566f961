"""The test kit of projections: their tables from events that a test makes up. No server is needed.

    from stratum_projections.testing import project

    def test_a_paper_has_its_title() -> None:
        tables = project(PAPERS, [("topic.alice.paper.published", {"title": "On logs"})])
        assert [row["title"] for row in tables["papers"]] == ["On logs"]

Each call also holds the projections to their promises: where the batches are cut makes no
difference, and neither does an event that is stored once more.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from stratum_bus import event as events
from stratum_bus.event import Event
from stratum_bus.message import Message, nanoseconds
from stratum_projections.catalog import install
from stratum_projections.fold import Fold
from stratum_projections.found import load
from stratum_projections.projection import Projection
from stratum_projections.store import Store

__all__ = ("Row", "project")

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When the first event is stored; the others follow a second apart."""

Row = dict[str, Any]

_STREAM = "LOG"
_QUARANTINE = "select seq, projection, reason, detail from quarantine"


def project(
    projections: Projection | Sequence[Projection] | Path | str,
    given: Iterable[tuple[str, Any]],
    *,
    quarantined: Collection[int] = (),
) -> dict[str, list[Row]]:
    """The rows of each table after the events, in the order of their columns.

    `projections` may be the file that holds them. An event is the subject it was published on and
    its data, which is then completed as any message's is, or an Event where more of it matters;
    `bytes` are stored as they are. They are at LOG 1, 2, 3 and so on. `quarantined` are those that
    are expected to end there; the table `quarantine` says why.

    Raises AssertionError where others were quarantined, or a promise does not hold, with the first
    row that differs; ProjectorError `projection` where the SQL is wrong.
    """
    if isinstance(projections, Path | str):
        projections = load(projections)
    elif isinstance(projections, Projection):
        projections = (projections,)
    messages = [_message(number, *each) for number, each in enumerate(given, start=1)]
    tables = _folded(projections, [messages])
    found = {row["seq"] for row in tables["quarantine"]}
    if found != set(quarantined):
        raise AssertionError(_surprise(tables["quarantine"], found, set(quarantined)))
    for how, batches in _cuts(messages):
        _same(tables, _folded(projections, batches), how)
    once = [each for each in projections if not getattr(each, "repeats", False)]
    repeated = _folded(once, [messages, _repeated(messages)])
    kept = {table for each in once for table in each.tables}
    _same({t: tables[t] for t in kept}, repeated, "with each event stored once more")
    return tables


def _message(sequence: int, subject: str, content: Any) -> Message:
    time_ns = nanoseconds(START) + (sequence - 1) * 1_000_000_000
    headers = {events.HEADER_ID: f"{_STREAM}-{sequence}"}  # the id that it would get without one
    if isinstance(content, Event):
        headers = events.headers_of(content)
    payload = content if isinstance(content, bytes) else events.encode_value(content)
    return Message(_STREAM, sequence, subject, time_ns, payload, headers)


def _cuts(messages: Sequence[Message]) -> Iterator[tuple[str, list[Sequence[Message]]]]:
    if len(messages) < 2:
        return
    yield "one event a batch", [[message] for message in messages]
    chance = random.Random(len(messages))
    at = sorted(chance.sample(range(1, len(messages)), chance.randint(1, len(messages) - 1)))
    ends = zip([0, *at], [*at, len(messages)], strict=True)
    yield f"batches that begin at {[1, *(n + 1 for n in at)]}", [messages[a:b] for a, b in ends]


def _repeated(messages: Sequence[Message]) -> list[Message]:
    """The messages again, behind all others."""
    return [replace(each, sequence=len(messages) + each.sequence) for each in messages]


def _folded(
    projections: Sequence[Projection], batches: Sequence[Sequence[Message]]
) -> dict[str, list[Row]]:
    with tempfile.TemporaryDirectory(prefix="stratum-") as folder:
        store = Store.open(Path(folder) / "projection.duckdb")
        try:
            checkpoint, _ = install(store, projections)
            fold = Fold(store, checkpoint, projections)
            for batch in filter(None, batches):
                fold.apply(batch)
            names = [table for each in projections for table in each.tables]
            queries = {name: f"select * from {name}" for name in names}
            return {
                name: store.arrow(f"{query} order by all").to_pylist()
                for name, query in (queries | {"quarantine": _QUARANTINE}).items()
            }
        finally:
            store.close()


def _same(expected: dict[str, list[Row]], got: dict[str, list[Row]], how: str) -> None:
    for table, rows in expected.items():
        if rows == got[table]:
            continue
        one = next((row for row in got[table] if row not in rows), None)
        other = next((row for row in rows if row not in got[table]), None)
        raise AssertionError(
            f"{how}, the table {table} is another: {_shown(one)} instead of {_shown(other)}; "
            "the log's order alone may decide, not its batches, a clock or chance"
        )


def _shown(row: Row | None) -> str:
    if row is None:
        return "no row"
    return f"({', '.join(f'{name}: {value}' for name, value in row.items())})"


def _surprise(rows: list[Row], found: set[int], expected: set[int]) -> str:
    for row in rows:
        if row["seq"] not in expected:
            who = f" by {row['projection']}" if row["projection"] else ""
            return f"event {row['seq']} was quarantined{who} ({row['reason']}): {row['detail']}"
    return f"event {min(expected - found)} was not quarantined"
