"""Several things at once: crashes in the middle, branches, failures in them, waits in them."""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import pytest

from stratum_agents.agent import Agent
from stratum_agents.failure import StepFailed, WaitTimeout
from stratum_agents.journal import STEP_COMPLETED, WAIT_COMPLETED, Journal
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import runs
from stratum_agents.worker import Worker
from stratum_bus.bus import Bus
from stratum_bus.consume import Done
from stratum_bus.event import Event, new
from stratum_bus.testing import eventually
from tests.agents.conftest import addressed, ids, kinds, stored, text


async def _double(number: int) -> int:
    await anyio.sleep(0.002 * (3 - number % 3))  # they end in another order than they began
    return 2 * number


async def test_parallel_steps_whose_process_dies_in_the_middle_end_the_same(bus: Bus) -> None:
    agent = Agent("counter")

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[int]:
        first = await run.gather(*(run.step(f"double {n}", _double, n) for n in range(5)))
        return [*first, await run.step("last", _double, sum(first))]

    for at in itertools.count(1):
        async with runs(bus, agent) as kit:
            kit.crash(at, stored=at % 2 == 0)
            run = await kit.start("count")
            assert await kit.result(run) == [0, 2, 4, 6, 8, 40]
            decided = (await kit.journal(run)).decided
            assert {n: r.entry.name for n, r in decided.items()} == {
                **{str(n + 1): f"step:double {n}" for n in range(5)},
                "7": "step:last",
            }
            if not kit.crashed:
                break
    assert at == 8


async def test_branches_of_several_steps_that_die_at_any_append_end_the_same(bus: Bus) -> None:
    agent = Agent("counter")
    times: dict[str, set[Any]] = {}

    async def branch(run: Run, start: int) -> int:
        at = await run.step("one", _double, start)
        times.setdefault(f"{run.id} {start}", set()).add(run.now())
        await run.send("editor", "half.way", at)
        await run.sleep(hours=start)
        return await run.step("two", _double, at)

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[int]:
        return await run.gather(
            lambda run: branch(run, 1), lambda run: branch(run, 2), run.step("own", _double, 10)
        )

    for at in itertools.count(1):
        async with runs(bus, agent) as kit:
            kit.crash(at, stored=at % 2 == 0)
            run = await kit.start("count")
            await kit.advance(hours=3)
            assert await kit.result(run) == [4, 8, 20]
            sent = [id for id in await ids(bus, "inbox.editor.>") if id.startswith(run)]
            assert sorted(sent) == [f"{run}-2.1.2", f"{run}-2.2.2"]
            # What another branch journaled in the meantime is no matter of this one's time.
            assert [len(times[f"{run} {start}"]) for start in (1, 2)] == [1, 1]
            if not kit.crashed:
                break
    assert at > 10


async def test_a_failing_branch_is_raised_when_the_others_have_ended(bus: Bus) -> None:
    agent = Agent("counter")
    never = Retry(max_attempts=1)

    async def fail() -> None:
        raise Terminal("no")

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> str:
        try:
            await run.gather(
                run.step("slow", _double, 0),
                run.step("bad", fail, retry=never),
                lambda run: _sleeper(run),
            )
        except StepFailed as error:
            return error.name
        return ""

    async def _sleeper(run: Run) -> None:
        await run.sleep(days=1)
        await run.step("after", _double, 1)

    async with runs(bus, agent) as kit:
        run = await kit.start("count")
        assert (await kit.journal(run)).state == "waiting"
        await kit.advance(days=1)
        assert await kit.result(run) == "bad"
        assert "step:after" in [r.entry.name for r in (await kit.journal(run)).decided.values()]


async def test_two_branches_that_wait_for_the_same_get_one_signal_each(bus: Bus) -> None:
    agent = Agent("counter")

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[str]:
        said = await run.gather(run.wait_for("word"), run.wait_for("word"))
        return [text(each) for each in said]

    async with runs(bus, agent) as kit:
        run = await kit.start("count")
        await kit.pause(run)  # so that both are there when it goes on
        await kit.signal(run, "word", 1)
        await kit.signal(run, "word", 2)
        await kit.resume(run)
        assert await kit.result(run) == ["1", "2"]
        other = await kit.start("count")
        await kit.signal(other, "word", 1)
        journal = await kit.journal(other)
        assert (journal.state, kinds(journal).count(WAIT_COMPLETED)) == ("waiting", 1)


async def test_waits_with_a_time_in_branches_end_each_on_its_own(bus: Bus) -> None:
    agent = Agent("counter")

    async def word(run: Run, days: int) -> str:
        try:
            return text(await run.wait_for(f"word-{days}", timeout_days=days))
        except WaitTimeout:
            return "none"

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[str]:
        return await run.gather(*((lambda run, n=n: word(run, n)) for n in (1, 2, 3)))

    async with runs(bus, agent) as kit:
        run = await kit.start("count")
        await kit.advance(days=1)
        await kit.signal(run, "word-2", 2)
        await kit.advance(days=3)
        assert await kit.result(run) == ["none", "2", "none"]


