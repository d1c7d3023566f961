"""From the stream into segments, and out of them again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pyarrow.parquet as pq
import pytest

from stratum_bus import jetstream
from stratum_bus.bus import Bus
from stratum_bus.errors import LakeError
from stratum_bus.event import new
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_projections.lake.export import exporter, plan
from stratum_projections.lake.read import lake_messages, read
from stratum_projections.lake.segment import Folder

LAB = {"name": "LAB", "subjects": ["lab.>"], "allow_direct": True}


async def publish(bus: Bus, count: int, start: int = 0) -> None:
    event = [new("lake.test", {"n": n}, source="/test") for n in range(start, start + count)]
    await bus.publish_many(Append("inbox.bob.alice.lake.test", each) for each in event)


async def export(bus: Bus, folder: Folder, segment_events: int = 1000) -> list[tuple[int, int]]:
    async with exporter(bus, folder, segment_events=segment_events) as ours:
        return [(each.first, each.last) for each in await ours.export()]


async def stored(bus: Bus, stream: str = "LOG", start: int = 1) -> list[Message]:
    async with bus.read(stream, start=start) as reader:
        return plain([message async for message in reader])


def plain(messages: Sequence[Message]) -> list[Message]:
    return [msgspec.structs.replace(message, pending=0) for message in messages]


async def in_lake(folder: Folder, start: int = 1, end: int | None = None) -> list[Message]:
    def take() -> list[Message]:
        return plain(list(lake_messages(folder.lake, folder.stream, start, end)))

    return await anyio.to_thread.run_sync(take)


@contextmanager
def another(folder: Folder, kind: str) -> Iterator[int]:
    """Another process that holds the lock of the folder; yields its id."""
    code = (
        "import sys; from stratum_projections.lake.segment import Folder\n"
        "with Folder(sys.argv[1]).locked(sys.argv[2]): print('in', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.lake), kind],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout and process.stdout.readline() == b"in\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "lake")


async def test_messages_come_out_as_they_are_stored(bus: Bus, folder: Folder) -> None:
    await publish(bus, 250)
    assert await export(bus, folder, 100) == [(1, 100), (101, 200), (201, 250)]
    messages = await stored(bus)
    assert await in_lake(folder) == messages
    assert await in_lake(folder, 90, 110) == messages[89:110]
    assert [path.name for path in sorted(folder.root.glob("*/*"))] == [
        "000000000001-000000000100.parquet",
        "000000000101-000000000200.parquet",
        "000000000201-000000000250.parquet",
    ]


async def test_whatever_anybody_stored_is_in_the_lake_byte_for_byte(
    bus: Bus, folder: Folder
) -> None:
    binary = {"ce-id": "1", "ce-source": "/x", "ce-type": "t", "ce-specversion": "1.0"}
    stuff: list[tuple[bytes, dict[str, str] | None]] = [
        (b'{"q": 1}', None), (b"", None), (b"\xff\x00", {"Nats-Msg-Id": "m"}), (b"NaN", {}),
        (b"[" * 2000, None), (b'"x"', {**binary, "Content-Type": "a\xe9"}),
        (b"{}", {"Weird": "\xe9\xff \u2603", "ce-type": "t"}), (b"{}", {**binary, "ce-step": "é"}),
    ]  # fmt: skip
    for payload, headers in stuff:
        reply = await bus.connection.request("inbox.bob.shell.t", payload, headers)
        jetstream.api_answer(reply, "inbox.bob.shell.t")
    await export(bus, folder)
    messages = await stored(bus)
    assert [message.payload for message in messages] == [payload for payload, _ in stuff]
    assert await in_lake(folder) == messages
    [segment] = folder.listing().segments
    rows = pq.read_table(segment.path, columns=["seq", "unreadable", "type", "subject"]).to_pylist()
    assert [row["seq"] for row in rows] == list(range(1, len(stuff) + 1))
    for row in rows:
        assert (row["unreadable"] is None) != (row["type"] is None)
        assert row["subject"] == "inbox.bob.shell.t"
    assert {row["unreadable"] for row in rows} >= {None, "json", "utf8"}


async def test_a_second_export_goes_on_behind_the_first(bus: Bus, folder: Folder) -> None:
    await publish(bus, 30)
    assert await export(bus, folder) == [(1, 30)]
    assert await export(bus, folder) == []
    await publish(bus, 5)
    assert await export(bus, folder) == [(31, 35)]
    assert await in_lake(folder) == await stored(bus)


async def test_a_file_that_was_moved_away_is_exported_again(bus: Bus, folder: Folder) -> None:
    await publish(bus, 50)
    await export(bus, folder, 10)
    first, _, third, *_ = folder.listing().segments
    first.path.unlink()
    third.path.unlink()
    with pytest.raises(LakeError, match="does not hold LOG 1 to 10, 21 to 30") as caught:
        await in_lake(folder)
    assert caught.value.reason == "missing"
    assert await export(bus, folder) == [(1, 10), (21, 30)]
    assert await in_lake(folder) == await stored(bus)


async def test_what_the_stream_no_longer_holds_is_read_from_the_lake(
    bus: Bus, folder: Folder
) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    for n in range(40):
        await bus.connection.request(f"lab.{n % 2}", str(n).encode())
    lab = Folder(folder.lake, "LAB")
    await export(bus, lab, 7)
    everything = await stored(bus, "LAB")
    await bus.connection.api("STREAM.PURGE.LAB", {"keep": 15})

    async def through(**wishes: Any) -> list[Message]:
        async with read(bus, lab.lake, "LAB", **wishes) as reading:
            return plain([message async for message in reading])

    assert await stored(bus, "LAB") == everything[25:]
    assert await through() == everything
    assert await through(start=20, end=31) == everything[19:31]
    assert await through(end=9) == everything[:9]
    assert await through(start=24, filters=["lab.1"]) == everything[23::2]
    later = everything[10].time + timedelta(microseconds=1)
    assert await through(start=later) == everything[11:]
    await bus.connection.api("STREAM.DELETE.LAB")


async def test_following_goes_from_the_lake_into_what_is_yet_to_come(
    bus: Bus, folder: Folder
) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    for n in range(9):
        await bus.connection.request("lab.x", str(n).encode())
    await export(bus, Folder(folder.lake, "LAB"), 4)
    await bus.connection.api("STREAM.PURGE.LAB", {"keep": 2})
    async with read(bus, folder.lake, "LAB", start=3, follow=True) as reading:
        assert reading.stored == 9
        await bus.connection.request("lab.x", b"9")
        seen: list[bytes] = []
        while len(seen) < 8:
            seen += [message.payload for message in await reading.batch(3, 5, gather=False)]
    assert seen == [str(n).encode() for n in range(2, 10)]
    await bus.connection.api("STREAM.DELETE.LAB")


async def test_what_is_in_neither_is_named_and_the_rest_is_exported(
    bus: Bus, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    lab = Folder(folder.lake, "LAB")
    for _ in range(5):
        await bus.connection.request("lab.x", b"1")
    await export(bus, lab)
    for _ in range(10):
        await bus.connection.request("lab.x", b"2")
    await bus.connection.api("STREAM.PURGE.LAB", {"keep": 6})
    assert (await plan(bus, lab)).lost == [(6, 9)]
    assert await export(bus, lab) == [(10, 15)]
    assert "LAB 6 to 9 are gone, and not in the lake" in caplog.text
    async with read(bus, lab.lake, "LAB", start=1) as reading:
        with pytest.raises(LakeError, match="does not hold LAB 6 to 9"):
            await stored_all(reading)
    await bus.connection.api("STREAM.DELETE.LAB")


async def stored_all(reading: Any) -> None:
    async for _ in reading:
        pass


async def test_messages_that_were_removed_leave_no_hole_in_the_names(
    bus: Bus, folder: Folder
) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    lab = Folder(folder.lake, "LAB")
    for n in range(12):
        await bus.connection.request("lab.x", str(n).encode())
    for sequence in (1, 5, 6, 12):
        await bus.connection.api("STREAM.MSG.DELETE.LAB", {"seq": sequence})
    assert await export(bus, lab, 3) == [(2, 6), (7, 9), (10, 12)]
    assert [m.sequence for m in await in_lake(lab, 2)] == [2, 3, 4, 7, 8, 9, 10, 11]
    assert await export(bus, lab) == []
    await bus.connection.api("STREAM.DELETE.LAB")


async def test_a_stream_made_anew_is_noticed(bus: Bus, folder: Folder) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    lab = Folder(folder.lake, "LAB")
    await bus.connection.request("lab.x", b"1")
    await export(bus, lab)
    await bus.connection.api("STREAM.DELETE.LAB")
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    for _ in range(3):
        await bus.connection.request("lab.x", b"2")
    with pytest.raises(
        LakeError, match=r"stream LAB was made anew at .* holds another one"
    ) as error:
        await export(bus, lab)
    assert error.value.reason == "stream"
    assert [m.payload for m in await in_lake(lab)] == [b"1"]
    await bus.connection.api("STREAM.DELETE.LAB")


async def test_a_stream_made_anew_while_it_is_read_leaves_nothing_in_the_lake(
    bus: Bus, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bus.connection.api("STREAM.CREATE.LAB", LAB)
    lab = Folder(folder.lake, "LAB")
    await bus.connection.request("lab.x", b"1")
    async with exporter(bus, lab) as ours:
        check = ours.check

        async def anew(created: str) -> None:
            await bus.connection.api("STREAM.DELETE.LAB")
            await bus.connection.api("STREAM.CREATE.LAB", LAB)
            await check(created)

        monkeypatch.setattr(ours, "check", anew)
        with pytest.raises(LakeError, match="made anew"):
            await ours.export()
    assert not lab.listing().segments
    assert not list(lab.root.glob("*/*"))
    await bus.connection.api("STREAM.DELETE.LAB")


async def test_a_second_exporter_is_refused_in_one_sentence(bus: Bus, folder: Folder) -> None:
    await publish(bus, 3)
    with another(folder, "export") as pid:
        with pytest.raises(LakeError, match=f"process {pid} already writes to ") as caught:
            await export(bus, folder)
        assert caught.value.reason == "locked"
    assert await export(bus, folder) == [(1, 3)]


async def test_a_file_that_is_no_segment_is_named_and_not_taken_for_a_position(
    bus: Bus, folder: Folder
) -> None:
    await publish(bus, 20)
    await export(bus, folder, 10)
    day = folder.listing().segments[0].path.parent
    (day / "notes.txt").write_text("hello")
    (day / "part-0.parquet").write_bytes(b"x")
    (folder.root / "date=yesterday").mkdir()
    (folder.root / "date=yesterday" / "1-5.parquet").write_bytes(b"x")
    assert [path.name for path in folder.listing().foreign] == [
        "notes.txt", "part-0.parquet", "1-5.parquet",
    ]  # fmt: skip
    await publish(bus, 5)
    assert await export(bus, folder) == [(21, 25)]
    later = day / "000000000026-000000009999.parquet"
    later.write_bytes(b"nothing of ours")
    with pytest.raises(LakeError, match=rf"{later} is no whole segment .*: move it away"):
        await export(bus, folder)
    os.rename(folder.listing().segments[0].path, later)
    with pytest.raises(LakeError, match=r"it holds LOG 1-10, and its name says otherwise"):
        await export(bus, folder)
    later.unlink()
    assert await export(bus, folder) == [(1, 10)]
    assert await in_lake(folder) == await stored(bus)


async def test_ranges_that_overlap_in_part_are_refused(bus: Bus, folder: Folder) -> None:
    await publish(bus, 20)
    await export(bus, folder, 10)
    [one, _] = folder.listing().segments
    one.path.with_name("000000000005-000000000012.parquet").write_bytes(one.path.read_bytes())
    with pytest.raises(LakeError, match="hold some of the same events"):
        await export(bus, folder)


async def test_a_damaged_page_is_found_when_it_is_read(bus: Bus, folder: Folder) -> None:
    await publish(bus, 400)
    await export(bus, folder)
    [segment] = folder.listing().segments
    content = bytearray(segment.path.read_bytes())
    last = len(pq.read_schema(segment.path)) - 1
    column = pq.read_metadata(segment.path).row_group(0).column(last)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    segment.path.write_bytes(content)
    with pytest.raises(LakeError, match=f"{segment.path} is no whole segment") as caught:
        await in_lake(folder)
    assert caught.value.reason == "damaged"
