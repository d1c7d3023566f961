"""Who takes part without our code: on a bare socket, and in Node.js with the official client."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from stratum_agents.journal import Journal
from stratum_agents.run import run_id
from stratum_bus import control, dead
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, consume
from stratum_bus.event import new, typed
from stratum_bus.memory import Memory
from stratum_bus.subject import inbox
from stratum_bus.testing import eventually
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.picture import picture
from tests.flow.bare import PARTICIPANTS, bare
from tests.flow.nodejs import INSTALL_SECONDS
from tests.flow.program import program

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "protocol.md").read_text(encoding="utf-8")


# The page


def test_the_client_on_the_page_is_the_one_that_is_tested() -> None:
    source = (PARTICIPANTS / "raw.py").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert shown == source.split("\n\n", 1)[1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 45


def test_the_participants_share_no_code_with_us() -> None:
    for file in PARTICIPANTS.iterdir():
        if file.suffix in (".py", ".mjs"):
            source = file.read_text(encoding="utf-8")
            imported = re.findall(r"(?:from|import)\s+[\"']?([\w@./:-]+)", source)
            assert imported
            assert not [name for name in imported if "stratum" in name]


class Example(NamedTuple):
    """What the page sends, and what it says is answered."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    answers: list[str]


def examples(language: str = "nats") -> list[Example]:
    found: list[Example] = []
    for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            if line.startswith("→ "):
                subject, _, payload = line[2:].partition(" ")
                found.append(Example(subject, payload.encode(), {}, []))
            elif line.startswith("  "):
                name, _, value = line.strip().partition(": ")
                found[-1].headers[name] = value
            elif line.startswith("← "):
                found[-1].answers.append(line[2:])
            else:
                raise AssertionError(f"not understood: {line}")
    return found


def agrees(said: str, head: str, payload: bytes) -> bool:
    """Whether an answer is what the page says of it."""
    status = re.match(r"NATS/1\.0 (\d+)", head)
    if status:
        return said == status[1]
    if not said.startswith("{"):
        return said.replace("(empty)", "").encode() == payload
    more = re.sub(r",? *…", "", said)
    expected, answer = json.loads(more), json.loads(payload)
    if more == said:
        return bool(expected == answer)
    return bool(expected == {name: answer.get(name) for name in expected})


def play(nats: Any, example: Example) -> None:
    """Send it, and look whether it is answered as the page says."""
    nats.publish(
        example.subject, example.payload, example.headers, f"{nats.inbox}.{next(nats.number)}"
    )
    for said in example.answers:
        _, _, head, answer = nats.receive()
        assert agrees(said, head, answer), f"{example.subject} was answered {head}{answer!r}"


async def test_every_example_on_the_page_is_answered_as_it_says(bus: Bus) -> None:
    assert len(examples()) >= 35
    with bare(bus.connection.url) as nats:
        for example in examples():
            play(nats, example)
    async with bus.read() as reader:
        events = {event.id: event async for message in reader if (event := message.event())}
    assert {"LOG-1", "q-2", "inv-7", "scan-1", "inv-8", "n1-a", "rep-1"} <= events.keys()
    assert {event.type for event in events.values()} == {
        "question", "invoice.paid", "invoice.sent", "scan", "return", "assessed", "report",
        "stratum.memory.noted", "stratum.memory.revised", "stratum.dead.lettered",
        "stratum.control.restart", "stratum.run.step.completed", "stratum.run.resumed",
        "stratum.run.completed",
    }  # fmt: skip
    notes = await Memory(bus, "billing").notes()
    assert [(note.text, note.score) for note in notes][2:] == [("invoice 7 was paid late", 0.9)]
    assert [letter.letter.reason for letter in await dead.letters(bus, "research")] == ["rejected"]
    given = typed(events["LOG-15"], control.Command)
    assert (given.type, given.data.reason) == ("stratum.control.restart", "new settings")


async def test_the_runs_on_the_page_are_read_as_it_says(bus: Bus) -> None:
    with bare(bus.connection.url) as nats:
        for example in examples():
            play(nats, example)
    done = await Journal(bus, "tax", run_id("tax", "ret-1")).load()
    assert (done.state, done.origin and done.origin.sequence) == ("completed", 9)
    assert [effect.type for effect in done.effects.values()] == ["assessed"]
    open = await Journal(bus, "tax", run_id("tax", "ret-2")).load()
    assert (open.state, open.instance, open.delivery) == ("running", "tax-2", 2)
    results = {n: bytes(recorded.entry.result) for n, recorded in open.decided.items()}
    assert results == {"1": b"1000", "2": b"0.2"}


async def test_the_heartbeat_on_the_page_is_heard(bus: Bus) -> None:
    (example,) = [each for each in examples() if each.subject.startswith("health.")]
    event = new("x", None, source="/agents/x")
    with bare(bus.connection.url) as nats:
        now = json.loads(example.payload) | {"time": event.time.isoformat() if event.time else ""}
        play(nats, example._replace(payload=json.dumps(now).encode()))
    (row,) = (await picture(bus, HealthConfig(), [])).rows
    assert (row.agent, row.instance, row.state) == ("echo", "1-4711", "working")
    assert (row.in_hand, row.pid) == (1, 4711)


