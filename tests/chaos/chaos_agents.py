"""The agents of the chaos test in Python. An order goes from clerk to smith to porter, and a text
about it to words, which is in JavaScript (examples/node-agent).

Each step of the way leaves messages and notes in the log, and the smith's step has an effect outside
of it: a line in a file, with its idempotency key. Each of them also takes what is to hurt it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import anyio
from msgspec import Struct

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_bus.event import Event

LEAK_BYTES = 1 << 20
LEAK_SECONDS = 0.05

_kept: list[bytes] = []
_leaking: list[asyncio.Task[None]] = []


class Settings(Struct):
    """`effects` is the file of the effects outside of the log."""

    effects: str = "effects.txt"


def clerk(settings: Settings) -> Agent:
    agent = _hurt(Agent("clerk", concurrency=8))

    @agent.on("order.placed")
    async def take(run: Run, event: Event[dict[str, Any]]) -> None:
        number = await run.step("check", _check, event.data["number"])
        await run.remember("order", f"took order {number}", about=event.id)
        await run.send("smith", "part.wanted", {"order": event.id, "number": number})
        await run.send("words", "text.written", {"text": f"order number {number}"})

    return agent


def smith(settings: Settings) -> Agent:
    agent = _hurt(Agent("smith", concurrency=8))

    async def forge(order: str, *, idempotency_key: str) -> str:
        await anyio.sleep(0.02)
        _write(settings.effects, f"{order} {idempotency_key}\n")
        return f"part of {order}"

    @agent.on("part.wanted")
    async def make(run: Run, event: Event[dict[str, Any]]) -> None:
        order = event.data["order"]
        part = await run.step("forge", forge, order)
        await run.publish("part.made", {"order": order, "part": part})
        await run.send("porter", "part.ready", {"order": order, "part": part})

    return agent


def porter(settings: Settings) -> Agent:
    agent = _hurt(Agent("porter", concurrency=8))

    async def walk(part: str) -> str:
        await anyio.sleep(0.03)
        return part

    @agent.on("part.ready")
    async def carry(run: Run, event: Event[dict[str, Any]]) -> None:
        await run.step("pack", walk, event.data["part"])
        await run.step("ship", walk, event.data["part"])
        await run.remember("delivery", "delivered", about=event.data["order"])

    return agent


def _write(path: str, line: str) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(line)


def _check(number: int) -> int:
    return number


def _hurt(agent: Agent) -> Agent:
    """Handlers for what is to hurt it."""

    @agent.on("chaos.poison")
    async def poison(run: Run, event: Event[Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @agent.on("chaos.block")
    async def block(run: Run, event: Event[Any]) -> None:
        while True:
            time.sleep(0.05)  # noqa: ASYNC251 - that is the fault

    @agent.on("chaos.spin")
    async def spin(run: Run, event: Event[Any]) -> None:
        while True:  # noqa: ASYNC110 - that is the fault
            await anyio.sleep(0.01)

    @agent.on("chaos.loop")
    async def loop(run: Run, event: Event[Any]) -> None:
        while True:
            await run.step("look", _look, "the same place")
            await anyio.sleep(0.05)

    @agent.on("chaos.leak")
    async def leak(run: Run, event: Event[Any]) -> None:
        _leaking.append(asyncio.get_running_loop().create_task(_leak()))

    return agent


def _look(place: str) -> str:
    return f"nothing in {place}"


async def _leak() -> None:
    while True:
        _kept.append(os.urandom(1024) * (LEAK_BYTES // 1024))
        await asyncio.sleep(LEAK_SECONDS)
