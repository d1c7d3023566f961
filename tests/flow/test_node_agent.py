"""The agent in JavaScript under `stratum up`: killed in the middle, commanded, watched, confined."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from stratum_agents import Agent, Run
from stratum_agents.run import run_id
from stratum_agents.worker import work
from stratum_bus import control, dead
from stratum_bus.bus import Bus, connect
from stratum_bus.data_dir import locate
from stratum_bus.errors import NotFound
from stratum_bus.event import Event, agent_source, new
from stratum_bus.memory import Memory
from stratum_bus.publish import Append
from stratum_bus.server import free_port
from stratum_bus.subject import inbox
from stratum_bus.tasks import task_group
from stratum_bus.testing import eventually
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.picture import Row, picture
from tests.flow.nodejs import NODE_AGENT
from tests.flow.program import program

MESSAGES = int(os.environ.get("MESSAGES", "1500"))
KILLS = 5
PATIENCE_SECONDS = 60.0
STANDS_BEATS = 7
"""What a lost server did not answer is asked again at once; by its client's timeout, it would stand
for ten beats."""

HURRIED = """
[server]
port = {port}

[supervisor]
restarts = 1000
healthy_seconds = 0.1

[health.crash_loop]
deaths = 1000
"""


class Installation:
    """`stratum up` on a copy of the example."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    async def stratum(self, *arguments: str) -> list[dict[str, Any]]:
        """Run a command line; what it prints as JSON lines."""
        return await anyio.to_thread.run_sync(partial(self.run, *arguments))

    def run(self, *arguments: str) -> list[dict[str, Any]]:
        environ = {key: value for key, value in os.environ.items() if "STRATUM" not in key}
        done = subprocess.run(
            [sys.executable, "-m", "stratum_cli", *arguments], cwd=self.folder, env=environ,
            capture_output=True, text=True, timeout=50, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return [json.loads(line) for line in done.stdout.splitlines() if "--json" in arguments]


@pytest.fixture
def installation(in_node: Callable[..., Path]) -> Iterator[Installation]:
    folder = in_node(NODE_AGENT / "agent.js", NODE_AGENT / "package.json")
    port = free_port()
    toml = (NODE_AGENT / "stratum.toml").read_text() + HURRIED.format(port=port)
    (folder / "stratum.toml").write_text(toml)
    own = Installation(folder, f"nats://127.0.0.1:{port}")
    try:
        own.run("up", "--detach")
        yield own
    finally:
        own.run("down")


async def events(bus: Bus, *filters: str) -> list[Any]:
    """Of the log: envelope and data as they are stored."""
    async with bus.read(filters=filters) as reader:
        return [json.loads(message.payload) async for message in reader]


async def last_started(bus: Bus) -> Any:
    return (await events(bus, "control.words.started"))[-1]["data"]


async def settled(bus: Bus) -> bool:
    info = await bus.connection.api("CONSUMER.INFO.LOG.words")
    return bool(info["num_pending"] == 0 and info["num_ack_pending"] == 0)


@pytest.mark.timeout(240)
async def test_kills_in_the_middle_lose_nothing_and_double_nothing(
    installation: Installation,
) -> None:
    async with connect(installation.url, name="test", patience_seconds=20) as bus:
        asked = [
            new("text.written", {"text": "word " * (n % 7)}, source=agent_source("tester"))
            for n in range(MESSAGES)
        ]
        to = inbox("words", "tester", "text.written")
        await bus.publish_many(Append(to, event) for event in asked)
        answered = killed = 0
        running = locate(installation.folder / ".stratum")
        server = running.pid if running else 0
        assert server
        async with bus.read(filters=["inbox.tester.>"], follow=True) as reader:
            while answered < MESSAGES:
                with anyio.fail_after(PATIENCE_SECONDS):
                    answered += len(await reader.batch(1, PATIENCE_SECONDS))
                if killed < KILLS and answered > (killed + 1) * MESSAGES // (KILLS + 2):
                    os.kill((await last_started(bus))["pid"], signal.SIGKILL)
                    killed += 1
                    assert not await settled(bus)  # it was in the middle of its work
                    await eventually(partial(ended, bus, killed), within_seconds=PATIENCE_SECONDS)
                elif server and answered > (KILLS + 1) * MESSAGES // (KILLS + 2):
                    os.kill(server, signal.SIGSTOP)
                    await anyio.sleep(0.2)  # meanwhile it is asked what it will never answer
                    os.kill(server, signal.SIGKILL)
                    server = 0
        await eventually(partial(settled, bus), within_seconds=PATIENCE_SECONDS)
        assert (killed, server) == (KILLS, 0)
        await exactly_once(bus, asked)
        assert await longest_in_hand(bus) <= STANDS_BEATS


async def longest_in_hand(bus: Bus) -> int:
    """In how many beats of an instance a message was, at most."""
    beats: Counter[tuple[str, int]] = Counter()
    async with bus.read("HEALTH", filters=["health.words.>"]) as reader:
        async for message in reader:
            beat = json.loads(message.payload)["data"]
            beats.update((beat["instance"], held["sequence"]) for held in beat["in_hand"])
    return max(beats.values(), default=0)


async def ended(bus: Bus, times: int) -> bool:
    """So many processes ended, and another one runs."""
    ends = await events(bus, "control.words.ended")
    return len(ends) == times and len(await events(bus, "control.words.started")) == times + 1


async def exactly_once(bus: Bus, asked: list[Any]) -> None:
    """For each event one answer, one note and one run, as the log has them."""
    answers = await events(bus, "inbox.tester.>")
    expected = {event.id: event.data["text"].count("word") for event in asked}
    assert {each["causationid"]: each["data"]["words"] for each in answers} == expected
    for found in (answers, await events(bus, "memory.words.>"), await events(bus, "run.words.>")):
        assert Counter(each["causationid"] for each in found) == Counter(expected.keys())
    assert not await events(bus, "dead.>")
    runs = await events(bus, "run.words.>")
    assert {each["runid"] for each in runs} == {run_id("words", id) for id in expected}


async def command(bus: Bus, name: str) -> None:
    """Give a command, and wait until it is executed."""
    given = await control.give(bus, "words", name, source="/people")

    async def done() -> bool:
        outcomes = [each["data"] for each in await events(bus, "control.words.outcome")]
        return any(each["done"] for each in outcomes if each["command"] == given.id)

    await eventually(done, within_seconds=PATIENCE_SECONDS)


async def shown(bus: Bus) -> list[Row]:
    found = await picture(bus, HealthConfig(), [])
    return [row for row in found.rows if row.agent == "words"]


async def shows(bus: Bus, state: str) -> Row:
    """Wait until it is shown in a state, alone."""

    async def found() -> Row | None:
        rows = await shown(bus)
        return rows[0] if [row.state for row in rows] == [state] else None

    row = await eventually(found, within_seconds=PATIENCE_SECONDS)
    assert row is not None
    return row


@pytest.mark.timeout(240)
async def test_it_is_commanded_and_watched_like_any_other(installation: Installation) -> None:
    async with connect(installation.url, name="test") as bus:
        assert (await shows(bus, "idle")).instance == (await last_started(bus))["instance"]

        (restarted,) = await installation.stratum("agent", "restart", "words", "--json")
        assert restarted["done"]
        (end,) = await events(bus, "control.words.ended")
        assert (end["data"]["code"], end["data"].get("killed", False)) == (0, False)
        after = await last_started(bus)
        assert (after["pid"], after["instance"]) == (restarted["pid"], restarted["instance"])
        await shows(bus, "idle")
        told = {row["agent"]: row for row in await installation.stratum("health", "--json")}
        assert told["words"]["instance"] == after["instance"]

        await command(bus, "pause")
        asked = new("text.written", {"text": "word word"}, source=agent_source("tester"))
        await bus.publish(inbox("words", "tester", "text.written"), asked)
        assert (await shows(bus, "paused")).pending == 1
        await command(bus, "resume")
        await eventually(partial(settled, bus), within_seconds=PATIENCE_SECONDS)
        await exactly_once(bus, [asked])
        (run,) = await installation.stratum("run", "list", "--agent", "words", "--json")
        assert (run["state"], run["type"]) == ("completed", "text.written")
        assert [note.text for note in await Memory(bus, "words").notes()] == ["a text of 2 words"]

        await command(bus, "stop")
        ends = await events(bus, "control.words.ended")
        assert [each["data"]["code"] for each in ends] == [0, 0]
        await shows(bus, "stopped")


@asynccontextmanager
async def running(folder: Path, bus: Bus) -> AsyncIterator[None]:
    """An instance that nobody supervises; asked to end, it ends with 0."""
    command, url = ["node", "agent.js"], bus.connection.url
    async with program(command, folder=folder, STRATUM_NATS_URL=url) as process:
        yield
        process.terminate()
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await process.wait() == 0


@pytest.mark.timeout(240)
async def test_what_it_cannot_handle_is_put_aside_or_left_alone(
    bus: Bus, in_node: Callable[..., Path]
) -> None:
    to = inbox("words", "tester", "text.written")
    payloads: list[bytes] = [
        b"{not JSON",
        b'"\xff"',
        b'{"specversion": "1.0", "source": "/x", "type": "text.written"}',
        b'{"no": "text"}',
        b'{"specversion": "1.0", "id": "other", "source": "/x", "type": "constructor"}',
        b'{"specversion": "1.0", "id": "s", "source": "/x", "type": "text.written", "torun": "r1"}',
        b'{"text": "one two three"}',
    ]
    for payload in payloads:
        await bus.connection.request(to, payload)
    await bus.connection.request("control.words.run.cancel", b'{"run": "r1"}')
    async with running(in_node(NODE_AGENT / "agent.js", NODE_AGENT / "package.json"), bus):
        await eventually(partial(last_answered, bus), within_seconds=PATIENCE_SECONDS)
        await eventually(partial(settled, bus), within_seconds=PATIENCE_SECONDS)
    letters = {letter.letter.origin.sequence: letter.letter for letter in await dead.letters(bus)}
    reasons = {sequence: letter.reason for sequence, letter in letters.items()}
    assert reasons == {1: "unreadable", 2: "unreadable", 3: "unreadable", 4: "rejected"}
    assert {letter.agent for letter in letters.values()} == {"words"}
    (answer,) = await events(bus, "inbox.tester.>")
    assert (answer["data"], answer["causationid"]) == ({"words": 3}, "LOG-7")
    kinds = Counter(each["type"] for each in await events(bus, "run.words.>"))
    assert kinds == {"stratum.run.failed": 4, "stratum.run.completed": 1}


async def last_answered(bus: Bus) -> bool:
    return await bus.last("inbox.tester.words.text.counted") is not None


@pytest.mark.timeout(240)
async def test_an_instance_in_python_shares_its_work(
    bus: Bus, in_node: Callable[..., Path]
) -> None:
    words = Agent("words")

    @words.on("text.written")
    async def count(run: Run, event: Event[dict[str, str]]) -> dict[str, int]:
        counted = {"words": event.data["text"].count("word")}
        await run.send("tester", "text.counted", counted)
        await run.remember("count", "a text", data=counted)
        return counted

    folder, stop = in_node(NODE_AGENT / "agent.js", NODE_AGENT / "package.json"), anyio.Event()
    asked = [
        new("text.written", {"text": "word " * (n % 5)}, source=agent_source("tester"))
        for n in range(300)
    ]
    async with task_group() as tasks:
        tasks.start_soon(partial(work, bus, words, stop=stop, instance="in-python"))
        await eventually(partial(settled_if_there, bus), within_seconds=PATIENCE_SECONDS)
        before = await bus.connection.api("CONSUMER.INFO.LOG.words")
        async with running(folder, bus):
            await shows(bus, "idle")
            await eventually(partial(waits, bus, 2), within_seconds=PATIENCE_SECONDS)
            to = inbox("words", "tester", "text.written")
            await bus.publish_many(Append(to, event) for event in asked)
            await eventually(partial(answered, bus, 300), within_seconds=PATIENCE_SECONDS)
            await eventually(partial(settled, bus), within_seconds=PATIENCE_SECONDS)
            after = await bus.connection.api("CONSUMER.INFO.LOG.words")
        stop.set()
    await exactly_once(bus, asked)
    assert before["config"] == after["config"]
    took = Counter(each["data"]["instance"] == "in-python" for each in await events(bus, "run.>"))
    assert min(took[True], took[False]) > 0


async def settled_if_there(bus: Bus) -> bool:
    try:
        return await settled(bus)
    except NotFound:
        return False


async def waits(bus: Bus, instances: int) -> bool:
    """So many ask for messages."""
    info = await bus.connection.api("CONSUMER.INFO.LOG.words")
    return bool(info["num_waiting"] >= instances)


async def answered(bus: Bus, times: int) -> bool:
    return len(await events(bus, "inbox.tester.>")) == times
