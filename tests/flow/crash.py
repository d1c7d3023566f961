"""kill -9 of server, agent and projector at random moments, while messages flow.

    python tests/flow/crash.py --messages 20000 --kills 8 --seed 1

Afterwards every acknowledged message has to stand in the log once and in `messages` once, none in
`quarantine`, and each has to be handled once, as seen from its effects. Prints one line of JSON;
where something is wrong it exits with 1, says what on stderr, and keeps the data folder.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from msgspec import Struct, field

from stratum_bus import Bus, connect, subject
from stratum_bus.errors import BusError, QueryError
from stratum_bus.event import new, typed
from stratum_bus.server import Server, free_port
from stratum_bus.stream import load_streams, provision
from stratum_bus.tasks import task_group
from stratum_projections.query import ask, query_file

AGENT = "echo"
VICTIMS = ("server", "agent", "projector")
PUBLISHERS = 64
EVENTS_A_MESSAGE = 4  # itself, a reply, a note, the end of its run
PATIENCE_SECONDS = 60.0
STUCK_SECONDS = 60.0
SHOWN = 10
NO_SERVER = "no server answers there"


class Wrong(Exception):
    """The run cannot go on: something did not happen in time, or ended by itself."""


class Process:
    """A Python program that is killed and started again. `name` is also that of its log."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        self._command = [sys.executable, *arguments]
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=log)

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def check(self) -> None:
        """Start it again where it ended because it came up while the server was down, as who
        supervises it would; raises Wrong where it ended by itself otherwise."""
        if self._child is None or (code := self._child.poll()) is None:
            return
        last = self._log.read_text().rstrip().rpartition("\n")[2]
        if NO_SERVER not in last:
            raise Wrong(f"the {self.name} ended by itself with exit code {code}: {last}")
        self.start()

    async def stop(self) -> None:
        """End it orderly."""
        child = self._child
        if child is None:
            return
        self.check()
        child.terminate()
        await until(lambda: child.poll() is not None, f"the {self.name} stops")
        if child.returncode != 0:
            raise Wrong(f"the {self.name} stopped with exit code {child.returncode}")


class Log(Struct):
    """What stands in the log at the end. Counters go by the id of the message that is meant."""

    length: int = 0
    messages: dict[int, str] = field(default_factory=dict)
    """Sequence to id, of all inboxes."""
    asked: dict[str, list[int]] = field(default_factory=dict)
    """Id to sequences, of the messages to the agent."""
    replies: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    runs: Counter[str] = field(default_factory=Counter)
    dead: int = 0


