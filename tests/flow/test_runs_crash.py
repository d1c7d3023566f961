"""Real processes: workers that are killed or frozen, a server that is killed, and their runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_agents.agent import Agent
from stratum_agents.journal import FIRED, RESUMED, SIGNALLED, STEP_COMPLETED, SUSPENDED, Journal
from stratum_agents.run import Run, run_id
from stratum_agents.worker import work
from stratum_bus import subject
from stratum_bus.bus import Bus, connect
from stratum_bus.event import Event, encode, new, typed
from stratum_bus.server import Server
from stratum_bus.stream import load_streams, provision
from stratum_bus.testing import eventually, server
from tests.agents.conftest import forget_ids_at_once, ids, kinds
from tests.agents.programs.trip import Receiver

PROGRAMS = Path(__file__).parents[1] / "agents" / "programs"
ROOT = Path(__file__).parents[2]
APPENDS = 44
"""How many the run of `programs/trip.py` makes together with that of its agency."""


def _program(name: str, *arguments: object) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / name), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def running() -> Iterator[Server]:
    """A server of the test's own."""
    with server() as started:
        yield started


@asynccontextmanager
async def _forgetful(running: Server) -> AsyncIterator[Bus]:
    async with connect(running.url, name="test", patience_seconds=20) as bus:
        await provision(bus.connection, load_streams())
        await forget_ids_at_once(bus)
        yield bus


async def _trip(bus: Bus, name: str) -> tuple[list[Any], list[Any]]:
    """The story of a trip and what was said on it, with its names and ids made alike."""
    agency = f"{name}-agency"
    run = run_id(name, "one")
    journal = await Journal(bus, name, run).load()
    [asked] = [id for id in await ids(bus, f"inbox.{agency}.>") if id.startswith(run)]
    alike = {run: "RUN", run_id(agency, asked): "CALLED", agency: "AGENCY", name: "NAME"}

    def like(text: str) -> str:
        for own, common in alike.items():
            text = text.replace(own, common)
        return text

    story = [
        (
            r.kind,
            r.entry.n,
            like(r.entry.name),
            b"" if r.kind == SIGNALLED else bytes(r.entry.result),
        )
        for r in journal.entries
        if r.kind not in (RESUMED, SUSPENDED, FIRED)  # a sleep may be over before its timer is set
    ]
    own = [f"inbox.*.{name}.>", f"inbox.*.{agency}.>", f"topic.{name}.>", f"memory.{name}.>"]
    own += [f"memory.{agency}.>", f"dead.{name}.>"]
    said = []
    async with bus.read(filters=own) as reader:
        async for message in reader:
            event = typed(await bus.event(message), Any)
            varies = event.type in (
                "trip.far",
                "stratum.dead.lettered",
                "stratum.run.reply.completed",
            )
            said.append((like(event.id), event.type, None if varies else event.data))
    return story, said


@pytest.mark.timeout(120)
async def test_kill_9_behind_every_single_append_changes_nothing(
    running: Server, tmp_path: Path
) -> None:
    async with _forgetful(running) as bus:
        names = [f"pair{number}" for number in range(APPENDS + 1)]
        for name in names:
            await _give(bus, f"inbox.{name}.test.trip.wanted", "one")
        with _program("killed.py", running.url, tmp_path, APPENDS) as program:
            _, complaints = await anyio.to_thread.run_sync(program.communicate)
        assert program.returncode == 0, complaints
        assert len(await ids(bus, "run.pair0.>", "run.pair0-agency.>")) == APPENDS
        story, said = await _trip(bus, "pair0")
        assert story[-1][0] == "failed"
        assert max(Counter(id for id, _, _ in said).values()) == 1
        quiet = _received(tmp_path / "pair0")
        for name in names[1:]:
            assert await _trip(bus, name) == (story, said), name
            received = _received(tmp_path / name)
            assert received.keys() == quiet.keys(), name
            # At most the step in hand, with the same key: each result behind it was stored.
            assert received.total() - quiet.total() <= 1, name


def _received(path: Path) -> Counter[tuple[str, str]]:
    return Counter((key.rpartition("-")[2], what) for key, what in Receiver(path).received())


async def _give(bus: Bus, to: str, id: str) -> None:
    """Store an event under a message id of its own, so that the log does not mind the event's."""
    event: Event[Any] = new(subject.parse(to).type, {}, source="/test", id=id)
    headers = {"Nats-Msg-Id": f"{to} {id}", "Content-Type": "application/cloudevents+json"}
    await bus.connection.request(to, encode(event), headers)


