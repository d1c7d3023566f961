"""The lake through kill -9, a full disk, and beside a projector that lives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pyarrow.parquet as pq
import pytest
from anyio.streams.text import TextReceiveStream
from deltalake import DeltaTable

from stratum_bus import testing
from stratum_bus.bus import Bus
from stratum_bus.config import LakeConfig
from stratum_bus.errors import LakeError, QueryError
from stratum_bus.tasks import task_group
from stratum_projections import ask, run
from stratum_projections.lake.segment import Folder
from stratum_projections.lake.verify import Verified, verify

KILLS = 30
eventually = partial(testing.eventually, within_seconds=20.0)
EVENTS = 600
"""More than an exporter that is killed can write, so there are always so many to do."""
LOG = {"name": "LOG", "subjects": ["inbox.>", "topic.>"], "allow_direct": True,
       "allow_atomic": True}  # fmt: skip
"""A log that can be trimmed."""


async def test_no_kill_doubles_or_loses_an_event(lake: Any, tmp_path: Path) -> None:
    """Export, compaction and Delta table, killed 30 times at any moment."""
    chance, stored = random.Random(4), 0
    program = Path(__file__).with_name("kill.py")
    where = (lake.bus.connection.url, str(lake.folder.lake), str(tmp_path / "delta"))
    strays, positions = 0, {0}
    async with await anyio.open_process([sys.executable, str(program), *where]) as process:
        assert process.stdin and process.stdout
        lines = _Lines(TextReceiveStream(process.stdout))

        async def start() -> int:
            assert process.stdin
            await process.stdin.send(f"{stored}\n".encode())
            return int(await lines.next())

        for kill in range(KILLS):
            if stored - lake.folder.listing().last < EVENTS:
                await lake.publish(EVENTS)
                stored += EVENTS
            before = files(lake.folder)
            exporter = await start()
            pattern = "*.parquet" if kill % 2 else "*"  # something was finished, or begun
            await eventually(partial(written, lake.folder, before, pattern))
            await anyio.sleep(chance.uniform(0, 0.08))
            os.kill(exporter, signal.SIGKILL)
            assert await lines.next() == "ended"
            found = lake.folder.listing()
            assert found.missing(1, found.last) == []
            strays += len(lake.folder.strays("export")) + len(lake.folder.strays("compact"))
            positions.add(found.last)
        await start()
        assert await lines.next() == "ended"
    assert strays > 0, "it was never killed while it wrote"
    assert len(positions) > KILLS / 3, "it was mostly killed before it wrote"
    assert not lake.folder.strays("export")
    assert await lake.messages() == await lake.stored()
    found = await verify(lake.bus, lake.folder)
    assert (found.events, found.compared, found.findings) == (stored, stored, [])
    assert _sequences(tmp_path / "delta", stored) == list(range(1, stored + 1))


def files(folder: Folder, pattern: str = "*") -> set[tuple[str, int]]:
    found = folder.root.glob(f"date=*/{pattern}")
    return {(path.name, path.stat().st_mtime_ns) for path in found}


def written(folder: Folder, before: set[tuple[str, int]], pattern: str) -> bool:
    """Whether something was written since, not only removed."""
    with suppress(FileNotFoundError):
        return bool(files(folder, pattern) - before)
    return False


def _sequences(delta: Path, stored: int) -> list[int]:
    table = DeltaTable(str(delta))
    assert table.transaction_version("stratum:LOG") == stored
    rows = table.to_pyarrow_table(columns=["seq"]).sort_by("seq")
    return [row["seq"] for row in rows.to_pylist()]


class _Lines:
    def __init__(self, stream: TextReceiveStream) -> None:
        self._stream = stream
        self._held = ""

    async def next(self) -> str:
        while "\n" not in self._held:
            self._held += await self._stream.receive()
        line, _, self._held = self._held.partition("\n")
        return line


async def test_a_full_disk_is_said_and_what_was_written_stays(lake: Any, tmp_path: Path) -> None:
    await lake.publish(3000)
    with disk(tmp_path / "lake", "size=300k"):
        with pytest.raises(LakeError, match=r"the lake in .*/stream=LOG: no space left") as caught:
            await lake.export(100)
        assert caught.value.reason == "folder"
        listing = lake.folder.listing()
        assert 0 < listing.last < 3000
        assert listing.missing(1, listing.last) == []
        assert not lake.folder.strays("export")
        assert await lake.messages() == (await lake.stored())[: listing.last]
        resize(tmp_path / "lake", "size=20m")
        await lake.export(1000)
        assert await lake.messages() == await lake.stored()


async def test_a_folder_that_cannot_be_written_is_said(lake: Any) -> None:
    lake.folder.lake.write_text("a file")
    await lake.publish(1)
    with pytest.raises(LakeError, match=r"cannot write the lake in .*: not a directory"):
        await lake.export()


@contextmanager
def disk(folder: Path, options: str) -> Iterator[None]:
    """A small file system of its own; only root may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("this test mounts a small tmpfs: run it as root on Linux")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{size}", str(folder)], check=True)


