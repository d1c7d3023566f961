"""Every way in which a lake may differ from its stream is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratum_bus.errors import LakeError
from stratum_projections.lake.compact import compact
from stratum_projections.lake.verify import Verified, verify


async def check(lake: Any) -> Verified:
    return await verify(lake.bus, lake.folder)


def kinds(found: Verified) -> list[str]:
    return [finding.kind for finding in found.findings]


def change(lake: Any, path: Path, column: str, value: Any) -> None:
    """Give the third row another value."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[2] = value
    index = table.schema.get_field_index(column)
    table = table.set_column(index, table.field(index), pa.array(values, table.field(index).type))
    lake.rewrite(path, table)


async def test_a_lake_that_is_as_the_stream_has_no_findings(lake: Any) -> None:
    await lake.publish(100)
    await lake.export(30)
    await lake.publish(7)
    seen: list[int] = []
    found = await verify(lake.bus, lake.folder, said=lambda segment: seen.append(segment.last))
    assert found == Verified(segments=4, events=100, compared=100)
    assert seen == [30, 60, 90, 100]
    compact(lake.folder, of_latest_day=2)
    assert await check(lake) == Verified(segments=1, events=100, compared=100)


async def test_what_the_stream_holds_no_more_is_only_counted(lab: Any) -> None:
    await lab.put(*(b"%d" % n for n in range(50)))
    await lab.export(20)
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 10})
    assert await check(lab) == Verified(segments=3, events=50, compared=10)
    await lab.bus.connection.api("STREAM.PURGE.LAB")
    assert await check(lab) == Verified(segments=3, events=50, compared=0)


@pytest.mark.parametrize(
    ("column", "value"),
    [("payload", b"{}"), ("subject", "x"), ("headers", '{"a":"b"}'), ("headers", None)],
)
async def test_a_row_that_is_another_in_the_stream_is_named(
    column: str, value: Any, lake: Any
) -> None:
    await lake.publish(50)
    await lake.export(20)
    change(lake, lake.folder.listing().segments[1].path, column, value)
    [finding] = (await check(lake)).findings
    assert finding.kind == "differs"
    assert finding.where.endswith("/000000000021-000000000040.parquet")
    assert finding.what == f"LOG 23 has another {column} in the stream"


async def test_a_row_that_is_not_there_is_named(lake: Any) -> None:
    await lake.publish(50)
    await lake.export(20)
    path = lake.folder.listing().segments[1].path
    table = pq.read_table(path)
    lake.rewrite(path, pa.concat_tables([table.slice(0, 7), table.slice(8)]))
    [finding] = (await check(lake)).findings
    assert finding.what == "LOG 28 is in the stream, and not in it"


async def test_rows_that_contradict_their_name_are_found(lake: Any) -> None:
    await lake.publish(40)
    await lake.export(10)
    one, two, three, _ = [segment.path for segment in lake.folder.listing().segments]
    change(lake, one, "seq", 1)
    change(lake, two, "seq", 99)
    change(lake, three, "stored_ns", 5)
    found = await check(lake)
    assert kinds(found) == ["rows", "rows", "rows"]
    assert [finding.what for finding in found.findings] == [
        "sequence 1 does not belong behind 2 here",
        "sequence 99 does not belong behind 12 here",
        "sequence 23 was stored on 1970-01-01",
    ]


async def test_missing_ranges_and_damaged_files_are_found_together(lake: Any) -> None:
    await lake.publish(50)
    await lake.export(10)
    _, two, three, *_ = [segment.path for segment in lake.folder.listing().segments]
    two.unlink()
    three.write_bytes(three.read_bytes()[:500])
    found = await check(lake)
    assert kinds(found) == ["missing", "damaged"]
    assert found.findings[0].where == "LOG 11 to 20"
    assert "`stratum lake export` adds it" in found.findings[0].what
    assert (found.segments, found.events, found.compared) == (4, 30, 30)
    three.unlink()
    assert kinds(await check(lake)) == ["missing"]


async def test_the_lake_of_another_stream_is_noticed(lab: Any) -> None:
    await lab.put(b"1", b"2", b"3")
    await lab.export(2)
    await lab.make()
    await lab.put(b"1")
    assert kinds(await check(lab)) == ["stream", "stream", "stream"]


async def test_no_lake_is_said(lake: Any) -> None:
    with pytest.raises(LakeError, match="there is no lake of LOG in"):
        await check(lake)
    assert not lake.folder.lake.exists()