class Crash:
    """One run: servers and processes, those who publish, and who kills."""

    def __init__(self, folder: Path, messages: int, kills: int, seed: int, sync: str) -> None:
        self.folder = folder
        self.messages = messages
        self.kills: Counter[str] = Counter()
        self.acknowledged: dict[str, int] = {}
        self.log = Log()
        self.projected = 0
        self.problems: list[str] = []
        self._planned = kills
        self._random = random.Random(seed)
        self._server = Server(folder / "server", port=free_port(), sync=sync)
        self._file = folder / "projection.duckdb"
        url = self._server.url
        self._agent = Process(folder, "agent", str(Path(__file__).with_name("crash_agent.py")), url)
        self._projector = Process(
            folder, "projector", "-m", "stratum_projections", "--with-parent",
            "--url", url, "--path", str(self._file),
        )  # fmt: skip

    async def run(self) -> None:
        try:
            await self._server.start()
            async with connect(self._server.url, patience_seconds=PATIENCE_SECONDS) as bus:
                await provision(bus.connection, load_streams())
                self._agent.start()
                self._projector.start()
                async with task_group() as tasks:
                    numbers = iter(range(self.messages))
                    for _ in range(PUBLISHERS):
                        tasks.start_soon(self._publish, bus, numbers)
                    tasks.start_soon(self._kill_all, bus)
                await self._settle(bus)
                await self._read_log(bus)
            await anyio.to_thread.run_sync(self._compare)
        except Wrong as wrong:
            self.problems.append(str(wrong))
        finally:
            self._agent.kill()
            self._projector.kill()
            self._server.stop()

    def summary(self) -> dict[str, Any]:
        log = self.log
        return {
            "kills": dict(self.kills),
            "acknowledged": len(self.acknowledged),
            "in_log": len(log.asked),
            "in_messages": self.projected,
            "handled": sum(log.replies[id] == log.runs[id] == 1 for id in log.asked),
            "events": log.length,
            "duplicates": len(self._duplicates()),
            "lost": len(self._lost()),
        }

    async def _publish(self, bus: Bus, numbers: Iterator[int]) -> None:
        for number in numbers:
            event = new("work.asked", {"number": number}, source="/agents/load")
            try:
                ack = await bus.publish(subject.inbox(AGENT, "load", "work.asked"), event)
            except BusError as error:
                print(f"{event.id} is not acknowledged: {error}", file=sys.stderr)
            else:
                self.acknowledged[event.id] = ack.sequence

    async def _kill_all(self, bus: Bus) -> None:
        """Each victim equally often, in any order, when the log has grown to random lengths."""
        victims = [VICTIMS[i % len(VICTIMS)] for i in range(self._planned)]
        self._random.shuffle(victims)
        whole = self.messages * EVENTS_A_MESSAGE
        moments = sorted(self._random.uniform(0.01, 0.95) * whole for _ in victims)
        for victim, moment in zip(victims, moments, strict=True):
            await self._grows_to(bus, int(moment))
            await anyio.sleep(self._random.uniform(0.0, 0.02))
            print(f"kill -9 {victim} at about {int(moment)} of {whole}", file=sys.stderr)
            await self._kill(victim)
            self.kills[victim] += 1

    async def _kill(self, victim: str) -> None:
        if victim == "server":
            self._server.kill()
            await anyio.sleep(self._random.uniform(0.0, 0.3))
            await self._server.start()
        else:
            process = self._agent if victim == "agent" else self._projector
            process.kill()
            process.start()

    async def _grows_to(self, bus: Bus, length: int) -> None:
        give_up, before = time.monotonic() + STUCK_SECONDS, -1
        while (now := await _length(bus)) < length:
            self._agent.check()
            self._projector.check()
            if now > before:
                give_up, before = time.monotonic() + STUCK_SECONDS, now
            if time.monotonic() > give_up:
                raise Wrong(f"the log stopped growing at {now}")
            await anyio.sleep(0.01)

    async def _settle(self, bus: Bus) -> None:
        """Nothing is pending for the agent, and the projector is at the end of the log."""

        async def idle() -> bool:
            self._agent.check()
            info = await bus.connection.api(f"CONSUMER.INFO.LOG.{AGENT}")
            return not info["num_pending"] and not info["num_ack_pending"]

        async def projected() -> bool:
            self._projector.check()
            return (await ask(bus, "select 1", wait_for=end)).sequence >= end

        await until(idle, "the agent has handled everything")
        await self._agent.stop()
        end = await _length(bus)
        await until(projected, f"the projector is at {end}")
        await self._projector.stop()

    async def _read_log(self, bus: Bus) -> None:
        log = self.log
        async with bus.read() as reader:
            async for message in reader:
                log.length += 1
                event = typed(message.event(), dict[str, Any])
                place = subject.parse(message.subject)
                if place.role == "inbox":
                    log.messages[message.sequence] = event.id
                if place.to == AGENT:
                    log.asked.setdefault(event.id, []).append(message.sequence)
                elif place.role == "inbox":
                    log.replies[event.data["of"]] += 1
                elif place.role == "memory":
                    log.notes[event.data["about"]] += 1
                elif place.role == "run":
                    log.runs[event.causationid or ""] += 1
                else:
                    log.dead += place.role == "dead"

    def _compare(self) -> None:
        log, acknowledged = self.log, self.acknowledged
        self._none("acknowledged, not in the log", self._lost())
        self._none("more than once in the log", self._duplicates())
        moved = [i for i, at in acknowledged.items() if at not in log.asked.get(i, [at])]
        self._none("acknowledged with another sequence than that in the log", moved)
        for name, count in (("replies", log.replies), ("notes", log.notes), ("runs", log.runs)):
            wrong = [f"{i} ({count[i]})" for i in log.asked if count[i] != 1]
            self._none(f"with another number of {name} than one", wrong)
            self._none(f"unknown, but with {name}", set(count) - set(log.asked))
        if log.dead:
            self.problems.append(f"{log.dead} dead letters")
        rows = self._select("select seq, id, receiver, state from messages")
        table = dict(zip(rows["seq"], rows["id"], strict=True))
        self.projected = sum(receiver == AGENT for receiver in rows["receiver"])
        self._none("in the log, not in `messages`", set(log.messages.items()) - set(table.items()))
        self._none("in `messages`, not in the log", set(table.items()) - set(log.messages.items()))
        self._none("twice in `messages`", [i for i, n in Counter(rows["id"]).items() if n > 1])
        states = zip(rows["id"], rows["receiver"], rows["state"], strict=True)
        open_ones = [
            i for i, receiver, state in states
            if receiver == AGENT and state in ("sent", "delivered")
        ]  # fmt: skip
        self._none("not handled in `messages`", open_ones)
        self._none("in `quarantine`", self._select("select seq from quarantine")["seq"])
        (events,) = self._select("select count(*) as n from events")["n"]
        if events != log.length:
            self.problems.append(f"{events} of {log.length} events are in `events`")

    def _lost(self) -> list[str]:
        return [id for id in self.acknowledged if id not in self.log.asked]

    def _duplicates(self) -> list[str]:
        return [id for id, sequences in self.log.asked.items() if len(sequences) > 1]

    def _select(self, sql: str) -> dict[str, list[Any]]:
        answer = query_file(self._file, sql, timeout_seconds=60, max_rows=100_000_000)
        found: dict[str, list[Any]] = answer.table.to_pydict()
        return found

    def _none(self, what: str, found: Collection[Any]) -> None:
        if found:
            some = ", ".join(str(each) for each in sorted(found)[:SHOWN])
            self.problems.append(f"{len(found)} {what}: {some}")


async def until(check: Callable[[], bool | Awaitable[bool]], what: str) -> None:
    """Ask until it is so, also through a server that is away; raises Wrong after STUCK_SECONDS."""
    give_up = time.monotonic() + STUCK_SECONDS
    while time.monotonic() < give_up:
        with suppress(BusError, QueryError):
            answer = check()
            if await answer if inspect.isawaitable(answer) else answer:
                return
        await anyio.sleep(0.05)
    raise Wrong(f"not within {STUCK_SECONDS:g} s: {what}")


async def _length(bus: Bus) -> int:
    """The log's last sequence, or -1 while the server is away."""
    try:
        return int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])
    except BusError:
        return -1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sync", default="always", help="the server's sync_interval")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stratum-crash-"))
    crash = Crash(folder, asked.messages, asked.kills, asked.seed, asked.sync)
    start = time.monotonic()
    anyio.run(crash.run)
    summary = {"seed": asked.seed, **crash.summary(), "seconds": round(time.monotonic() - start, 1)}
    print(json.dumps(summary), flush=True)
    if crash.problems:
        print(*crash.problems, f"the data and the logs are in {folder}", sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