@contextmanager
def _painters(url: str, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two instances of one agent, each its own process."""
    processes = [_program("painter.py", url, folder) for _ in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


async def test_a_worker_frozen_past_its_ack_wait_is_fenced_when_it_goes_on(
    running: Server, tmp_path: Path
) -> None:
    receiver = Receiver(tmp_path / "received")

    def lines() -> list[str]:
        return [what for _, what in receiver.received()]

    async with _forgetful(running) as bus:
        with _painters(running.url, tmp_path) as (one, other):
            await _give(bus, "inbox.painter.test.picture.wanted", "one")
            await eventually(lambda: len(lines()) == 1, within_seconds=20)
            late, next_ = (one, other) if lines()[0].startswith(f"{one.pid} ") else (other, one)

            def go_on(process: subprocess.Popen[str], step: int) -> None:
                (tmp_path / f"{process.pid}-{step}").touch()

            go_on(late, 1)
            await eventually(lambda: lines()[-1] == f"{late.pid} stroke 2")
            late.send_signal(signal.SIGSTOP)
            go_on(late, 2)
            # Its time is over, and the other instance takes the run over.
            await eventually(lambda: lines()[-1] == f"{next_.pid} stroke 2", within_seconds=20)
            go_on(next_, 2)
            await eventually(lambda: lines()[-1] == f"{next_.pid} stroke 3")
            said = await ids(bus, "inbox.gallery.>")

            late.send_signal(signal.SIGCONT)
            fenced = await anyio.to_thread.run_sync(_line_with, late, "taken over")
            assert f"run {run_id('painter', 'one')} was taken over by another worker" in fenced
            assert await ids(bus, "inbox.gallery.>") == said
            go_on(next_, 3)
            journal = Journal(bus, "painter", run_id("painter", "one"))
            await eventually(partial(_ended, journal), within_seconds=20)
            assert lines() == [
                f"{late.pid} stroke 1", f"{late.pid} stroke 2",
                f"{next_.pid} stroke 2", f"{next_.pid} stroke 3",
            ]  # fmt: skip
            keys = [key for key, _ in receiver.received()]
            assert (keys[1], len(set(keys))) == (keys[2], 3)
            strokes = [bytes(r.entry.result) for r in journal.decided.values()]
            assert [int(pid) for pid in strokes] == [late.pid, next_.pid, next_.pid]
            assert kinds(journal).count(STEP_COMPLETED) == 3
            assert await ids(bus, "inbox.gallery.>") == [f"{journal.run}-{n}" for n in (1, 3, 5)]
            assert await ids(bus, "memory.painter.>") == [f"{journal.run}-7"]
            late.terminate()
            _, rest = await anyio.to_thread.run_sync(late.communicate)
            assert rest == ""  # it said so in that one line


def _line_with(process: subprocess.Popen[str], text: str) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"{text} was not said")


async def _ended(journal: Journal) -> bool:
    return (await journal.load()).end is not None


RUNS, STEPS, KILLS = 20, 8, 3


async def test_kill_9_of_the_server_while_runs_work_and_timers_are_due(
    running: Server, tmp_path: Path
) -> None:
    agent, receiver = Agent("porter", concurrency=RUNS), Receiver(tmp_path / "received")

    async def carry(number: int, idempotency_key: str) -> int:
        receiver.receive(f"piece {number}", idempotency_key)
        await anyio.sleep(0.05)
        return number

    @agent.on("piece.came")
    async def came(run: Run, event: Event[Any]) -> int:
        for number in range(STEPS):
            if number == STEPS // 2:
                await run.sleep(1.1)
            await run.send("cellar", "piece.there", number)
            await run.step(f"piece {number}", carry, number)
        await run.remember("piece", "all there")
        return STEPS

    async with _forgetful(running) as bus:
        stop = anyio.Event()
        journals = [Journal(bus, "porter", run_id("porter", f"e{n}")) for n in range(RUNS)]

        def has_received(least: float) -> bool:
            return len(receiver.received()) >= least

        async def all_ended() -> bool:
            return all([journal.end or await _ended(journal) for journal in journals])

        async with (
            connect(running.url, name="porter", patience_seconds=20) as own,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(partial(work, own, agent, stop=stop, ack_wait_seconds=5))
            for number in range(RUNS):
                await _give(bus, "inbox.porter.test.piece.came", f"e{number}")
            pieces = RUNS * STEPS
            # In the middle of steps, then while the timers are due, then of steps again.
            for share in (0.2, 0.5, 0.8):
                await eventually(partial(has_received, share * pieces), within_seconds=20)
                running.kill()
                await anyio.sleep(1.3 if share == 0.5 else 0.1)
                await running.start()
            await bus.connection.wait_connected(10)
            await eventually(all_ended, within_seconds=40)
            stop.set()
        received = Counter(receiver.received())
        assert len(received) == pieces
        assert max(received.values()) <= 1 + KILLS
        for journal in journals:
            assert journal.state == "completed"
            decided = [r.entry.name for r in journal.entries if r.kind == STEP_COMPLETED]
            assert decided == [f"step:piece {number}" for number in range(STEPS)]
        said = await ids(bus, "inbox.cellar.>", "memory.porter.>")
        assert (len(said), len(set(said))) == (pieces + RUNS, pieces + RUNS)
        assert await ids(bus, "dead.>") == []
