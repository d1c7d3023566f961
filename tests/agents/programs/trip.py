"""A run with some of everything, whose outside effects go to a file that nobody takes back.

A traveller, whose run has 30 steps, messages, notes, a call, a sleep and things to undo, and the
agency that it calls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_bus.event import Event

STEPS = 30


class Receiver:
    """Where steps have their effect: a line of a file, written at once, for each time it is had."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def receive(self, what: str, key: str) -> str:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{key} {what}\n".encode())
        os.close(file)
        return f"{what} done"

    def received(self) -> list[tuple[str, str]]:
        """What was received, as (key, what), in its order."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def traveller(
    receiver: Receiver,
    *,
    fails: bool,
    name: str = "traveller",
    sleep_seconds: float = 86_400,
    again_after_seconds: float = 0.0,
) -> Agent:
    """`again_after_seconds` is how long another try of the run waits before it does anything."""
    agent = Agent(name)

    async def travel(number: int, idempotency_key: str) -> dict[str, Any]:
        return {"leg": number, "said": receiver.receive(f"leg {number}", idempotency_key)}

    async def undo(number: int, idempotency_key: str) -> str:
        return receiver.receive(f"undo {number}", idempotency_key)

    @agent.on("trip.wanted")
    async def trip(run: Run, event: Event[dict[str, Any]]) -> dict[str, Any]:
        answers = []
        if run.attempt > 1:
            await anyio.sleep(again_after_seconds)
        for number in range(1, STEPS + 1):
            if number == 5:
                run.compensate(undo, number)
            if number % 4 == 0:
                await run.send("editor", "leg.begun", {"leg": number})
            if number % 6 == 0:
                await run.remember("leg", f"leg {number} at {run.now().year}", tags=["trip"])
            if number == 12:
                answer = await run.call(f"{name}-agency", "seat.wanted", {"leg": number})
                answers.append(answer["seat"])
            if number == 20:
                await run.sleep(seconds=sleep_seconds)
            if number == 25:
                run.compensate(undo, number)
                await run.publish("trip.far", {"id": str(run.uuid()), "of": run.random().random()})
            done = await run.step(f"leg {number}", travel, number)
            answers.append(done["leg"])
        await run.send("editor", "trip.over", {"answers": answers})
        if fails:
            raise run.fail("the luggage is gone")
        return {"answers": answers}

    return agent


def agency(receiver: Receiver, *, name: str = "traveller") -> Agent:
    agent = Agent(f"{name}-agency")

    async def reserve(idempotency_key: str) -> str:
        return receiver.receive("seat", idempotency_key)

    @agent.on("seat.wanted")
    async def seat(run: Run, event: Event[dict[str, Any]]) -> dict[str, Any]:
        await run.step("reserve", reserve)
        await run.remember("seat", "one given")
        return {"seat": "12a"}

    return agent
