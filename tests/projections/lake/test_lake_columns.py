"""The lake and the stream behind it, read in bulk: what the reading of single messages gives."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pyarrow as pa
import pytest

from stratum_bus.bulk import SCHEMA, TABLE_BYTES, message
from stratum_bus.errors import LakeError, NotFound
from stratum_bus.message import Message
from stratum_bus.wire import read_headers
from stratum_projections.lake.columns import blocks
from stratum_projections.lake.read import lake_tables, read_columns

ROW_GROUP_BYTES = 24 << 20
"""What an export puts into a row group at most: 8 MiB, and what then comes at once, 16 MiB."""

HEADERS = (
    None,
    {"A": "1"},
    {"A": "1", "B": "2", "C": "3"},
    {"A": "", "B": ""},
    {"A": ",", "B": ":", "C": ","},
    {",": ",", ",,": ":,:"},
    {"A": "}", "B": "{", "C": "{}"},
    {"A": '"', "B": "x"},
    {"A": '","', "B": '":"'},
    {"A": "back\\slash", "B": "a\nb"},
    {"A": "café €", "B": "\U0001f600"},
    {"{": "}", "}": "{"},
)


def messages(table: pa.Table) -> list[Message]:
    return [message(table, row, "LAB") for row in range(table.num_rows)]


async def through(lab: Any, size: int = 6, **wishes: Any) -> list[Message]:
    """A bounded reading, to its end."""
    found: list[Message] = []
    async with read_columns(lab.bus, lab.folder.lake, "LAB", **wishes) as reading:
        with anyio.fail_after(20):
            while not reading.ended:
                table = await reading.batch(size, 5)
                assert table.schema.equals(SCHEMA)
                assert table.num_rows <= size
                found += messages(table)
                if found and reading.pending == 0:
                    assert found[-1].sequence == min(wishes.get("end") or 40, reading.stored)
    return found


@pytest.mark.parametrize("headers", HEADERS)
def test_headers_are_written_as_they_were_read(headers: dict[str, str] | None) -> None:
    escaped = None if headers is None else json.dumps(headers, separators=(",", ":"))
    plain = headers and json.dumps(headers, separators=(",", ":"), ensure_ascii=False)
    for text in (escaped, plain):
        for others in ([], ['{"A":"\\n"}']):
            found = blocks(pa.array([text, *others], pa.string()))[0].as_py()
            assert (found and read_headers(found)) == headers
            assert found is None or found.startswith(b"NATS/1.0\r\n")


async def test_what_the_stream_no_longer_holds_is_read_from_the_lake(lab: Any) -> None:
    for n in range(40):
        headers = HEADERS[n % 4] if n % 3 else None
        await lab.bus.connection.request(f"lab.{n % 7}", str(n).encode(), headers)
    await lab.export(7)
    everything = await lab.stored()
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 15})

    for size in (1, 6, 1000):
        assert await through(lab, size, start=1) == everything
    assert await through(lab, start=20, end=31) == everything[19:31]
    assert await through(lab, start=3, end=9) == everything[2:9]
    assert await through(lab, start=30) == everything[29:]
    assert await through(lab, start=41) == []
    found = [m for table in lake_tables(lab.folder) for m in messages(table)]
    assert found == everything


async def test_following_goes_from_the_lake_into_what_is_yet_to_come(lab: Any) -> None:
    for n in range(9):
        await lab.put(str(n).encode())
    await lab.export(4)
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 2})
    how: dict[str, Any] = {"start": 3, "follow": True}
    async with read_columns(lab.bus, lab.folder.lake, "LAB", **how) as reading:
        assert reading.stored == 9
        await lab.put(b"9")
        seen: list[bytes] = []
        while len(seen) < 8:
            seen += [each.payload for each in messages(await reading.batch(3, 5))]
        assert reading.pending == 0
        assert not reading.ended
        assert (await reading.batch(3, 0.05)).num_rows == 0
    assert seen == [str(n).encode() for n in range(2, 10)]


async def test_what_is_in_neither_is_named(lab: Any) -> None:
    for _ in range(5):
        await lab.put(b"1")
    await lab.export()
    for _ in range(10):
        await lab.put(b"2")
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 6})
    await lab.export()
    with pytest.raises(LakeError, match="does not hold LAB 6 to 9"):
        await through(lab, start=1)


async def test_a_stream_that_is_not_there_is_named(lab: Any) -> None:
    await lab.bus.connection.api("STREAM.DELETE.LAB")
    with pytest.raises(NotFound, match="there is no stream LAB"):
        await through(lab, start=1)


async def test_nothing_is_left_on_the_server(lab: Any) -> None:
    for n in range(9):
        await lab.put(str(n).encode())
    await lab.export(4)
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 2})
    assert len(await through(lab, start=1)) == 9
    assert not (await lab.bus.connection.api("CONSUMER.NAMES.LAB")).get("consumers")


async def test_large_messages_make_small_tables(lab: Any) -> None:
    payload = b"x" * 1_000_000
    for _ in range(80):
        await lab.put(payload)
    await lab.export()
    await lab.bus.connection.api("STREAM.PURGE.LAB", {"keep": 1})
    read = 0
    async with read_columns(lab.bus, lab.folder.lake, "LAB", start=1) as reading:
        while not reading.ended:
            table = await reading.batch(1000, 5)
            assert table.nbytes < TABLE_BYTES + ROW_GROUP_BYTES
            read += table.num_rows
    assert read == 80
