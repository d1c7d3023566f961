"""A lake and the stream that it is exported from."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stratum_bus.bus import Bus
from stratum_bus.event import new
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_projections.lake.export import exporter
from stratum_projections.lake.read import lake_messages
from stratum_projections.lake.segment import Folder


def plain(messages: Sequence[Message]) -> list[Message]:
    """Without the counts of what was still to come."""
    return [msgspec.structs.replace(message, pending=0) for message in messages]


def rewrite(path: Path, table: pa.Table) -> None:
    """Put other rows into a segment."""
    said = pq.read_metadata(path).metadata or {}
    pq.write_table(table.replace_schema_metadata({b"stratum": said[b"stratum"]}), path)


def damage(path: Path) -> None:
    """Flip a bit in the values of a column: within a page, where its checksum is to find it."""
    content = bytearray(path.read_bytes())
    group = pq.read_metadata(path).row_group(0)
    columns = [group.column(n) for n in range(group.num_columns)]
    largest = max(columns, key=lambda column: column.total_compressed_size)
    start = largest.dictionary_page_offset or largest.data_page_offset
    content[start + largest.total_compressed_size - 8] ^= 1
    path.write_bytes(content)


class Lake:
    """The lake of one stream."""

    plain = staticmethod(plain)
    damage = staticmethod(damage)
    rewrite = staticmethod(rewrite)

    def __init__(self, bus: Bus, path: Path, stream: str = "LOG") -> None:
        self.bus = bus
        self.stream = stream
        self.folder = Folder(path, stream)

    async def publish(self, count: int) -> None:
        """Add events to LOG."""
        events = [new("lake.test", {"n": n}, source="/test") for n in range(count)]
        await self.bus.publish_many(Append("inbox.bob.alice.lake.test", each) for each in events)

    async def make(self) -> None:
        """Create LAB, in place of one that is there."""
        config = {"name": "LAB", "subjects": ["lab.>"], "allow_direct": True}
        if "LAB" in ((await self.bus.connection.api("STREAM.NAMES")).get("streams") or []):
            await self.bus.connection.api("STREAM.DELETE.LAB")
        await self.bus.connection.api("STREAM.CREATE.LAB", config)

    async def put(self, *payloads: bytes) -> None:
        """Add messages to LAB."""
        for payload in payloads:
            await self.bus.connection.request("lab.x", payload)

    async def export(self, segment_events: int = 1000) -> list[tuple[int, int]]:
        async with exporter(self.bus, self.folder, segment_events=segment_events) as ours:
            return [(each.first, each.last) for each in await ours.export()]

    async def stored(self, start: int = 1) -> list[Message]:
        """What the stream holds."""
        async with self.bus.read(self.stream, start=start) as reader:
            return plain([message async for message in reader])

    async def messages(self, start: int = 1, end: int | None = None) -> list[Message]:
        """What the lake holds."""

        def take() -> list[Message]:
            return plain(list(lake_messages(self.folder.lake, self.stream, start, end)))

        return await anyio.to_thread.run_sync(take)

    @asynccontextmanager
    async def locked(self, kind: str) -> AsyncIterator[int]:
        """Another process holds the lock of the folder; yields its id."""
        code = (
            "import sys; from stratum_projections.lake.segment import Folder\n"
            "with Folder(*sys.argv[1:3]).locked(sys.argv[3]): print(flush=True); sys.stdin.read()"
        )
        where = (str(self.folder.lake), self.stream, kind)
        async with await anyio.open_process([sys.executable, "-c", code, *where]) as process:
            assert process.stdout and await process.stdout.receive(1) == b"\n"
            yield process.pid
            process.kill()


@pytest.fixture
def lake(bus: Bus, tmp_path: Path) -> Lake:
    return Lake(bus, tmp_path / "lake")


@pytest.fixture
async def lab(bus: Bus, tmp_path: Path) -> Lake:
    """The lake of a stream from which messages can be removed."""
    lab = Lake(bus, tmp_path / "lake", "LAB")
    await lab.make()
    return lab
