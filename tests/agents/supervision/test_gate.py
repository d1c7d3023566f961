"""A suspect is handled alone; without suspects nobody waits."""

from __future__ import annotations

import anyio

from stratum_agents.gate import Gate
from stratum_bus.tasks import task_group


class Visit:
    """One message on its way through the gate."""

    def __init__(self, gate: Gate, message: str) -> None:
        self._gate = gate
        self._message = message
        self.inside, self.leave, self.left = anyio.Event(), anyio.Event(), anyio.Event()

    async def run(self) -> None:
        async with self._gate.passed(self._message):
            self.inside.set()
            await self.leave.wait()
        self.left.set()


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_without_suspects_all_are_inside_at_once() -> None:
    gate = Gate()
    visits = [Visit(gate, f"LOG-{n}") for n in range(5)]
    async with task_group() as tasks:
        for visit in visits:
            tasks.start_soon(visit.run)
        await settled()
        assert all(visit.inside.is_set() for visit in visits)
        for visit in visits:
            visit.leave.set()


async def test_a_suspect_waits_for_those_inside_and_the_next_wait_for_it() -> None:
    gate = Gate(["LOG-2"])
    first, suspect, later = (Visit(gate, f"LOG-{n}") for n in (1, 2, 3))
    async with task_group() as tasks:
        for visit in (first, suspect, later):
            tasks.start_soon(visit.run)
            await settled()
        assert first.inside.is_set()
        assert not suspect.inside.is_set() and not later.inside.is_set()
        first.leave.set()
        await settled()
        assert suspect.inside.is_set() and not later.inside.is_set()
        suspect.leave.set()
        await settled()
        assert later.inside.is_set()
        later.leave.set()


async def test_suspects_are_handled_one_by_one_and_then_it_is_as_if_there_had_been_none() -> None:
    gate = Gate(["LOG-1", "LOG-2"])
    one, two = Visit(gate, "LOG-1"), Visit(gate, "LOG-2")
    async with task_group() as tasks:
        tasks.start_soon(one.run)
        tasks.start_soon(two.run)
        await settled()
        assert [one.inside.is_set(), two.inside.is_set()].count(True) == 1
        one.leave.set()
        two.leave.set()
        await two.left.wait()
        await one.left.wait()
        again = [Visit(gate, "LOG-1"), Visit(gate, "LOG-2")]
        for visit in again:
            tasks.start_soon(visit.run)
        await settled()
        assert all(visit.inside.is_set() for visit in again)
        for visit in again:
            visit.leave.set()


async def test_a_suspect_that_fails_lets_the_others_in() -> None:
    gate = Gate(["LOG-1"])
    try:
        async with gate.passed("LOG-1"):
            raise ValueError("as handlers do")
    except ValueError:
        pass
    visit = Visit(gate, "LOG-2")
    async with task_group() as tasks:
        tasks.start_soon(visit.run)
        await settled()
        assert visit.inside.is_set()
        visit.leave.set()
