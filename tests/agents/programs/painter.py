"""`python painter.py URL FOLDER`: an instance of the agent `painter`, whose steps wait for a word.

A step writes a line to FOLDER/received, and goes on when there is a file FOLDER/<pid>-<step>.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_agents.worker import work
from stratum_bus import service
from stratum_bus.bus import connect
from stratum_bus.event import Event
from stratum_bus.testing import eventually
from tests.agents.programs.trip import Receiver

ACK_WAIT_SECONDS = 1.0


def painter(folder: Path) -> Agent:
    agent, receiver = Agent("painter"), Receiver(folder / "received")

    async def stroke(number: int, idempotency_key: str) -> int:
        receiver.receive(f"{os.getpid()} stroke {number}", idempotency_key)
        await eventually((folder / f"{os.getpid()}-{number}").exists, within_seconds=60)
        return os.getpid()

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> list[int]:
        strokes = []
        for number in (1, 2, 3):
            await run.send("gallery", "stroke.begun", number)
            strokes.append(await run.step(f"stroke {number}", stroke, number))
        await run.remember("picture", "painted")
        return strokes

    return agent


async def main(url: str, folder: Path) -> None:
    async with connect(url, name="painter", patience_seconds=20) as bus:
        agent = painter(folder)
        await service.run(
            lambda stop: work(bus, agent, stop=stop, ack_wait_seconds=ACK_WAIT_SECONDS)
        )


if __name__ == "__main__":
    service.log_to_stderr("painter")
    anyio.run(main, sys.argv[1], Path(sys.argv[2]))
