"""The same rows in a Delta table, each once, whoever stops or repeats what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio.to_thread
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from stratum_bus.errors import LakeError
from stratum_projections.lake.compact import compact
from stratum_projections.lake.delta import Delta
from stratum_projections.lake.export import exporter


def rows(delta: Delta, *columns: str) -> list[dict[str, Any]]:
    table = DeltaTable(str(delta.path)).to_pyarrow_table(columns=list(columns))
    return table.sort_by("seq").to_pylist()


def sequences(delta: Delta) -> list[int]:
    return [row["seq"] for row in rows(delta, "seq")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "delta"


async def test_the_table_has_the_rows_of_the_lake(lake: Any, path: Path) -> None:
    await lake.publish(50)
    await lake.export(20)
    delta = Delta(path, lake.folder)
    assert delta.position == 0
    assert delta.follow() == 3
    assert delta.position == 50
    assert delta.follow() == 0
    segments = [pq.read_table(each.path) for each in lake.folder.listing().segments]
    names = segments[0].column_names
    assert rows(delta, *names) == [row for table in segments for row in table.to_pylist()]
    days = {str(each.day) for each in lake.folder.listing().segments}
    assert {str(row["date"]) for row in rows(delta, "seq", "date")} == days
    table = DeltaTable(str(path))
    assert table.metadata().partition_columns == ["stream", "date"]
    assert (table.protocol().min_reader_version, table.protocol().min_writer_version) == (1, 2)


async def test_a_new_process_goes_on_behind_what_was_committed(lake: Any, path: Path) -> None:
    await lake.publish(30)
    await lake.export(10)
    Delta(path, lake.folder).follow()
    await lake.publish(7)
    await lake.export(10)
    compact(lake.folder, of_latest_day=2, grace_seconds=0)  # now one segment lies across the end
    again = Delta(path, lake.folder)
    assert again.follow() == 1
    assert sequences(again) == list(range(1, 38))
    again.compact()
    assert (again.position, sequences(again)) == (37, list(range(1, 38)))
    assert len(DeltaTable(str(path)).file_uris()) == 1


async def test_a_second_writer_does_not_double_anything(
    lake: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lake.publish(10)
    await lake.export(5)
    one, other = Delta(path, lake.folder), Delta(path, lake.folder)
    one.follow()
    assert other.follow() == 0
    await lake.publish(5)
    await lake.export(5)
    table = other._open()
    one.follow()
    monkeypatch.setattr(other, "_open", lambda: table)  # it has not seen the commit yet
    with pytest.raises(LakeError, match="another writer committed") as caught:
        other._append(lake.folder.listing().segments[-1], 10)
    assert caught.value.reason == "locked"
    assert sequences(one) == list(range(1, 16))


async def test_a_lake_of_another_stream_is_refused(lab: Any, path: Path) -> None:
    await lab.put(b"1", b"2", b"3")
    await lab.export()
    Delta(path, lab.folder).follow()
    await lab.make()
    await lab.put(b"4")
    lab.folder.root.rename(lab.folder.root.with_name("old"))
    await lab.export()
    with pytest.raises(LakeError, match="it goes on to 3, the lake to 1"):
        Delta(path, lab.folder).follow()
    await lab.put(b"5", b"6", b"7")
    await lab.export()
    with pytest.raises(LakeError, match="its stream was created at") as caught:
        Delta(path, lab.folder).follow()
    assert caught.value.reason == "stream"


async def test_a_hole_in_the_lake_is_waited_for(lake: Any, path: Path) -> None:
    await lake.publish(10)
    await lake.export(5)
    Delta(path, lake.folder).follow()
    await lake.publish(10)
    await lake.export(5)
    lake.folder.listing().segments[2].path.unlink()
    with pytest.raises(LakeError, match="up to 10, and the lake goes on at 16"):
        Delta(path, lake.folder).follow()
    await lake.export()
    delta = Delta(path, lake.folder)
    delta.follow()
    assert sequences(delta) == list(range(1, 21))


async def test_a_damaged_segment_is_named_and_nothing_of_it_is_committed(
    lake: Any, path: Path
) -> None:
    await lake.publish(300)
    await lake.export()
    [segment] = lake.folder.listing().segments
    lake.damage(segment.path)
    delta = Delta(path, lake.folder)
    with pytest.raises(LakeError, match=f"{segment.path} is no whole segment"):
        delta.follow()
    assert delta.position == 0


async def test_two_streams_share_a_table(lake: Any, lab: Any, path: Path) -> None:
    await lake.publish(3)
    await lab.put(b"1", b"2")
    for each in (lake, lab):
        await each.export()
        Delta(path, each.folder).follow()
    assert Delta(path, lake.folder).position == 3
    assert Delta(path, lab.folder).position == 2
    found = rows(Delta(path, lake.folder), "stream", "seq")
    assert sorted((row["stream"], row["seq"]) for row in found) == [
        ("LAB", 1), ("LAB", 2), ("LOG", 1), ("LOG", 2), ("LOG", 3),
    ]  # fmt: skip


async def test_without_the_extra_it_is_said_what_to_install(
    lake: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(LakeError, match=r"pip install 'stratum-bus\[delta\]'"):
        Delta(path, lake.folder)


async def test_many_commits_are_summed_up(lake: Any, path: Path) -> None:
    await lake.publish(104)
    async with exporter(lake.bus, lake.folder, segment_events=1) as ours:
        await ours.export()
    assert await anyio.to_thread.run_sync(Delta(path, lake.folder).follow) == 104
    assert (path / "_delta_log" / "_last_checkpoint").exists()
    assert Delta(path, lake.folder).position == 104
