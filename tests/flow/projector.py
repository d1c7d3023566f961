"""kill -9 of the projector at random moments, while events flow and its projections change.

    python -m tests.flow.projector --kills 200 --seed 1

It dies while it starts, folds, idles and stops, and while it builds anew what was asked for by
command or by a changed version; some projections are paused meanwhile. At the end its tables have to be those
of an undisturbed fold of the log, row by row, and nothing else may be left in the file. Prints one
line of JSON; where something is wrong it exits with 1, says what on stderr, and keeps the folder.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pyarrow as pa

from stratum_bus import Bus, connect
from stratum_bus.config import Config, ProjectorConfig
from stratum_bus.message import Message
from stratum_bus.server import Server, free_port
from stratum_bus.stream import load_streams, provision
from stratum_bus.tasks import task_group
from stratum_projections import Projection, manage
from stratum_projections.__main__ import main as project
from stratum_projections.found import find
from stratum_projections.ingest import IDLE_SECONDS
from stratum_projections.projection import BESIDE
from stratum_projections.store import Store
from stratum_projections.verify import verify
from tests.projections.conftest import Log, Tables, _random_log
from tests.projections.test_views_runs import entries_at_random

EVENTS_A_KILL = 150
LIFE_SECONDS = 0.3
"""The longest that a projector has, counted from when it began to read."""

STUCK_SECONDS = 120.0
BEGAN = b" at LOG "
OWN = """
from stratum_projections import Projection

