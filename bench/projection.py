"""The projector: stored events into tables, next to the same made by hand with nats-py.

200,000 events of some 370 bytes, then 2,000,000: what an event costs must not depend on how many
are stored. The projector is a process of its own. `fold_…` has the events in memory already, and so
shows what decoding and DuckDB take of the time.

    python -m bench projection
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import anyio
import anyio.to_thread
import duckdb
import msgspec
import pyarrow as pa
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from bench.harness import Line, Series, both, in_turns, percentile, report, say, server
from stratum_bus import connect
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import QueryError
from stratum_bus.event import Event, new, uuid7
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_projections import SHIPPED, Projection, ask
from stratum_projections import run as project
from stratum_projections.catalog import install
from stratum_projections.fold import Fold
from stratum_projections.store import Store
from stratum_projections.views.events import EVENTS

EVENTS_STORED = int(os.environ.get("STRATUM_BENCH_EVENTS", "200000"))
TIMES_MORE = 10
BATCH = 5_000
ROUNDS = 3
LIVE_RATE = 5_000
LIVE_SECONDS = 10.0
LIVE_EVERY_SECONDS = 0.02
AGAINST = "nats-py fetch, msgspec, Arrow, DuckDB"
SYNC = "1s"
CHOICES: dict[str, Sequence[Projection]] = {"events": (EVENTS,), "all": SHIPPED}


async def run() -> None:
    say(f"projection: storing {EVENTS_STORED:,} events")
    async with server(SYNC) as url, both(url) as (bus, js):
        await bus.publish_many(_appends(EVENTS_STORED))
        with TemporaryDirectory(prefix="stratum-bench-") as folder:
            files = _names(Path(folder))
            bare = partial(_bare, js, files)
            for metric, choice in (
                ("replay_events_per_s", "events"),
                ("replay_all_events_per_s", "all"),
            ):
                say(f"projection: {metric}")
                ours, peer = await in_turns(partial(_replay, bus, files, choice), bare, ROUNDS)
                Series("projection", SYNC, AGAINST).rates(metric, ours, peer, "events/s")
            await _folded(bus, files)
            await _live(bus, files)
            await _grown(bus, files)


def _appends(count: int) -> Iterator[Append]:
    chance = random.Random(1)
    for n in range(count):
        sender, to = f"agent-{chance.randrange(50)}", f"agent-{chance.randrange(50)}"
        body = {"n": n, "text": "x" * 100, "tags": ["a", "b"], "score": round(chance.random(), 3)}
        event: Event[Any] = new("paper.published", body, source=f"/agents/{sender}")
        event = msgspec.structs.replace(event, causationid=uuid7())
        yield Append(f"inbox.{to}.{sender}.paper.published", event)


def _names(folder: Path) -> Iterator[Path]:
    """A path for each file."""
    number = 0
    while True:
        number += 1
        yield folder / f"{number}.duckdb"


@asynccontextmanager
async def _projector(bus: Bus, path: Path, choice: str) -> AsyncIterator[int]:
    """A projector in a process of its own; yields its id when it answers."""
    command = [sys.executable, "-m", "bench.projection", bus.connection.url, str(path), choice]
    async with await anyio.open_process(command, stdout=None, stderr=None) as process:
        try:
            await _reflects(bus, 0)
            yield process.pid
        finally:
            process.kill()


async def _project(url: str, path: str, choice: str) -> None:
    """What that process does."""
    pa.set_memory_pool(pa.system_memory_pool())
    config = ProjectorConfig(query_seconds=600)
    async with connect(url, name="bench-projector") as bus:
        await project(bus, path, stop=anyio.Event(), config=config, projections=CHOICES[choice])


async def _reflects(bus: Bus, sequence: int) -> None:
    while True:
        try:
            await ask(bus, "select 1", wait_for=sequence or None, timeout_seconds=600)
            return
        except QueryError as error:
            if error.reason != "no_projector":
                raise
            await anyio.sleep(0.01)


async def _replay(bus: Bus, files: Iterator[Path], choice: str) -> float:
    """Events a second from an empty file, when the projector answers, to the last row."""
    async with _projector(bus, next(files), choice):
        start, first = perf_counter(), (await ask(bus, "select 1")).sequence
        await _reflects(bus, EVENTS_STORED)
        return (EVENTS_STORED - first) / (perf_counter() - start)


async def _grown(bus: Bus, files: Iterator[Path]) -> None:
    """Replay of many more, and what the last of them cost beside the first."""
    total = EVENTS_STORED * TIMES_MORE
    say(f"projection: storing {total:,} events")
    last = int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])
    await bus.publish_many(_appends(total - last))
    for choice in CHOICES:
        say(f"projection: replay of {total:,}, {choice}")
        marks = [EVENTS_STORED // 2, EVENTS_STORED, total - EVENTS_STORED // 2, total]
        async with _projector(bus, next(files), choice) as pid:
            times, start = [], perf_counter()
            for mark in marks:
                await _reflects(bus, mark)
                times.append(perf_counter())
            memory = _most_memory(pid)
        rate = total / (times[-1] - start)
        growth = (times[3] - times[2]) / (times[1] - times[0])
        name = f"replay of {total:,}, {choice}"
        report(Line("projection", name, round(rate), "events/s", SYNC))
        report(Line("projection", f"{name}: last against first", round(growth, 2), "times", SYNC))
        report(Line("projection", f"{name}: most memory", round(memory), "MB", SYNC))


def _most_memory(pid: int) -> float:
    """The largest resident size that a process has had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    return 0.0


