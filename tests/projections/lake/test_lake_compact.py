"""Few large files out of many small ones, and nobody notices."""

from __future__ import annotations

import os
import time
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stratum_bus.errors import LakeError
from stratum_bus.message import Message
from stratum_projections.lake import compact as compacting
from stratum_projections.lake.compact import compact
from stratum_projections.lake.read import lake_messages
from stratum_projections.lake.rows import rows
from stratum_projections.lake.segment import Folder, Segment
from stratum_projections.lake.write import Draft

DAY_NS = 86_400_000_000_000


def segment(folder: Folder, day: int, first: int, last: int) -> Segment:
    """Written by hand: messages of the day-th day since 1970, one for each sequence."""
    messages = [
        Message("LOG", n, "topic.a.t", day * DAY_NS + n, b'{"n":%d}' % n)
        for n in range(first, last + 1)
    ]
    draft = Draft(folder, "export", date.fromordinal(date(1970, 1, 1).toordinal() + day), first)
    draft.write(rows(messages))
    return draft.publish(last, "once")


def ranges(folder: Folder) -> list[tuple[int, int]]:
    return [(each.first, each.last) for each in folder.listing().segments]


def files(folder: Folder) -> int:
    return len(list(folder.root.glob("date=*/*")))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Two days that are over, with ten and three segments, and one that is not, with two."""
    folder = Folder(tmp_path)
    for n in range(10):
        segment(folder, 100, n * 10 + 1, n * 10 + 10)
    for n in range(3):
        segment(folder, 101, 101 + n * 5, 105 + n * 5)
    segment(folder, 102, 116, 117)
    segment(folder, 102, 118, 130)
    return folder


def test_a_day_that_is_over_becomes_one_segment(folder: Folder) -> None:
    before = list(lake_messages(folder.lake))
    done = compact(folder, grace_seconds=0)
    assert [(len(each.parts), each.whole.first, each.whole.last) for each in done] == [
        (10, 1, 100),
        (3, 101, 115),
    ]
    assert ranges(folder) == [(1, 100), (101, 115), (116, 117), (118, 130)]
    assert files(folder) == 4
    assert list(lake_messages(folder.lake)) == before
    assert compact(folder) == []


def test_the_latest_day_is_compacted_when_it_has_many(folder: Folder) -> None:
    compact(folder, of_latest_day=2, grace_seconds=0)
    assert ranges(folder) == [(1, 100), (101, 115), (116, 130)]


def test_what_was_replaced_stays_for_who_reads_it(folder: Folder) -> None:
    reading = lake_messages(folder.lake)
    assert next(reading).sequence == 1
    compact(folder)
    assert files(folder) == 15 + 2
    assert len(folder.listing().replaced) == 13
    assert [message.sequence for message in reading] == list(range(2, 131))
    for each in folder.listing().segments:
        os.utime(each.path, (0, time.time() - compacting.GRACE_SECONDS - 1))
    compact(folder)
    assert files(folder) == 4


def test_a_reader_goes_on_where_a_file_was_removed_under_it(folder: Folder) -> None:
    reading = lake_messages(folder.lake)
    assert next(reading).sequence == 1
    compact(folder, grace_seconds=0)
    assert [message.sequence for message in reading] == list(range(2, 131))


def test_a_compaction_that_was_interrupted_leaves_nothing_behind(folder: Folder) -> None:
    before = list(lake_messages(folder.lake))
    stray = folder.listing().segments[0].path.with_name(".compact-1.tmp")
    stray.write_bytes(b"half of it")
    other = stray.with_name(".export-131.tmp")
    other.write_bytes(b"an exporter is at work")
    assert list(lake_messages(folder.lake)) == before
    compact(folder, grace_seconds=0)
    assert not stray.exists()
    assert other.exists()
    assert list(lake_messages(folder.lake)) == before


def test_neighbours_with_a_hole_between_them_stay_apart(folder: Folder) -> None:
    folder.listing().segments[4].path.unlink()
    compact(folder, grace_seconds=0)
    assert ranges(folder)[:2] == [(1, 40), (51, 100)]


def test_segments_are_compacted_up_to_a_size(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compacting, "TARGET_EVENTS", 40)
    compact(folder, grace_seconds=0)
    assert ranges(folder)[:4] == [(1, 40), (41, 80), (81, 100), (101, 115)]
    monkeypatch.setattr(compacting, "TARGET_EVENTS", 1000)
    monkeypatch.setattr(compacting, "TARGET_BYTES", 1)
    assert compact(folder) == []


def test_a_damaged_segment_is_named_and_nothing_is_removed(folder: Folder) -> None:
    third = folder.listing().segments[2].path
    third.write_bytes(third.read_bytes()[:-100])
    with pytest.raises(LakeError, match=f"{third} is no whole segment"):
        compact(folder, grace_seconds=0)
    assert files(folder) == 15


@pytest.mark.parametrize("content", [b"nothing of ours", None])
async def test_no_name_alone_makes_a_file_replace_others(
    folder: Folder, content: bytes | None, lake: Any
) -> None:
    parts = [each.path for each in folder.listing().segments[:10]]
    whole = parts[0].with_name("000000000001-000000000100.parquet")
    if content is None:  # a true segment, but with fewer rows
        few = Folder(folder.lake / "other")
        segment(few, 100, 1, 100).path.rename(whole)
        lake.rewrite(whole, pq.read_table(whole).slice(0, 50))
    else:
        whole.write_bytes(content)
    with pytest.raises(LakeError, match=f"{whole} is no whole segment"):
        compact(folder, grace_seconds=0)
    assert all(path.exists() for path in parts)


async def test_a_second_compaction_is_refused(lake: Any) -> None:
    async with lake.locked("compact") as pid:
        with pytest.raises(LakeError, match=f"process {pid} already writes to "):
            compact(lake.folder)
    async with lake.locked("export"):
        assert compact(lake.folder) == []


async def test_a_new_column_is_empty_in_older_rows(folder: Folder, lake: Any) -> None:
    path = folder.listing().segments[0].path
    lake.rewrite(path, pq.read_table(path).drop_columns(["causationid"]))
    compact(folder, grace_seconds=0)
    merged = pq.read_table(folder.listing().segments[0].path)
    assert merged["causationid"].null_count == 100
    assert merged["seq"].to_pylist() == list(range(1, 101))