SIZES = Projection(
    name="sizes", version={version},
    tables={{"sizes": "seq bigint, size bigint"}},
    statements=("insert into sizes select seq, {version} * strlen(data::varchar) from batch",),
)
"""


class Wrong(Exception):
    """The run cannot go on."""


class Kills:
    """One run: a server, a projector again and again, and who publishes."""

    def __init__(self, folder: Path, kills: int, seed: int) -> None:
        self.folder = folder
        self.kills: Counter[str] = Counter()
        self.commands: Counter[str] = Counter()
        self.moved = 0
        self.events = 0
        self.tables = 0
        self.problems: list[str] = []
        self._planned = kills
        self._random = random.Random(seed)
        self._log = _messages(seed, EVENTS_A_KILL * (kills + 1))
        self._allowed = 0
        self._server = Server(folder / "server", port=free_port(), sync="2m")
        self._file = folder / "projection.duckdb"
        self._said = folder / "projector.log"
        self._start_seconds = 1.0
        self._position = -1
        self._process: BaseProcess | None = None
        self._spawn = multiprocessing.get_context("forkserver")
        self._spawn.set_forkserver_preload(["stratum_projections.__main__"])

    async def run(self) -> None:
        try:
            await self._server.start()
            self._version(1)
            async with connect(self._server.url) as bus:
                await provision(bus.connection, load_streams())
                async with task_group() as tasks:
                    tasks.start_soon(self._publish, bus)
                    for _ in range(self._planned):
                        await self._life(bus)
                    self._allowed = len(self._log)
                await self._settle(bus)
                async with bus.read() as reader:
                    log = [message async for message in reader]
            await anyio.to_thread.run_sync(self._compare, log)
        except Wrong as wrong:
            self.problems.append(str(wrong))
        finally:
            self._kill()
            self._server.stop()

    async def _publish(self, bus: Bus) -> None:
        sent, step = 0, 10
        while sent < len(self._log):
            if sent >= self._allowed:
                await anyio.sleep(0.005)
                continue
            for message in self._log[sent : sent + step - 1]:
                await bus.connection.send(message.subject, message.payload, message.headers)
            for message in self._log[sent + step - 1 : sent + step]:
                await bus.connection.request(message.subject, message.payload, message.headers)
            sent += step
            await anyio.sleep(0.01)

    async def _life(self, bus: Bus) -> None:
        """A projector from its start to its end."""
        chance = self._random
        if chance.random() < 0.1:
            self._version(chance.randrange(1, 4))
            self.commands["version"] += 1
        began = time.monotonic()
        self._start(chance.choice([3, 20, 200]), chance.choice([1, 5, 50]))
        if chance.random() < 0.25:
            self._allowed += EVENTS_A_KILL
            await anyio.sleep(chance.uniform(0.0, self._start_seconds))
            self.kills["starting"] += 1
        else:
            position = await self._reads()
            self._allowed += EVENTS_A_KILL
            self.moved += position > self._position
            self._position = position
            self._start_seconds = (self._start_seconds + time.monotonic() - began) / 2
            commands = chance.choices(["rebuild", "pause", "resume"], [5, 2, 3], k=3)
            commands = commands[: chance.choice([0, 0, 1, 2, 3])]
            if chance.random() < 0.7:
                await self._commits()
            moments = sorted(chance.uniform(0.0, LIFE_SECONDS) for _ in [*commands, "kill"])
            for before, moment, command in zip(
                [0.0, *moments], moments, [*commands, ""], strict=False
            ):
                await anyio.sleep(moment - before)
                if command:
                    await self._command(bus, command)
            self.kills["rebuilding" if "rebuild" in commands else await self._late()] += 1
        self._kill()

    async def _late(self) -> str:
        """Sometimes it dies only when it idles, and so moves its log into the file, or as it stops."""
        late = self._random.choices(["folding", "idle", "stopping"], [8, 1, 1])[0]
        if late == "idle":
            await anyio.sleep(IDLE_SECONDS + self._random.uniform(-0.1, LIFE_SECONDS))
        if late == "stopping" and self._process is not None:
            self._process.terminate()
            await anyio.sleep(self._random.uniform(0.0, LIFE_SECONDS))
        return late

    async def _command(self, bus: Bus, do: str) -> None:
        """Without waiting for an answer, which may never come."""
        names = [p.name for p in self._projections()]
        chosen = [] if do == "resume" else self._random.sample(names, self._random.randrange(1, 4))
        body = json.dumps({"do": do, "names": chosen}).encode()
        await bus.connection.send("manage.main", body, reply=bus.connection.new_inbox())
        self.commands[do] += 1

    def _version(self, version: int) -> None:
        (self.folder / "own.py").write_text(OWN.format(version=version))

    def _config(self) -> ProjectorConfig:
        return ProjectorConfig(projections=(str(self.folder / "own.py"),))

    def _projections(self) -> Sequence[Projection]:
        return find(Config(projector=self._config(), folder=str(self.folder)))

    def _start(self, batch_events: int, batch_milliseconds: int) -> None:
        config = {"batch_events": batch_events, "batch_milliseconds": batch_milliseconds}
        arguments = ["--url", self._server.url, "--path", str(self._file)]
        arguments += ["--folder", str(self.folder)]
        arguments += [
            "--config",
            json.dumps({"projections": [str(self.folder / "own.py")], **config}),
        ]
        self._from = _size(self._said)
        self._process = self._spawn.Process(target=_projector, args=(self._said, arguments))
        self._process.start()

    def _kill(self) -> None:
        if self._process is not None:
            if self._process.exitcode:
                self.problems.append(f"it ended by itself: {self._last_line()}")
            self._process.kill()
            self._process.join()
            self._process = None

    async def _reads(self) -> int:
        """Where it stood when it began to read."""
        give_up = time.monotonic() + STUCK_SECONDS
        while time.monotonic() < give_up:
            if self._process is None or self._process.exitcode is not None:
                raise Wrong(f"it ended by itself: {self._last_line()}")
            if self._said.exists():
                with self._said.open("rb") as said:
                    said.seek(self._from)
                    _, found, rest = said.read().partition(BEGAN)
                if found and b"\n" in rest:
                    return int(rest.split()[0])
            await anyio.sleep(0.005)
        raise Wrong(f"it did not begin to read: {self._last_line()}")

    async def _commits(self) -> None:
        """A transaction is on its way into the file."""
        log = self._file.with_name(f"{self._file.name}.wal")
        before = _size(log)
        with anyio.move_on_after(4 * LIFE_SECONDS):  # it may be too late to see it
            while _size(log) == before:  # noqa: ASYNC110 - nothing tells of it but asking
                await anyio.sleep(0.002)

    def _last_line(self) -> str:
        return self._said.read_text().rstrip().rpartition("\n")[2] if self._said.exists() else ""

    async def _settle(self, bus: Bus) -> None:
        """Undisturbed to the log's end, and verified there."""
        self._start(2_000, 20)
        await self._reads()
        await manage.resume(bus, [])
        end = int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])
        give_up = time.monotonic() + STUCK_SECONDS + self._planned
        while any(
            (each.status, each.sequence) != ("live", end) for each in await manage.states(bus)
        ):
            if time.monotonic() > give_up:
                raise Wrong(f"not everything is live at {end}: {await manage.states(bus)}")
            await anyio.sleep(0.05)
        verdict = await verify(bus, path=self._file, projections=self._projections())
        self.problems += [*verdict.gaps, *map(str, verdict.differences)]
        self.problems += [f"{each.projection} left out: {each.why}" for each in verdict.left_out]
        self.events = verdict.messages
        assert self._process is not None
        self._process.terminate()
        await anyio.to_thread.run_sync(self._process.join, STUCK_SECONDS)
        if self._process.exitcode != 0:
            self.problems.append(f"stopped with {self._process.exitcode}: {self._last_line()}")
        self._process = None

    def _compare(self, log: Sequence[Message]) -> None:
        """Its tables with those of a fold that nothing disturbed, and what else the file holds."""
        fresh = Tables(self.folder / "undisturbed.duckdb", self._projections())
        for start in range(0, len(log), 5_000):
            fresh.apply(log[start : start + 5_000])
        expected = _tables(fresh.store)
        fresh.store.close()
        store = Store.open(self._file)
        found = _tables(store)
        homes = {home for (home,) in store.execute("select home from projections")} - {"main"}
        schemas = {
            name
            for (name,) in store.execute(
                "select schema_name from duckdb_schemas() "
                "where not internal and database_name = current_database()"
            )
        } - {"main"}
        store.close()
        self.tables = len(found)
        if schemas != homes or len(homes) != len(self._projections()):
            self.problems.append(f"schemas {sorted(schemas)}, and used are {sorted(homes)}")
        for name, table in expected.items():
            if not found[name].equals(table):
                self.problems.append(f"{name} is not as it should be ({found[name].num_rows} rows)")
            for column in {"projection", "name"} & set(found[name].column_names):
                if any((value or "").endswith(BESIDE) for value in found[name][column].to_pylist()):
                    self.problems.append(f"{name} has rows of what was being built")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _projector(said: Path, arguments: list[str]) -> None:
    """The projector's process. It is forked from one that has all modules loaded: fast."""
    with said.open("ab") as log:
        os.dup2(log.fileno(), 2)
    sys.exit(project(arguments))