async def _live(bus: Bus, files: Iterator[Path]) -> None:
    """From the acknowledgement of an event to its row, while so many come in a second."""
    lags: list[float] = []
    async with _projector(bus, next(files), "all"):
        await _reflects(bus, EVENTS_STORED)
        waiting: list[tuple[float, int]] = []
        end = perf_counter() + LIVE_SECONDS

        async def watch() -> None:
            while perf_counter() < end or waiting:
                seen = (await ask(bus, "select 1")).sequence
                now = perf_counter()
                while waiting and waiting[0][1] <= seen:
                    lags.append(now - waiting.pop(0)[0])
                await anyio.sleep(0.005)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            due = perf_counter()
            while perf_counter() < end:
                await bus.publish_many(_appends(int(LIVE_RATE * LIVE_EVERY_SECONDS)))
                info = await bus.connection.api("STREAM.INFO.LOG")
                waiting.append((perf_counter(), int(info["state"]["last_seq"])))
                due += LIVE_EVERY_SECONDS
                await anyio.sleep(max(0.0, due - perf_counter()))
    for percent in (50, 99):
        value = round(percentile(lags, percent) * 1e3, 1)
        name = f"live lag at {LIVE_RATE:,}/s p{percent}"
        report(Line("projection", name, value, "ms", SYNC))


class _Envelope(msgspec.Struct):
    id: str
    source: str
    type: str
    time: str | None = None
    causationid: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


async def _bare(js: JetStreamContext, files: Iterator[Path]) -> float:
    """The same by hand: one table, and the position in the same transaction."""
    decode = msgspec.json.Decoder(_Envelope).decode
    connection = duckdb.connect(str(next(files)))
    connection.execute(
        "create table events(seq bigint, subject varchar, id varchar, source varchar, "
        "type varchar, time timestamptz, causationid varchar, data json)"
    )
    connection.execute("create table position(seq bigint)")
    connection.execute("insert into position values (0)")
    start, done = perf_counter(), 0
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    reading = await js.pull_subscribe("", stream="LOG", config=config)
    while done < EVENTS_STORED:
        messages = await reading.fetch(BATCH, timeout=5)
        events = [decode(message.data) for message in messages]
        numbers = [message.metadata.sequence.stream for message in messages]
        table = pa.table(
            {
                "seq": pa.array(numbers, pa.int64()),
                "subject": [message.subject for message in messages],
                "id": [event.id for event in events],
                "source": [event.source for event in events],
                "type": [event.type for event in events],
                "time": [event.time for event in events],
                "causationid": [event.causationid for event in events],
                "data": [bytes(event.data).decode() for event in events],
            }
        )
        await anyio.to_thread.run_sync(_insert, connection, table, numbers[-1])
        done += len(messages)
    seconds = perf_counter() - start
    await reading.unsubscribe()
    connection.close()
    return EVENTS_STORED / seconds


def _insert(connection: duckdb.DuckDBPyConnection, table: pa.Table, position: int) -> None:
    connection.register("batch", table)
    connection.execute("begin")
    connection.execute("insert into events select * from batch").fetchall()
    connection.execute("update position set seq = ?", [position]).fetchall()
    connection.execute("commit")


async def _folded(bus: Bus, files: Iterator[Path]) -> None:
    """What is left of the time when nothing has to be read."""
    messages: list[Message] = []
    async with bus.read(end=EVENTS_STORED // 2, window=10_000) as reader:
        while not reader.ended:
            messages += await reader.batch(10_000, 1)
    for metric, choice, size in (
        ("fold_events_per_s", "events", BATCH),
        ("fold_events_per_s, batches of 20,000", "events", 4 * BATCH),
        ("fold_all_events_per_s", "all", BATCH),
        ("fold_all_events_per_s, batches of 20,000", "all", 4 * BATCH),
    ):
        rate = await anyio.to_thread.run_sync(_fold, next(files), messages, CHOICES[choice], size)
        report(Line("projection", metric, round(rate), "events/s"))


def _fold(
    path: Path, messages: Sequence[Message], projections: Sequence[Projection], size: int
) -> float:
    store = Store.open(path)
    checkpoint, _ = install(store, projections)
    fold = Fold(store, checkpoint, projections)
    start = perf_counter()
    for first in range(0, len(messages), size):
        fold.apply(messages[first : first + size])
    seconds = perf_counter() - start
    store.close()
    return len(messages) / seconds


if __name__ == "__main__":
    anyio.run(partial(_project, *sys.argv[1:4]))