@asynccontextmanager
async def projecting(bus: Bus, path: Path, lake: LakeConfig) -> AsyncIterator[None]:
    stop = anyio.Event()
    async with task_group() as tasks:

        async def project() -> None:
            await run(bus, path, stop=stop, lake=lake)

        tasks.start_soon(project)
        yield
        stop.set()


async def one(bus: Bus, sql: str, wait_for: int | None = None) -> Any:
    async def asked() -> Any:
        try:
            return await ask(bus, sql, wait_for=wait_for)
        except QueryError as error:
            if error.reason not in ("no_projector", "syntax"):
                raise  # the view is there a moment after the projector
            return None

    answer = await eventually(asked)
    return next(iter(answer.table.to_pylist()[0].values()))


@pytest.fixture
def config(tmp_path: Path) -> LakeConfig:
    return LakeConfig(
        path=str(tmp_path / "lake"), delta=str(tmp_path / "delta"), segment_events=100,
        segment_seconds=0.2,
    )  # fmt: skip


async def test_a_projector_keeps_the_lake_while_events_come(
    lake: Any, tmp_path: Path, config: LakeConfig
) -> None:
    async with projecting(lake.bus, tmp_path / "p.duckdb", config):
        await lake.publish(250)
        await eventually(lambda: lake.folder.listing().last == 250)
        await lake.publish(30)
        await eventually(lambda: lake.folder.listing().last == 280)
        assert await one(lake.bus, "select count(*) from all_events", 280) == 280
        await eventually((tmp_path / "delta" / "_delta_log").exists)
    names = [(segment.first, segment.last) for segment in lake.folder.listing().segments]
    assert (1, 100) in names and (101, 200) in names
    assert not lake.folder.strays("export")
    assert await lake.messages() == await lake.stored()


async def test_a_lake_that_cannot_be_written_does_not_stop_the_projector(
    lake: Any, tmp_path: Path, config: LakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lake").write_text("a file")
    async with projecting(lake.bus, tmp_path / "p.duckdb", config):
        await lake.publish(20)
        assert await one(lake.bus, "select count(*) from events", 20) == 20
        await eventually(lambda: "cannot write the lake" in caplog.text)


async def test_tables_are_built_from_the_lake_where_the_log_was_trimmed(
    lake: Any, tmp_path: Path, config: LakeConfig
) -> None:
    await lake.bus.connection.api("STREAM.DELETE.LOG")
    await lake.bus.connection.api("STREAM.CREATE.LOG", LOG)
    await lake.publish(300)
    sql = "select md5(string_agg(events::text, '' order by seq)) from events"
    async with projecting(lake.bus, tmp_path / "first.duckdb", config):
        await eventually(lambda: lake.folder.listing().last == 300)
        expected = await one(
            lake.bus, "select md5(string_agg(events::text, '' order by seq)) from events", 300
        )
    await lake.bus.connection.api("STREAM.PURGE.LOG", {"keep": 40})
    async with projecting(lake.bus, tmp_path / "second.duckdb", config):
        assert await one(lake.bus, sql, 300) == expected
    first = lake.folder.listing().segments[0]
    first.path.unlink()
    with pytest.raises(LakeError, match=f"does not hold LOG 1 to {first.last}"):
        async with projecting(lake.bus, tmp_path / "third.duckdb", config):
            await anyio.sleep_forever()


async def test_the_lake_of_another_log_is_left_alone(
    lake: Any, tmp_path: Path, config: LakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    await lake.publish(20)
    await lake.export()
    await testing.fresh(lake.bus.connection.url)
    await lake.publish(5)
    async with projecting(lake.bus, tmp_path / "p.duckdb", config):
        assert await one(lake.bus, "select count(*) from events", 5) == 5
        await eventually(lambda: "was made anew" in caplog.text)
    assert lake.folder.listing().last == 20
    assert await verify(lake.bus, Folder(tmp_path / "lake")) != Verified()
    assert pq.read_metadata(lake.folder.listing().segments[0].path).num_rows == 20
