"""Cancelling, wherever the run is; its children too. Pausing, across restarts."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import pytest

from stratum_agents.agent import Agent
from stratum_agents.failure import CallFailed, StepFailed
from stratum_agents.journal import (
    CANCELLED,
    COMPENSATING,
    FIRED,
    RESUMED,
    SIGNALLED,
    Journal,
)
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import runs
from stratum_agents.worker import Worker
from stratum_bus.bus import Bus
from stratum_bus.consume import Done
from stratum_bus.event import Event, new
from tests.agents.conftest import ids, kinds, stored, text


class Builder:
    """Builds two walls with a night in between; what is undone is said."""

    def __init__(self) -> None:
        self.agent = Agent("builder")
        self.undone: list[str] = []
        self.begun, self.go_on = anyio.Event(), anyio.Event()
        self.held = ""

        @self.agent.on("house.wanted")
        async def wanted(run: Run, event: Event[Any]) -> str:
            for wall in ("north", "south"):
                run.compensate(self.undo, wall)
                await run.step(wall, self.build, wall)
                await run.send("owner", "wall.built", wall)
                await run.sleep(days=1)
            return "built"

    async def build(self, wall: str) -> str:
        await self._hold(wall)
        return f"{wall} wall"

    async def undo(self, wall: str) -> None:
        await self._hold(f"undo {wall}")
        self.undone.append(wall)

    async def _hold(self, what: str) -> None:
        if self.held == what:
            self.begun.set()
            await self.go_on.wait()


async def test_a_run_is_cancelled_while_it_sleeps(bus: Bus) -> None:
    builder = Builder()
    async with runs(bus, builder.agent) as kit:
        run = await kit.start("house.wanted")
        await kit.advance(days=1)
        await kit.cancel(run)
        journal = await kit.journal(run)
        assert (journal.state, builder.undone) == (CANCELLED, ["south", "north"])
        # The message that was sent stays; the one behind the last entry was never said.
        assert await ids(bus, "inbox.owner.>") == [f"{run}-2", f"{run}-5"]
        await kit.advance(days=30)
        assert kinds(await kit.journal(run)) == kinds(journal)


@pytest.mark.parametrize("held", ["south", "undo south"])
async def test_a_run_is_cancelled_while_it_works_or_is_being_undone(bus: Bus, held: str) -> None:
    builder = Builder()
    async with runs(bus, builder.agent) as kit:
        run = await kit.start("house.wanted")
        builder.held = held
        async with anyio.create_task_group() as tasks:
            if held == "south":
                tasks.start_soon(lambda: kit.advance(days=1))
            else:
                await kit.advance(days=1)
                tasks.start_soon(kit.cancel, run)
            await builder.begun.wait()
            command = new("stratum.control.run.cancel", {"run": run}, source="/test", id="again")
            told = await stored(bus, "control.builder.run.cancel", command)
            assert await Worker(bus, builder.agent).handle(told) == Done()
            builder.go_on.set()
        journal = await kit.journal(run)
        assert (journal.state, builder.undone) == (CANCELLED, ["south", "north"])
        assert kinds(journal).count(COMPENSATING) == 1
        # What the step in hand brought was journaled before it was undone.
        assert "step:south" in [r.entry.name for r in journal.decided.values()]


async def test_a_cancelled_run_whose_process_dies_at_any_append_is_undone_once(bus: Bus) -> None:
    for at in itertools.count(1):
        builder = Builder()
        async with runs(bus, builder.agent) as kit:
            run = await kit.start("house.wanted")
            await kit.advance(days=1)
            kit.crash(at, stored=True)
            await kit.cancel(run)
            journal = await kit.journal(run)
            assert (journal.state, builder.undone) == (CANCELLED, ["south", "north"])
            if not kit.crashed:
                break
    assert at == 7


async def test_a_run_cancelled_before_it_begins_does_nothing(bus: Bus) -> None:
    builder = Builder()
    async with runs(bus, builder.agent) as kit:
        run = run_id("builder", "later")
        await kit.cancel(run)
        await kit.start("house.wanted", id="later")
        journal = await kit.journal(run)
        assert journal.state == CANCELLED
        assert "step:north" not in [r.entry.name for r in journal.decided.values()]
        assert await ids(bus, "inbox.owner.>") == []


async def test_a_handler_that_catches_everything_is_cancelled_all_the_same(bus: Bus) -> None:
    agent = Agent("builder")
    tried: list[str] = []

    async def build(what: str) -> None:
        tried.append(what)

    @agent.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        try:
            await run.sleep(days=1)
        finally:
            tried.append("finally")
            await run.step("clean", build, "clean")
        return "built"

    async with runs(bus, agent) as kit:
        run = await kit.start("house.wanted")
        assert tried == ["finally"]  # it is left while it waits
        await kit.cancel(run)
        assert (await kit.journal(run)).state == CANCELLED
        assert "clean" not in tried


async def test_what_a_handler_does_at_last_is_not_done_while_the_run_waits(bus: Bus) -> None:
    """It is left by an exception then, and its `finally` runs: for nothing that is journaled."""
    agent = Agent("builder")
    cleaned: list[str] = []

    async def clean(what: str) -> None:
        cleaned.append(what)

    async def branch(run: Run, name: str, days: int) -> None:
        try:
            await run.sleep(days=days)
        finally:
            await run.step(f"clean {name}", clean, name)

    @agent.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        try:
            await run.gather(lambda run: branch(run, "a", 1), lambda run: branch(run, "b", 2))
        finally:
            await run.step("clean all", clean, "all")
        return "built"

    async with runs(bus, agent) as kit:
        run = await kit.start("house.wanted")
        assert cleaned == []
        await kit.advance(days=1)
        assert cleaned == ["a"]
        await kit.advance(days=1)
        assert cleaned == ["a", "b", "all"]
        assert await kit.result(run) == "built"


async def test_children_are_cancelled_with_their_parent_and_their_failure_comes_up(
    bus: Bus,
) -> None:
    parent, child = Agent("parent"), Agent("child")

    @parent.on("work.wanted")
    async def wanted(run: Run, event: Event[Any]) -> Any:
        children = [await run.spawn("part.wanted", name, agent="child") for name in "ab"]
        return [await each.result() for each in children]

    @child.on("part.wanted")
    async def part(run: Run, event: Event[str]) -> str:
        word = text(await run.wait_for("word"))
        if word == '"no"':
            raise run.fail("it cannot be done")
        return f"{event.data} {word}"

    async with runs(bus, parent, child) as kit:
        run = await kit.start("work.wanted")
        children = [run_id("child", f"{run}-{n}") for n in (1, 2)]
        states = [(await kit.journal(each, "child")).state for each in children]
        assert states == ["waiting", "waiting"]
        await kit.cancel(run)
        assert (await kit.journal(run)).state == CANCELLED
        assert [(await kit.journal(each, "child")).state for each in children] == [CANCELLED] * 2

        other = await kit.start("work.wanted")
        first, second = (run_id("child", f"{other}-{n}") for n in (1, 2))
        await kit.signal(first, "word", "no", agent="child")
        journal = await kit.journal(other)
        assert journal.state == "failed"
        assert journal.end is not None
        assert journal.end.entry.error is not None
        assert journal.end.entry.error.type == CallFailed.__name__
        assert "it cannot be done" in journal.end.entry.error.message
        # A failing parent takes its other children with it.
        assert (await kit.journal(second, "child")).state == CANCELLED


async def test_an_undo_that_fails_is_said_and_the_others_are_done(bus: Bus) -> None:
    agent = Agent("builder")
    undone: list[str] = []

    async def undo(what: str) -> object:
        if what == "unwritable":
            return object()
        if what == "impossible":
            raise Terminal("it fell")
        undone.append(what)
        return None

    @agent.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> None:
        for what in ("first", "impossible", "unwritable", "last"):
            run.compensate(undo, what)
        raise run.fail("no money")

    async with runs(bus, agent) as kit:
        run = await kit.start("house.wanted")
        journal = await kit.journal(run)
        assert (journal.state, undone) == ("failed", ["last", "first"])
        assert journal.end is not None
        error = journal.end.entry.error
        assert error is not None
        assert error.message == "no money"
        assert "it fell" in error.cause
        assert "which cannot be written as JSON" in error.cause


async def test_a_paused_run_does_nothing_until_it_is_resumed_in_another_process(bus: Bus) -> None:
    builder = Builder()
    async with runs(bus, builder.agent) as kit:
        run = await kit.start("house.wanted")
        await kit.pause(run)
        await kit.advance(days=10)
        journal = await kit.journal(run)
        assert kinds(journal)[-2:] == ["pause.requested", FIRED]
        kit.deploy(Builder().agent)
        await kit.signal(run, "word", 1)
        assert kinds(await kit.journal(run))[-1] == SIGNALLED
        await kit.resume(run)
        assert RESUMED in kinds(await kit.journal(run))
        await kit.advance(days=1)
        assert await kit.result(run) == "built"


async def test_a_run_paused_while_it_works_stops_behind_the_step_and_a_crash_changes_nothing(
    bus: Bus,
) -> None:
    for at in itertools.count(1):
        builder = Builder()
        async with runs(bus, builder.agent) as kit:
            builder.held = "south"
            run = await kit.start("house.wanted")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: kit.advance(days=1))
                await builder.begun.wait()
                command = new("stratum.control.run.pause", {"run": run}, source="/test")
                told = await stored(bus, "control.builder.run.pause", command)
                await Worker(bus, builder.agent).handle(told)
                kit.crash(at, stored=True)
                builder.go_on.set()
            builder.held = ""
            journal = await kit.journal(run)
            assert journal.state == "waiting"
            assert journal.paused
            assert [r.entry.name for r in journal.decided.values()].count("step:south") == 1
            assert await ids(bus, f"run.builder.{run}")
            await kit.resume(run)
            await kit.advance(days=1)
            assert await kit.result(run) == "built"
            if not kit.crashed:
                break
    assert at > 3


async def test_a_run_paused_and_resumed_while_it_works_goes_on(bus: Bus) -> None:
    """Both come while a branch works: when it looks, there is nothing to stop for."""
    agent = Agent("builder")
    begun, go_on = anyio.Event(), anyio.Event()

    async def build() -> str:
        begun.set()
        await go_on.wait()
        return "wall"

    @agent.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        await run.step("build", build)
        await run.step("paint", build)
        return "built"

    worker = Worker(bus, agent)
    given = await stored(
        bus, "inbox.builder.test.house.wanted", new("house.wanted", 0, source="/t")
    )
    run = run_id("builder", given.event.id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.handle, given)
        await begun.wait()
        for command in ("run.pause", "run.resume"):
            event = new(f"stratum.control.{command}", {"run": run}, source="/test")
            await worker.handle(await stored(bus, f"control.builder.{command}", event))
        go_on.set()
    assert (await Journal(bus, "builder", run).load()).state == "completed"


async def test_a_failed_step_with_no_attempt_left_undoes_what_was_done(bus: Bus) -> None:
    agent = Agent("builder")
    undone: list[str] = []

    async def undo() -> None:
        undone.append("north")

    async def fail() -> None:
        raise OSError("rain")

    @agent.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> None:
        run.compensate(undo)
        await run.step("roof", fail, retry=Retry(max_attempts=2))

    async with runs(bus, agent) as kit:
        run = await kit.start("house.wanted")
        journal = await kit.journal(run)
        assert (journal.state, undone) == ("failed", ["north"])
        assert journal.end is not None
        assert journal.end.entry.error is not None
        assert journal.end.entry.error.type == StepFailed.__name__
        [letter] = await kit.events("dead.builder.>")
        assert letter.data["run"] == run


async def test_a_run_that_the_code_cannot_take_up_is_cancelled_with_nothing_undone(
    bus: Bus,
) -> None:
    builder, changed = Builder(), Agent("builder")

    @changed.on("house.wanted")
    async def wanted(run: Run, event: Event[Any]) -> None:
        run.compensate(builder.undo, "all")
        await run.step("another", builder.build, "another")

    async with runs(bus, builder.agent) as kit:
        run = await kit.start("house.wanted")
        kit.deploy(changed)
        await kit.advance(days=1)
        assert (await kit.journal(run)).state == "parked"
        await kit.cancel(run)
        journal = await kit.journal(run)
        assert (journal.state, builder.undone) == (CANCELLED, [])
        assert journal.end is not None
        assert "nothing undone: run" in str(journal.end.entry.error)
