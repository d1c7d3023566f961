"""The agent of the crash test, as a process: `python crash_agent.py URL`.

Every message makes one reply and one note, committed with the end of its run.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_agents.worker import work
from stratum_bus import connect, service
from stratum_bus.event import Event

NAME = "echo"
ACK_WAIT_SECONDS = 2.0
"""Short: what a killed agent had in hand comes again soon."""

agent = Agent(NAME, concurrency=64)


@agent.on("work.asked")
async def answer(run: Run, event: Event[dict[str, Any]]) -> None:
    await run.send("sink", "work.done", {"of": event.id})
    await run.remember("note", f"did {event.data['number']}", about=event.id)


async def main(stop: anyio.Event) -> None:
    async with connect(sys.argv[1], name=NAME, patience_seconds=30) as bus:
        await work(bus, agent, stop=stop, ack_wait_seconds=ACK_WAIT_SECONDS)


if __name__ == "__main__":
    service.log_to_stderr(NAME)
    anyio.run(lambda: service.run(main, with_parent=True))
