"""From the stream into segments, and out of them again."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pyarrow.parquet as pq
import pytest

from stratum_bus import jetstream
from stratum_bus.errors import LakeError
from stratum_bus.message import Message
from stratum_projections.lake.export import Writing, exporter, plan, state
from stratum_projections.lake.read import read


async def test_messages_come_out_as_they_are_stored(lake: Any) -> None:
    await lake.publish(250)
    assert await lake.export(100) == [(1, 100), (101, 200), (201, 250)]
    messages = await lake.stored()
    assert await lake.messages() == messages
    assert await lake.messages(90, 110) == messages[89:110]
    assert [path.name for path in sorted(lake.folder.root.glob("*/*"))] == [
        "000000000001-000000000100.parquet",
        "000000000101-000000000200.parquet",
        "000000000201-000000000250.parquet",
    ]


async def test_whatever_anybody_stored_is_in_the_lake_byte_for_byte(lake: Any) -> None:
    binary = {"ce-id": "1", "ce-source": "/x", "ce-type": "t", "ce-specversion": "1.0"}
    stuff: list[tuple[bytes, dict[str, str] | None]] = [
        (b'{"q": 1}', None), (b"", None), (b"\xff\x00", {"Nats-Msg-Id": "m"}), (b"NaN", {}),
        (b"[" * 2000, None), (b'"x"', {**binary, "Content-Type": "a\xe9"}),
        (b"{}", {"Weird": "\xe9\xff \u2603", "ce-type": "t"}), (b"{}", {**binary, "ce-step": "é"}),
    ]  # fmt: skip
    for payload, headers in stuff:
        reply = await lake.bus.connection.request("inbox.bob.shell.t", payload, headers)
        jetstream.api_answer(reply, "inbox.bob.shell.t")
    await lake.export()
    messages = await lake.stored()
    assert [message.payload for message in messages] == [payload for payload, _ in stuff]
    assert await lake.messages() == messages
    [segment] = lake.folder.listing().segments
    rows = pq.read_table(segment.path, columns=["seq", "unreadable", "type", "subject"]).to_pylist()
    assert [row["seq"] for row in rows] == list(range(1, len(stuff) + 1))
    for row in rows:
        assert (row["unreadable"] is None) != (row["type"] is None)
        assert row["subject"] == "inbox.bob.shell.t"
    assert {row["unreadable"] for row in rows} >= {None, "json", "utf8"}


async def test_a_second_export_goes_on_behind_the_first(lake: Any) -> None:
    await lake.publish(30)
    assert await lake.export() == [(1, 30)]
    assert await lake.export() == []
    await lake.publish(5)
    assert await lake.export() == [(31, 35)]
    assert await lake.messages() == await lake.stored()


async def test_a_file_that_was_moved_away_is_exported_again(lake: Any) -> None:
    await lake.publish(50)
    await lake.export(10)
    first, _, third, *_ = lake.folder.listing().segments
    first.path.unlink()
    third.path.unlink()
    with pytest.raises(LakeError, match="does not hold LOG 1 to 10, 21 to 30") as caught:
        await lake.messages()
    assert caught.value.reason == "missing"
    assert await lake.export() == [(1, 10), (21, 30)]
    assert await lake.messages() == await lake.stored()


async def test_what_the_stream_no_longer_holds_is_read_from_the_lake(lab: Any) -> None:
    for n in range(40):
        await lab.bus.connection.request(f"lab.{n % 2}", str(n).encode())
    await lab.export(7)
    everything = await lab.stored()
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 15})

    async def through(**wishes: Any) -> list[Message]:
        async with read(lab.bus, lab.folder.lake, "LAB", **wishes) as reading:
            return list(lab.plain([message async for message in reading]))

    assert await lab.stored() == everything[25:]
    assert await through() == everything
    assert await through(start=20, end=31) == everything[19:31]
    assert await through(end=9) == everything[:9]
    assert await through(start=24, filters=["lab.1"]) == everything[23::2]
    later = everything[10].time + timedelta(microseconds=1)
    assert await through(start=later) == everything[11:]


async def test_following_goes_from_the_lake_into_what_is_yet_to_come(lab: Any) -> None:
    for n in range(9):
        await lab.put(str(n).encode())
    await lab.export(4)
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 2})
    async with read(lab.bus, lab.folder.lake, "LAB", start=3, follow=True) as reading:
        assert reading.stored == 9
        await lab.put(b"9")
        seen: list[bytes] = []
        while len(seen) < 8:
            seen += [message.payload for message in await reading.batch(3, 5, gather=False)]
    assert seen == [str(n).encode() for n in range(2, 10)]


async def test_what_is_in_neither_is_named_and_the_rest_is_exported(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        await lab.put(b"1")
    await lab.export()
    for _ in range(10):
        await lab.put(b"2")
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 6})
    assert (await plan(lab.bus, lab.folder)).lost == [(6, 9)]
    assert await lab.export() == [(10, 15)]
    assert "LAB 6 to 9 are gone, and not in the lake" in caplog.text
    async with read(lab.bus, lab.folder.lake, "LAB", start=1) as reading:
        with pytest.raises(LakeError, match="does not hold LAB 6 to 9"):
            await stored_all(reading)


async def stored_all(reading: Any) -> None:
    async for _ in reading:
        pass


async def test_messages_that_were_removed_leave_no_hole_in_the_names(lab: Any) -> None:
    for n in range(12):
        await lab.put(str(n).encode())
    for sequence in (1, 5, 6, 12):
        await lab.bus.connection.api("STREAM.MSG.DELETE.LAB", {"seq": sequence})
    assert await lab.export(3) == [(2, 6), (7, 9), (10, 12)]
    assert [m.sequence for m in await lab.messages(2)] == [2, 3, 4, 7, 8, 9, 10, 11]
    assert await lab.export() == []


async def test_a_stream_made_anew_is_noticed(lab: Any) -> None:
    await lab.put(b"1")
    await lab.export()
    await lab.make()
    for _ in range(3):
        await lab.put(b"2")
    with pytest.raises(
        LakeError, match=r"stream LAB was made anew at .* holds another one"
    ) as error:
        await lab.export()
    assert error.value.reason == "stream"
    assert [m.payload for m in await lab.messages()] == [b"1"]


async def test_a_stream_made_anew_while_it_is_read_leaves_nothing_in_the_lake(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lab.put(b"1")
    async with exporter(lab.bus, lab.folder) as ours:
        check = ours.check

        async def anew(created: str) -> None:
            await lab.make()
            await check(created)

        monkeypatch.setattr(ours, "check", anew)
        with pytest.raises(LakeError, match="made anew"):
            await ours.export()
    assert not lab.folder.listing().segments
    assert not list(lab.folder.root.glob("*/*"))


async def test_a_second_exporter_is_refused_in_one_sentence(lake: Any) -> None:
    await lake.publish(3)
    async with lake.locked("export") as pid:
        with pytest.raises(LakeError, match=f"process {pid} already writes to ") as caught:
            await lake.export()
        assert caught.value.reason == "locked"
    assert await lake.export() == [(1, 3)]


async def test_a_file_that_is_no_segment_is_named_and_not_taken_for_a_position(lake: Any) -> None:
    await lake.publish(20)
    await lake.export(10)
    day = lake.folder.listing().segments[0].path.parent
    (day / "notes.txt").write_text("hello")
    (day / "part-0.parquet").write_bytes(b"x")
    (lake.folder.root / "date=yesterday").mkdir()
    (lake.folder.root / "date=yesterday" / "1-5.parquet").write_bytes(b"x")
    assert [path.name for path in lake.folder.listing().foreign] == [
        "notes.txt", "part-0.parquet", "1-5.parquet",
    ]  # fmt: skip
    await lake.publish(5)
    assert await lake.export() == [(21, 25)]
    later = day / "000000000026-000000009999.parquet"
    later.write_bytes(b"nothing of ours")
    with pytest.raises(LakeError, match=rf"{later} is no whole segment .*: move it away"):
        await lake.export()
    os.rename(lake.folder.listing().segments[0].path, later)
    with pytest.raises(LakeError, match=r"it holds LOG 1-10, and its name says otherwise"):
        await lake.export()
    later.unlink()
    assert await lake.export() == [(1, 10)]
    assert await lake.messages() == await lake.stored()


async def test_ranges_that_overlap_in_part_are_refused(lake: Any) -> None:
    await lake.publish(20)
    await lake.export(10)
    [one, _] = lake.folder.listing().segments
    one.path.with_name("000000000005-000000000012.parquet").write_bytes(one.path.read_bytes())
    with pytest.raises(LakeError, match="hold some of the same events"):
        await lake.export()


async def test_a_damaged_page_is_found_when_it_is_read(lake: Any) -> None:
    await lake.publish(400)
    await lake.export()
    [segment] = lake.folder.listing().segments
    lake.damage(segment.path)
    with pytest.raises(LakeError, match=f"{segment.path} is no whole segment") as caught:
        await lake.messages()
    assert caught.value.reason == "damaged"


async def test_no_file_has_two_days_even_where_the_clock_was_set_back(lake: Any) -> None:
    day_ns, created = 86_400_000_000_000, (await state(lake.bus, "LOG")).created
    days = [20_000] * 5 + [20_001] * 14 + [20_000] * 3
    messages = [
        Message("LOG", n, "topic.a.t", day * day_ns + n, b"{}") for n, day in enumerate(days, 1)
    ]
    async with exporter(lake.bus, lake.folder, segment_events=10) as ours:
        writing = Writing(ours, 1, created, lambda _: None)
        for run in (messages[:5], messages[5:12], messages[12:19], messages[19:]):
            await writing.add(run)
        await writing.finish(25)
    found = [(str(each.day), each.first, each.last) for each in lake.folder.listing().segments]
    assert found == [
        ("2024-10-04", 1, 5), ("2024-10-05", 6, 12), ("2024-10-05", 13, 19),
        ("2024-10-04", 20, 25),
    ]  # fmt: skip
    assert await lake.messages() == messages
