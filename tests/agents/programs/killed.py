"""Real processes that kill themselves with SIGKILL behind an append, and others that go on.

    python killed.py URL FOLDER APPENDS

For each append there is a pair of agents `pair<n>` and `pair<n>-agency` in one process, which is
killed behind its append number n, and started again; `pair0` is not killed. Everything is imported
once; the processes are forks. The receiver of `pair<n>` is the file of that name in FOLDER.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from stratum_agents.journal import ENDS, PREFIX
from stratum_agents.run import run_id
from stratum_agents.worker import work
from stratum_bus import subject
from stratum_bus.batch import PubAck
from stratum_bus.bus import Bus, connect
from stratum_bus.event import Event
from stratum_bus.publish import Append
from stratum_bus.testing import eventually
from tests.agents.programs.trip import Receiver, agency, traveller

AT_ONCE = 24
DEADLINE_SECONDS = 45.0


class Killed(Bus):
    """A bus whose process is killed as soon as its append number `left` to a journal is stored."""

    def __init__(self, bus: Bus, left: int) -> None:
        self.__dict__.update(bus.__dict__)
        self._left = left

    async def commit(self, appends: Sequence[Append]) -> list[PubAck]:
        acks = await super().commit(appends)
        self._count(appends[-1].subject)
        return acks

    async def publish(
        self, to: str, event: Event[Any], *, expected_sequence: int | None = None
    ) -> PubAck:
        ack = await super().publish(to, event, expected_sequence=expected_sequence)
        self._count(to)
        return ack

    def _count(self, to: str) -> None:
        self._left -= to.startswith("run.")
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def live(url: str, name: str, folder: Path, killed_at: int) -> None:
    """Be the process of a pair of agents until the run of the event `one` has ended."""
    receiver = Receiver(folder / name)
    run = subject.run(name, run_id(name, "one"))
    stop = anyio.Event()
    async with connect(url, name=name, patience_seconds=20) as bus:
        mortal = Killed(bus, killed_at)
        async with anyio.create_task_group() as tasks:
            for agent in (
                traveller(receiver, fails=True, name=name, sleep_seconds=1.1),
                agency(receiver, name=name),
            ):
                tasks.start_soon(partial(work, mortal, agent, stop=stop))
            await eventually(partial(_has_ended, bus, run), within_seconds=DEADLINE_SECONDS)
            stop.set()


async def _has_ended(bus: Bus, run: str) -> bool:
    last = await bus.last(run)
    return last is not None and last.event().type.removeprefix(PREFIX) in ENDS


def _fork(url: str, folder: Path, number: int, killed_at: int) -> int:
    if child := os.fork():
        return child
    code = 1
    try:
        anyio.run(live, url, f"pair{number}", folder, killed_at)
        code = 0
    finally:
        os._exit(code)  # not what the parent has yet to do


def main(url: str, folder: Path, appends: int) -> int:
    """0 where each process was killed once, where it was to be, and its successor ended well."""
    waiting = list(range(appends + 1))
    running: dict[int, tuple[int, int]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            number = waiting.pop(0)
            running[_fork(url, folder, number, number)] = (number, number)
        child, status = os.wait()
        number, killed_at = running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        if killed_at:
            if code != -signal.SIGKILL:
                print(f"pair{number} was not killed at {killed_at}: {code}", file=sys.stderr)
                return 1
            running[_fork(url, folder, number, 0)] = (number, 0)
        elif code:
            print(f"pair{number} ended with {code}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))