@pytest.mark.parametrize("what", ["signal", "cancel"])
async def test_what_comes_while_another_branch_works_is_not_overlooked(bus: Bus, what: str) -> None:
    """The run is not suspended then, so that nobody else resumes it: its owner must look."""
    agent = Agent("counter")
    begun, go_on = anyio.Event(), anyio.Event()

    async def work() -> str:
        begun.set()
        await go_on.wait()
        return "worked"

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[Any]:
        said, done = await run.gather(run.wait_for("word"), run.step("work", work))
        return [text(said), done]

    worker = Worker(bus, agent)
    given = await stored(bus, "inbox.counter.test.count", new("count", None, source="/test"))
    run = run_id("counter", given.event.id)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.handle, given)
        await begun.wait()
        if what == "signal":
            word = addressed(new("word", 1, source="/test"), run)
            told = await stored(bus, "inbox.counter.test.word", word)
        else:
            command = new("stratum.control.run.cancel", {"run": run}, source="/test")
            told = await stored(bus, "control.counter.run.cancel", command)
        assert await worker.handle(told) == Done()
        go_on.set()
    journal = await Journal(bus, "counter", run).load()
    assert journal.state == ("completed" if what == "signal" else "cancelled")


async def test_a_coroutine_that_makes_calls_in_gather_is_refused_with_what_to_write_instead(
    bus: Bus,
) -> None:
    """The places of its calls would depend on which of them is faster."""
    agent = Agent("counter")

    async def two(run: Run, start: int) -> int:
        return await run.step("two", _double, await run.step("one", _double, start))

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[int]:
        try:
            return await run.gather(two(run, 1), two(run, 2))
        except Exception:  # noqa: BLE001 - what a careless handler does
            return []

    async with runs(bus, agent) as kit:
        run = await kit.start("count")
        journal = await kit.journal(run)
        assert journal.state == "failed"
        assert journal.end is not None
        assert journal.end.entry.error is not None
        assert "give gather functions of a run" in journal.end.entry.error.message
        assert STEP_COMPLETED not in kinds(journal)


async def test_messages_and_branches_within_branches_have_places_of_their_own(bus: Bus) -> None:
    agent = Agent("counter")

    async def inner(run: Run, start: int) -> int:
        return sum(await run.gather(run.step("a", _double, start), run.step("b", _double, start)))

    async def outer(run: Run, start: int) -> list[int]:
        return await run.gather(lambda run: inner(run, start), lambda run: inner(run, start + 1))

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> list[Any]:
        return await run.gather(
            run.send("editor", "begun", None), lambda run: outer(run, 1), lambda run: outer(run, 5)
        )

    async with runs(bus, agent) as kit:
        kit.crash(5)
        run = await kit.start("count")
        assert await kit.result(run) == [f"{run}-1", [4, 8], [20, 24]]
        assert set((await kit.journal(run)).decided) == {
            f"2.{a}.1.{b}.{c}" for a in (2, 3) for b in (1, 2) for c in (1, 2)
        }


async def test_a_task_group_of_the_handlers_own_does_not_hide_that_the_run_waits(bus: Bus) -> None:
    agent = Agent("counter")

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> str:
        async with anyio.create_task_group():
            await run.sleep(days=1)
        return "slept"

    async with runs(bus, agent) as kit:
        run = await kit.start("count")
        assert (await kit.journal(run)).state == "waiting"
        await kit.advance(days=1)
        assert await kit.result(run) == "slept"


@pytest.mark.parametrize("ends", [False, True], ids=["waits", "ends"])
async def test_what_a_handler_left_running_does_nothing_more_for_its_run(
    bus: Bus, ends: bool
) -> None:
    agent = Agent("counter")
    go_on, ended = anyio.Event(), []
    tasks = anyio.create_task_group()

    async def late(run: Run) -> None:
        await go_on.wait()
        try:
            await run.step("late", _double, 1)
        except BaseException as error:  # noqa: BLE001 - to see what it is
            ended.append(type(error).__name__)

    @agent.on("count")
    async def count(run: Run, event: Event[Any]) -> str:
        tasks.start_soon(late, run)
        if not ends:
            await run.sleep(days=1)
        return "counted"

    async with tasks, runs(bus, agent) as kit:
        run = await kit.start("count")
        before = kinds(await kit.journal(run))
        go_on.set()
        await eventually(lambda: ended)
        assert kinds(await kit.journal(run)) == before
        assert ended == ["Suspended"]
