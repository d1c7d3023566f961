"""The projector: stored events into tables, next to the same made by hand with nats-py.

200,000 events of some 370 bytes. `replay_…` reads them from the server; `fold_…` has them in memory
already, and so shows what DuckDB takes of the time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
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

from bench.harness import Line, Series, Turn, both, in_turns, report, say, server
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

EVENTS_STORED = 200_000
BATCH = 5_000
ROUNDS = 2
QUERIES = 200
AGAINST = "nats-py fetch, msgspec, Arrow, DuckDB"
SYNC = "1s"


async def run() -> None:
    say(f"projection: storing {EVENTS_STORED:,} events")
    async with server(SYNC) as url, both(url) as (bus, js):
        await bus.publish_many(_appends(EVENTS_STORED))
        with TemporaryDirectory(prefix="stratum-bench-") as folder:
            files = _names(Path(folder))
            bare = partial(_bare, js, files)
            for metric, projections in (
                ("replay_events_per_s", (EVENTS,)),
                ("replay_all_events_per_s", SHIPPED),
            ):
                say(f"projection: {metric}")
                ours, peer = await in_turns(partial(_replay, bus, files, projections), bare, ROUNDS)
                Series("projection", SYNC, AGAINST).rates(metric, ours, peer, "events/s")
            await _folded(bus, files)
            await _asked(bus, files)


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


async def _replay(bus: Bus, files: Iterator[Path], projections: Sequence[Projection]) -> float:
    """Events a second from the start of a projector on an empty file to the last row."""
    stop, config = anyio.Event(), ProjectorConfig(query_seconds=600)
    async with anyio.create_task_group() as tasks:
        start = perf_counter()
        tasks.start_soon(
            partial(project, bus, next(files), stop=stop, config=config, projections=projections)
        )
        await _reflects(bus, EVENTS_STORED)
        seconds = perf_counter() - start
        stop.set()
    return EVENTS_STORED / seconds


async def _reflects(bus: Bus, sequence: int) -> None:
    while True:
        try:
            await ask(bus, "select 1", wait_for=sequence, timeout_seconds=600)
            return
        except QueryError as error:
            if error.reason != "no_projector":
                raise
            await anyio.sleep(0.01)


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
    for metric, projections, size in (
        ("fold_events_per_s", (EVENTS,), BATCH),
        ("fold_events_per_s, batches of 20,000", (EVENTS,), 4 * BATCH),
        ("fold_all_events_per_s", SHIPPED, BATCH),
        ("fold_all_events_per_s, batches of 20,000", SHIPPED, 4 * BATCH),
    ):
        rate = await anyio.to_thread.run_sync(_fold, next(files), messages, projections, size)
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


async def _asked(bus: Bus, files: Iterator[Path]) -> None:
    """Queries through NATS, one after the other, on all the events."""
    stop, config = anyio.Event(), ProjectorConfig(query_seconds=600)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(project, bus, next(files), stop=stop, config=config))
        await _reflects(bus, EVENTS_STORED)
        for metric, sql in (
            ("point query", "select * from events where seq = {n}"),
            ("aggregate", "select type, count(*), max(seq) - {n} from events group by type"),
        ):
            samples: Turn = []
            for n in range(QUERIES):
                start = perf_counter()
                await ask(bus, sql.format(n=n * 997 % EVENTS_STORED + 1))
                samples.append(perf_counter() - start)
            median = sorted(samples)[len(samples) // 2]
            report(Line("projection", f"{metric} p50", round(median * 1e3, 3), "ms"))
        stop.set()
