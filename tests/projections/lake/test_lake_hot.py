"""The hot table and the lake as one: no event is doubled or lost between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from stratum_bus import event
from stratum_bus.errors import LakeError, QueryError
from stratum_bus.event import Event
from stratum_bus.message import Message, utc
from stratum_projections import SHIPPED, query_file
from stratum_projections.catalog import install
from stratum_projections.fold import Fold
from stratum_projections.lake.compact import compact
from stratum_projections.lake.hot import Hot
from stratum_projections.lake.rows import rows
from stratum_projections.lake.segment import Folder
from stratum_projections.lake.write import Draft
from stratum_projections.select import select
from stratum_projections.store import Store

DAY_NS = 86_400_000_000_000


def messages(count: int) -> list[Message]:
    """Twenty a day; each tenth is no event."""
    found = []
    for n in range(1, count + 1):
        time_ns = (20_000 + (n - 1) // 20) * DAY_NS + n
        body = event.encode(
            Event(id=f"e{n}", source="/t", type="t", time=utc(time_ns), data={"n": n})
        )
        payload = b"\xff" if n % 10 == 0 else body
        found.append(Message("LOG", n, "topic.a.t", time_ns, payload))
    return found


class File:
    """A projector's file with a lake, and no projector."""

    def __init__(self, path: Path) -> None:
        self.path = path / "p.duckdb"
        self.folder = Folder(path / "lake")
        self.open()

    def open(self, keep_days: int | None = 1) -> None:
        self.store = Store.open(self.path, directories=[self.folder.lake])
        checkpoint, _ = install(self.store, SHIPPED)
        self.fold = Fold(self.store, checkpoint, SHIPPED)
        self.beside = self.store.beside()
        self.hot = Hot(self.beside, self.folder, keep_days)

    def export(self, found: Sequence[Message], size: int = 10) -> None:
        """Segments of at most `size` messages, each of one day."""
        days = [list(run) for _, run in groupby(found, lambda message: message.time_ns // DAY_NS)]
        for part in [run[at : at + size] for run in days for at in range(0, len(run), size)]:
            draft = Draft(self.folder, "export", part[0].time.date(), part[0].sequence)
            draft.write(rows(part))
            draft.publish(part[-1].sequence, "once")

    def rows(self, sql: str) -> list[dict[str, Any]]:
        return list(self.store.arrow(sql).to_pylist())

    def one(self, sql: str) -> Any:
        [row] = self.rows(sql)
        return next(iter(row.values()))

    def close(self) -> None:
        self.beside.close()
        self.store.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path)
    yield made
    made.close()


def test_old_rows_leave_the_file_and_stay_in_the_view(file: File) -> None:
    log = messages(95)  # days 0 to 4
    file.fold.apply(log)
    before = file.rows("select * from events order by seq")
    assert file.hot.refresh() == 0
    assert file.rows("select * from all_events order by seq") == before
    file.export(log)
    assert file.hot.refresh() == 54  # three days of twenty, less those that are no events
    assert file.one("select min(seq) from events") == 61
    assert file.rows("select * from all_events order by seq") == before
    assert file.one("select data->>'$.n' from all_events where id = 'e7'") == "7"
    kinds = "select typeof(columns(*)) from {} limit 1"
    assert file.rows(kinds.format("all_events")) == file.rows(kinds.format("events"))
    assert file.hot.refresh() == 0


def test_what_the_lake_does_not_hold_yet_stays(file: File) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log[:30])
    assert file.hot.refresh() == 0  # the newest day in the lake is the second, so both stay
    file.export(log[30:50])
    assert file.hot.refresh() == 18
    assert file.one("select min(seq) from events") == 21
    assert file.one("select count(*) from all_events") == 86


def test_without_a_limit_all_rows_stay(file: File) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log)
    file.close()
    file.open(keep_days=None)
    assert file.hot.refresh() == 0
    assert file.one("select count(*) from events") == 86
    assert file.one("select count(*) from all_events") == 86


def test_an_event_that_the_lake_lacks_keeps_its_segment_in_the_file(file: File) -> None:
    log = messages(95)
    file.fold.apply(log)
    changed = [
        m if m.sequence != 15 else Message("LOG", 15, m.subject, m.time_ns, b"{}") for m in log
    ]
    file.export(changed)
    with pytest.raises(LakeError, match=r"lacks 1 of the events from 11 to 20: .* they stay"):
        file.hot.refresh()
    assert file.one("select min(seq) from events") == 11
    assert file.one("select count(*) from all_events") == 86


def test_removing_rows_and_moving_the_watermark_are_one(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log)
    file.hot._show(0, file.folder.listing())
    define = file.hot._define

    def fail(watermark: int, listing: Any) -> None:
        define(watermark, listing)
        if watermark == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(file.hot, "_define", fail)
    with pytest.raises(KeyboardInterrupt):
        file.hot.refresh()
    assert file.one("select watermark from lake") == 10
    assert file.one("select min(seq) from events") == 11
    assert file.one("select count(*) from all_events") == 86
    file.close()
    file.open()
    assert file.one("select count(distinct seq) from all_events") == 86
    assert file.hot.refresh() == 45


def test_rows_that_come_back_below_the_watermark_are_not_doubled(file: File) -> None:
    """As after a new version of the projection `events`, which is built from the beginning."""
    log = messages(95)
    file.fold.apply(log)
    file.export(log)
    file.hot.refresh()
    file.store.execute(
        "insert into events_1.events by name select * from all_events where seq <= 60"
    )
    assert file.one("select count(*) from all_events") == 86
    file.fold.apply([*log[94:], *later(log)])
    file.export(later(log))
    assert file.hot.refresh() > 0
    assert file.one("select min(seq) from events") == 81


def later(log: list[Message]) -> list[Message]:
    return messages(len(log) + 20)[len(log) :]


def test_the_view_follows_a_compaction(file: File) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log, 4)
    file.hot.refresh()
    before = file.rows("select * from all_events order by seq")
    compact(file.folder)
    file.hot.refresh()
    compact(file.folder, grace_seconds=0)
    assert len(list(file.folder.root.glob("*/*.parquet"))) < 10
    assert file.rows("select * from all_events order by seq") == before


def test_the_view_can_be_asked_and_nothing_else_on_the_disk(file: File, tmp_path: Path) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log)
    file.hot.refresh()
    (tmp_path / "secret").write_text("x")

    def ask(sql: str) -> Any:
        reader = file.store.reader()
        try:
            with select(reader, sql, timeout_seconds=5, max_rows=100) as (_, _, batches):
                return [row for batch in batches for row in batch.to_pylist()]
        finally:
            reader.close()

    assert ask("select count(*) as n from all_events") == [{"n": 86}]
    for sql in (
        f"select * from read_text('{tmp_path}/secret')",
        f"select * from read_text('{file.folder.lake}/../secret')",
        f"copy events to '{file.folder.lake}/x.parquet'",
        f"attach '{file.folder.lake}/x.duckdb'",
        "set allowed_directories = ['/']",
    ):
        with pytest.raises(QueryError):
            ask(sql)
    assert [path.name for path in file.folder.lake.iterdir()] == ["stream=LOG"]


def test_a_file_without_its_projector_shows_the_lake_too(
    file: File, open_tables: Callable[..., Any]
) -> None:
    log = messages(95)
    file.fold.apply(log)
    file.export(log)
    file.hot.refresh()
    file.close()
    sql = "select count(*) as n from all_events"
    answer = query_file(file.path, sql, directories=[file.folder.lake])
    assert answer.table.to_pylist() == [{"n": 86}]
    file.open()