def _messages(seed: int, length: int) -> list[Message]:
    """All that may happen in an order that makes no sense, journals of runs among it."""
    journals = _Journals()
    entries_at_random(journals, seed, length // 5)
    others = _random_log(seed, length - length // 5)
    chance, found = random.Random(seed), list[Message]()
    rest = [iter(others)] * 4 + [iter(journals.messages)]
    while len(found) < length and (message := next(chance.choice(rest), None)):
        kept = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        found.append(Message("", 0, message.subject, 0, message.payload, kept))
    return found


class _Journals(Log):
    """With ids of its own."""

    def add(self, to: str, type: str, data: Any = None, **fields: Any) -> Any:
        return super().add(to, type, data, **{"id": f"j{len(self.messages)}", **fields})


def _tables(store: Store) -> dict[str, pa.Table]:
    """All that a file holds, in one order, but for what counts openings."""
    names = [name for (name,) in store.execute("select unnest(tables) from projections")]
    columns = {
        "checkpoint": "* exclude (epoch, created)", "projections": "* exclude (home)",
        "quarantine": "*", "ids": "*",
    }  # fmt: skip
    return {
        name: store.arrow(f"select {columns.get(name, '*')} from main.{name} order by all")
        for name in sorted([*names, *columns])
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stratum-projector-"))
    run, start = Kills(folder, asked.kills, asked.seed), time.monotonic()
    anyio.run(run.run)
    summary = {
        "ok": not run.problems, "seed": asked.seed, "kills": sum(run.kills.values()),
        "while": dict(run.kills), "versions": run.commands["version"], "moved": run.moved,
        "events": run.events, "tables": run.tables, "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    if run.problems:
        print(*run.problems, f"the file and the log are in {folder}", sep="\n", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    print(json.dumps(summary), flush=True)
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
