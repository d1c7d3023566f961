"""Command lines, in this process and in one of their own, on the server of the run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import pytest

from stratum_bus import jetstream
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import Delivery, Outcome, consume
from stratum_bus.event import agent_source, new
from stratum_bus.subject import inbox
from stratum_cli.main import main

T = TypeVar("T")
Result = subprocess.CompletedProcess[str]


class Run(Protocol):
    def __call__(self, *arguments: str, input: bytes = b"") -> Result: ...


class Log:
    """What a test does to the server beside the command line."""

    def __init__(self, url: str) -> None:
        self.url = url

    def do(self, what: Callable[[Bus], Awaitable[T]]) -> T:
        async def run() -> T:
            async with connect(self.url) as bus:
                return await what(bus)

        return anyio.run(run)

    def store(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Any bytes under any subject."""

        async def run() -> None:
            async with jetstream.connect(self.url) as connection:
                reply = await connection.request(subject, payload, headers)
                jetstream.api_answer(reply, subject)

        anyio.run(run)

    def send(self, to: str, type: str, *data: object, sender: str = "billing") -> list[int]:
        """Messages to an inbox; returns their sequences."""

        async def run(bus: Bus) -> list[int]:
            event = [new(type, each, source=agent_source(sender)) for each in data]
            return [(await bus.publish(inbox(to, sender, type), e)).sequence for e in event]

        return self.do(run)

    def handle(
        self,
        agent: str,
        count: int,
        outcome: Callable[[Delivery], Outcome | None] = lambda _: None,
        *,
        follows: Sequence[str] = (),
    ) -> None:
        """Let the agent handle `count` messages."""

        async def run(bus: Bus) -> None:
            stop, seen = anyio.Event(), 0

            async def handler(delivery: Delivery) -> Outcome | None:
                nonlocal seen
                seen += 1
                if seen == count:
                    stop.set()
                return outcome(delivery)

            await consume(bus, agent, handler, stop=stop, follows=tuple(follows))

        self.do(run)

    def bury_unreadable(self, agent: str) -> None:
        """Let the agent find a message that no handler is shown, and make a dead letter of it."""

        async def run(bus: Bus) -> None:
            stop = anyio.Event()

            async def handler(delivery: Delivery) -> Outcome | None:
                raise AssertionError("a handler was given what cannot be read")

            async def until_buried() -> None:
                async with bus.read(filters=[f"dead.{agent}.>"], follow=True) as reader:
                    await reader.batch(1, None, gather=False)
                stop.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until_buried)
                await consume(bus, agent, handler, stop=stop)

        self.do(run)

    def last_sequence(self) -> int:
        async def run(bus: Bus) -> int:
            info = await bus.connection.api("STREAM.INFO.LOG")
            return int(info["state"]["last_seq"])

        return self.do(run)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a test: empty, with nothing of Stratum in the environment."""
    for name in [name for name in os.environ if name.startswith("STRATUM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log(bus_url: str) -> Log:
    return Log(bus_url)


@pytest.fixture
def stratum(bus_url: str, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command line in this process, on clean streams."""

    def run(*arguments: str, input: bytes = b"") -> Result:
        assert not input, "give stdin to a process of its own"
        capfdbinary.readouterr()
        code = main(["--nats-url", bus_url, *arguments])
        out, err = capfdbinary.readouterr()
        return Result(arguments, code, out.decode(), err.decode())

    return run


@pytest.fixture
def process(bus_url: str) -> Run:
    """Run a command line as a user does, in a process of its own."""

    def run(*arguments: str, input: bytes = b"") -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "stratum_cli", "--nats-url", bus_url, *arguments],
            input=input, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        return Result(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def alone() -> Run:
    """As `process`, without a server."""

    def run(*arguments: str, input: bytes = b"") -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "stratum_cli", *arguments],
            input=input, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        return Result(arguments, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
