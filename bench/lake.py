"""The lake: stored events into Parquet, small files into large ones, and out again.

200,000 events of some 370 bytes. Exporting is measured next to the same made by hand with nats-py,
reading next to reading the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import anyio.to_thread
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bench.harness import Line, Series, both, event, in_turns, report, say, server
from stratum_bus.bus import Bus
from stratum_bus.publish import Append
from stratum_projections.lake.compact import compact
from stratum_projections.lake.delta import Delta
from stratum_projections.lake.export import exporter
from stratum_projections.lake.hot import files
from stratum_projections.lake.read import lake_batches
from stratum_projections.lake.segment import Folder

EVENTS = 200_000
SEGMENT_EVENTS = 100_000
SMALL_EVENTS = 2_000
BATCH = 5_000
ROUNDS = 2
QUERIES = 20
SYNC = "1s"


async def run() -> None:
    say(f"lake: storing {EVENTS:,} events")
    async with server(SYNC) as url, both(url) as (bus, js):
        await bus.publish_many(
            Append(f"inbox.agent-{n % 50}.b.bench.test", event()) for n in range(EVENTS)
        )
        with TemporaryDirectory(prefix="stratum-bench-") as temporary:
            folders = _folders(Path(temporary))
            say("lake: export_events_per_s")
            export = partial(_export, bus, folders, SEGMENT_EVENTS)
            ours, peer = await in_turns(export, partial(_bare, js, folders), ROUNDS)
            series = Series("lake", SYNC, "nats-py fetch, Arrow, Parquet of the payloads alone")
            series.rates("export_events_per_s", ours, peer, "events/s")

            say("lake: read_events_per_s")
            folder = next(folders)
            await _export(bus, iter([folder]), SMALL_EVENTS)
            ours, peer = await in_turns(partial(_read, folder), partial(_stream, bus), ROUNDS)
            Series("lake", SYNC, "bus.read").rates("read_events_per_s", ours, peer, "events/s")
            await _compacted(folder)
            await _delta(folder)


def _folders(folder: Path) -> Iterator[Folder]:
    number = 0
    while True:
        number += 1
        yield Folder(folder / str(number))


async def _export(bus: Bus, folders: Iterator[Folder], segment_events: int) -> float:
    """Events a second from an empty folder to the last file on the disk."""
    async with exporter(bus, next(folders), segment_events=segment_events) as ours:
        start = perf_counter()
        await ours.export()
        return EVENTS / (perf_counter() - start)


async def _bare(js: JetStreamContext, folders: Iterator[Folder]) -> float:
    """What it takes to read and to write at all: no events, no fsync, no order of names."""
    path = next(folders).lake
    await anyio.to_thread.run_sync(partial(path.mkdir, parents=True))
    start, done = perf_counter(), 0
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    reading = await js.pull_subscribe("", stream="LOG", config=config)
    while done < EVENTS:
        messages = await reading.fetch(BATCH, timeout=5)
        table = pa.table(
            {
                "seq": [message.metadata.sequence.stream for message in messages],
                "subject": [message.subject for message in messages],
                "payload": [message.data for message in messages],
            }
        )
        write = partial(pq.write_table, table, path / f"{done}.parquet", compression="zstd")
        await anyio.to_thread.run_sync(write)
        done += len(messages)
    await reading.unsubscribe()
    return EVENTS / (perf_counter() - start)


async def _read(folder: Folder) -> float:
    """Messages a second out of the lake, as a rebuild takes them."""

    def take() -> int:
        return sum(len(batch) for batch in lake_batches(folder))

    start = perf_counter()
    assert await anyio.to_thread.run_sync(take) == EVENTS
    return EVENTS / (perf_counter() - start)


async def _stream(bus: Bus) -> float:
    start, count = perf_counter(), 0
    async with bus.read(window=2 * BATCH) as reader:
        while batch := await reader.batch(BATCH, None, gather=False):
            count += len(batch)
    assert count == EVENTS
    return EVENTS / (perf_counter() - start)


async def _compacted(folder: Folder) -> None:
    """100 files of 2,000 events into one, and what that does to a query."""
    _line("query_100_files_ms", await anyio.to_thread.run_sync(_query, folder), "ms")
    _line("bytes_per_event", _bytes(folder), "bytes")
    start = perf_counter()
    await anyio.to_thread.run_sync(partial(compact, folder, of_latest_day=2, grace_seconds=0))
    _line("compact_events_per_s", EVENTS / (perf_counter() - start), "events/s")
    _line("query_1_file_ms", await anyio.to_thread.run_sync(_query, folder), "ms")
    _line("bytes_per_event_compacted", _bytes(folder), "bytes")


def _query(folder: Folder) -> float:
    """The median of an aggregate over all rows, in milliseconds."""
    sql = f"""select agent, count(*), avg((data->>'$.n')::int)
        from {files(folder.listing().segments)} group by agent"""
    seconds = []
    with duckdb.connect() as connection:
        for _ in range(QUERIES):
            start = perf_counter()
            assert len(connection.execute(sql).fetchall()) == 50
            seconds.append(perf_counter() - start)
    return sorted(seconds)[QUERIES // 2] * 1e3


def _bytes(folder: Folder) -> float:
    return sum(segment.path.stat().st_size for segment in folder.listing().segments) / EVENTS


async def _delta(folder: Folder) -> None:
    table = Delta(folder.lake / "delta", folder)
    start = perf_counter()
    await anyio.to_thread.run_sync(table.follow)
    _line("delta_events_per_s", EVENTS / (perf_counter() - start), "events/s")


def _line(metric: str, value: float, unit: str) -> None:
    report(Line("lake", metric, round(value, 1) if value < 1000 else round(value), unit, SYNC))