async def test_a_payload_over_the_limit_ends_the_connection_and_nothing_is_stored(
    bus: Bus,
) -> None:
    with bare(bus.connection.url) as nats, pytest.raises(ConnectionError, match="Maximum Payload"):
        nats.write(b"PUB inbox.research.billing.big %d" % ((1 << 20) + 1))
        nats.receive()
    with bare(bus.connection.url) as nats, pytest.raises(ConnectionError):
        nats.publish("inbox.research.billing.big", b"x" * ((1 << 20) + 1))
        nats.receive()
    with bare(bus.connection.url) as nats:
        assert nats.request("inbox.research.billing.big", b"x" * 1_000_000)["seq"] == 1


# The participants


class Research:
    """An agent of ours that a participant talks with."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []

    @asynccontextmanager
    async def working(self, bus: Bus, *follows: str) -> AsyncIterator[None]:
        stop = anyio.Event()

        async def handle(delivery: Delivery) -> None:
            self.deliveries.append(delivery)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(consume, bus, "research", handle, stop=stop, follows=tuple(follows))
            )
            yield
            stop.set()

    def received(self, type: str) -> list[Delivery]:
        return [delivery for delivery in self.deliveries if delivery.event.type == type]


async def takes_part(bus: Bus, name: str, topic: str, said: str, command: list[str]) -> None:
    """Run a participant and have the whole conversation with it."""
    research = Research()
    async with (
        research.working(bus, topic),
        program(command) as process,
    ):
        await eventually(lambda: research.received("question"), within_seconds=20)
        await eventually(lambda: research.received(topic))
        question = research.received("question")[0].event
        assert (question.id, question.source) == (f"{said}-1", f"/agents/{name}")
        assert typed(question, dict[str, str]).data == {"q": said}

        asked = new("question", {"q": "how are you?"}, source="/agents/research")
        for event in (asked, new("later", None, source="/agents/research")):
            await bus.publish(inbox(name, "research", event.type), event)
        await eventually(lambda: research.received("answer"), within_seconds=10)
        assert process.stdout is not None
        printed = b""
        while printed.count(b'"later"') < 2:  # it asks to have that again
            printed += await process.stdout.receive()
        stop = new("stop", None, source="/agents/research")
        await bus.publish(inbox(name, "research", "stop"), stop)
        printed += b"".join([chunk async for chunk in process.stdout])
        assert await process.wait() == 0
    (answer,) = research.received("answer")
    assert (answer.event.source, answer.event.causationid) == (f"/agents/{name}", asked.id)
    assert typed(answer.event, dict[str, Any]).data == {"of": {"q": "how are you?"}}
    handled = [json.loads(line)["type"] for line in printed.splitlines()]
    assert sorted(handled) == ["later", "later", "question", "stop"]
    (note,) = await Memory(bus, name).notes()
    assert (note.text, note.tags, note.score) == (f"{said} was here", (said,), 0.5)
    info = await bus.connection.api(f"CONSUMER.INFO.LOG.{name}")
    assert (info["num_ack_pending"], info["num_pending"]) == (0, 0)


async def seen_everywhere(bus: Bus, name: str, folder: Path) -> None:
    """The question of a participant, in the log, in the inbox and in SQL, by the command line."""
    url = bus.connection.url

    async def stratum(*arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "stratum_cli", *arguments, "--nats-url", url, "--json"]
        result = await anyio.run_process(command, cwd=folder)
        return [json.loads(line) for line in result.stdout.splitlines()]

    await stratum("send", "research", "question", '{"q": "cli"}', "--from", "cli")
    last = (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"]
    tables = folder / "tables.duckdb"
    projector = [sys.executable, "-m", "stratum_projections", "--url", url, "--path", str(tables)]
    async with await anyio.open_process(projector, stdout=None, stderr=None) as process:
        try:
            questions = {f"inbox.research.{sender}.question" for sender in (name, "cli")}
            tail = await stratum("tail", "--from", "start", "--count", str(last))
            in_inbox = await stratum("inbox", "research")
            query = "select id, sender from messages where receiver = 'research'"
            answered = await eventually(partial(sql, stratum, query, str(last)), within_seconds=20)
            assert len(tail) == last
            assert questions <= {row["subject"] for row in tail}
            assert questions <= {row["subject"] for row in in_inbox}
            assert {name, "cli"} <= {row["sender"] for row in answered}
            with bare(url) as nats:
                (example,) = examples("query")
                play(nats, example)
        finally:
            process.terminate()
            await process.wait()


async def sql(stratum: Any, query: str, wait_for: str) -> list[dict[str, Any]]:
    """Empty as long as no projector answers."""
    try:
        rows: list[dict[str, Any]] = await stratum("sql", query, "--wait-for", wait_for)
    except subprocess.CalledProcessError:
        return []
    return rows


async def test_a_participant_on_a_bare_socket_takes_part(bus: Bus, tmp_path: Path) -> None:
    host, _, port = bus.connection.url.removeprefix("nats://").partition(":")
    # -S: without any installed package
    command = [sys.executable, "-S", str(PARTICIPANTS / "billing.py"), host, port]
    await takes_part(bus, "billing", "invoice.paid", "raw", command)
    await seen_everywhere(bus, "billing", tmp_path)


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_a_participant_in_node_takes_part(
    bus: Bus, tmp_path: Path, in_node: Callable[..., Path]
) -> None:
    program = in_node(PARTICIPANTS / "shipping.mjs") / "shipping.mjs"
    command = ["node", str(program), bus.connection.url]
    await takes_part(bus, "shipping", "parcel.sent", "node", command)
    await seen_everywhere(bus, "shipping", tmp_path)
