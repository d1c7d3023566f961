"""An agent with just the permissions that the page gives it works, and may do nothing else."""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from stratum_bus import jetstream
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import ensure_consumer
from stratum_bus.errors import ConnectionLost
from stratum_bus.event import Event, agent_source, new
from stratum_bus.server import find_binary, free_port
from stratum_bus.stream import load_streams, provision
from stratum_bus.subject import inbox, inbox_filters
from stratum_bus.testing import eventually
from tests.flow.bare import PARTICIPANTS, bare
from tests.flow.nodejs import INSTALL_SECONDS, NODE_AGENT
from tests.flow.program import program

PAGE = (PARTICIPANTS.parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
CONFIG = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{folder}/data" }}
authorization {{
  users: [ {{ user: admin, password: "root" }}, {agent} ]
}}
"""
STARTED_SECONDS = 40.0


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """Host and port of a server with an administrator, and the agent of the page."""
    (agent,) = re.findall(r"```conf\n(.*?)```", PAGE, re.DOTALL)
    port, config = free_port(), tmp_path / "server.conf"
    agent = agent.replace('password: "…"', 'password: "secret"')
    config.write_text(CONFIG.format(port=port, folder=tmp_path, agent=agent), encoding="utf-8")
    command = [str(find_binary()), "-c", str(config)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


async def prepare(address: str) -> None:
    """What an administrator does: the streams, and the consumer of the agent."""
    url, give_up = f"nats://admin:root@{address}", time.monotonic() + STARTED_SECONDS
    while True:
        try:
            async with jetstream.connect(url, name="admin") as connection:
                await provision(connection, load_streams())
            break
        except ConnectionLost:
            assert time.monotonic() < give_up
            await anyio.sleep(0.05)
    async with connect(url, name="admin") as bus:
        filters = [*inbox_filters("words"), "control.words.run.>"]
        await ensure_consumer(bus, "words", filters)


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_the_agent_in_node_needs_no_more(guarded: str, in_node: Callable[..., Path]) -> None:
    await prepare(guarded)
    folder = in_node(NODE_AGENT / "agent.js", NODE_AGENT / "package.json")
    url = f"nats://words:secret@{guarded}"
    large = "word " * 200_000  # a blob, in chunks
    asked = [
        new("text.written", {"text": text}, source=agent_source("me")) for text in ("a", large)
    ]
    wrong: Event[dict[str, str]] = new("text.written", {}, source=agent_source("me"))
    async with (
        connect(f"nats://admin:root@{guarded}", name="test") as bus,
        program(["node", "agent.js"], folder=folder, STRATUM_NATS_URL=url) as process,
    ):
        for event in (*asked, wrong):
            await bus.publish(inbox("words", "me", "text.written"), event)
        await eventually(lambda: count(bus, "run.words.>", 3), within_seconds=STARTED_SECONDS)
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(STARTED_SECONDS):
            assert await process.wait() == 0
        async with bus.read(filters=["inbox.me.>", "memory.>", "dead.>"]) as reader:
            found = [(m.subject, json.loads(m.payload)["data"]) async for m in reader]
    subjects = sorted(subject for subject, _ in found)
    answers = [data["words"] for subject, data in found if subject.startswith("inbox.")]
    assert (
        subjects.count("inbox.me.words.text.counted") == subjects.count("memory.words.count") == 2
    )
    assert "dead.words.text.written" in subjects
    assert sorted(answers) == [1, 200_000]


async def count(bus: Bus, filter: str, wanted: int) -> bool:
    async with bus.read(filters=[filter]) as reader:
        return len([message async for message in reader]) == wanted


FORBIDDEN = [
    "inbox.words.other.text",  # to itself, as somebody else
    "inbox.me.other.text",
    "topic.other.said",
    "memory.other.note",
    "run.other.r1",
    "control.words.restart",
    "control.other.stop",
    "dead.other.x",
    "health.other.1",
    "alive.LOG.other",
    "timer.words.r1.t1",
    "query.main",
    "$JS.API.CONSUMER.MSG.NEXT.LOG.other",
    "$JS.API.CONSUMER.CREATE.LOG.words",
    "$JS.API.CONSUMER.CREATE.LOG.spy",
    "$JS.API.CONSUMER.DELETE.LOG.words",
    "$JS.API.DIRECT.GET.LOG",
    "$JS.API.DIRECT.GET.LOG.memory.other.note",
    "$JS.API.STREAM.MSG.GET.LOG",
    "$JS.API.STREAM.INFO.LOG",
    "$JS.API.STREAM.DELETE.LOG",
    "$JS.API.STREAM.UPDATE.LOG",
    "$JS.API.STREAM.PURGE.TIMERS",
    "$JS.ACK.LOG.other.1.1.1.0.0",
]


async def test_whatever_else_is_refused(guarded: str) -> None:
    await prepare(guarded)
    with bare(f"nats://{guarded}", "words", "secret") as nats:
        for subject in FORBIDDEN:
            nats.publish(subject, b"{}", reply=f"{nats.inbox}.a")
            with pytest.raises(ConnectionError, match="Permissions Violation for Publish"):
                nats.receive()
        for number, subject in enumerate(["inbox.words.>", ">", "_INBOX.>", "health.>"], 3):
            nats.write(f"SUB {subject} {number}".encode())
            with pytest.raises(ConnectionError, match="Permissions Violation for Subscription"):
                nats.receive()
        for subject, number in zip(["memory.words.note", "topic.words.x"], itertools.count(1)):
            nats.publish(subject, b"{}", reply=f"{nats.inbox}.a")
            _, _, _, answer = nats.receive()
            assert json.loads(answer) == {"stream": "LOG", "seq": number}
