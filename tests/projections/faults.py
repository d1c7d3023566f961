"""Projectors as processes of their own, for the tests that do them harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from stratum_bus import testing
from stratum_bus.bus import Bus
from stratum_bus.errors import BusError, QueryError
from stratum_bus.event import new
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_projections import SHIPPED, Projection, ask, manage
from stratum_projections.verify import verify

SMALL = '{"batch_milliseconds": 5, "batch_events": 7}'
WITHIN_SECONDS = 40.0


class Process:
    """`python -m stratum_projections`; what it says is in the file `said`.

    None of its files may grow beyond `file_bytes`: what a full disk looks like without root.
    """

    def __init__(self, url: str, path: Path, *options: str, file_bytes: int | None = None) -> None:
        self.path = path
        self.said = path.with_name("said.log")
        command = [sys.executable, "-m", "stratum_projections", "--url", url, "--path", str(path)]
        limit = f"ulimit -f {file_bytes // 512} && " if file_bytes else ""
        with self.said.open("wb") as said:
            self.child = subprocess.Popen(
                ["sh", "-c", f'{limit}exec "$@"', "sh", *command, *options], stderr=said
            )

    @property
    def lines(self) -> list[str]:
        return self.said.read_text().splitlines()

    async def ended(self) -> int:
        """Its exit code."""
        return await anyio.to_thread.run_sync(partial(self.child.wait, WITHIN_SECONDS))

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.child.send_signal(number)
        return await self.ended()

    def destroy(self) -> None:
        self.child.kill()
        self.child.wait()


def sentence(process: Process) -> str:
    """The one line with which it ended."""
    lines = process.lines
    assert not any("Traceback" in line for line in lines), lines
    return lines[-1]


async def reaches(bus: Bus, sequence: int, sql: str = "select 1 as n") -> Any:
    """Wait until a projector answers as of a sequence; the first value of its answer."""

    async def once() -> list[Any]:
        try:
            answer = await ask(bus, sql, wait_for=sequence, timeout_seconds=10)
        except BusError:
            return []
        except QueryError as error:
            if error.reason not in ("no_projector", "timeout"):
                raise
            return []
        return [answer.table.to_pylist()[0].popitem()[1]]

    [found] = await testing.eventually(once, within_seconds=WITHIN_SECONDS)
    return found


async def is_right(
    bus: Bus, path: Path, projections: Sequence[Projection] = SHIPPED, sequence: int | None = None
) -> None:
    """The tables are what the log says, up to its end."""
    verdict = await verify(bus, path=path, projections=projections)
    assert verdict.gaps == []
    assert not verdict.differences, [str(each) for each in verdict.differences]
    assert not verdict.left_out
    assert verdict.sequence == (await last(bus) if sequence is None else sequence)


async def last(bus: Bus) -> int:
    return int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])


async def publish(bus: Bus, messages: Sequence[Message]) -> int:
    """Store the messages of a hand-made log as they are; returns the last sequence."""
    for message in messages:
        headers = {k: v for k, v in (message.headers or {}).items() if k != "Nats-Msg-Id"}
        await bus.connection.request(message.subject, message.payload, headers)
    return await last(bus)


async def publish_numbers(bus: Bus, count: int, text: str = "") -> int:
    events = [new("number", {"n": n, "text": text}, source="/a") for n in range(count)]
    await bus.publish_many(Append("topic.a.number", event) for event in events)
    return await last(bus)


async def becomes(bus: Bus, name: str, is_so: Callable[[manage.State], bool]) -> None:
    """Wait until a projection of the running projector is as it should be."""

    async def once() -> bool:
        try:
            return any(is_so(each) for each in await manage.states(bus) if each.name == name)
        except QueryError:
            return False

    await testing.eventually(once, within_seconds=WITHIN_SECONDS)


def state_of(pid: int) -> str:
    """One letter, as in `ps`: T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def is_root() -> bool:
    return os.geteuid() == 0
