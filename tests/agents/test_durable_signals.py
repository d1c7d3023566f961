"""Events for a run: before it waits, twice, as the time is over, before it is there, after its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import pytest

from stratum_agents.agent import Agent
from stratum_agents.failure import CallFailed, WaitTimeout
from stratum_agents.journal import (
    FIRED,
    RESUMED,
    SIGNALLED,
    SUSPENDED,
    WAIT_COMPLETED,
    WAITING,
    Journal,
)
from stratum_agents.run import Run, run_id
from stratum_agents.simulated import StandingClock
from stratum_agents.testing import runs
from stratum_agents.worker import Worker
from stratum_bus.bus import Bus
from stratum_bus.consume import Done
from stratum_bus.event import Event, encode, new
from tests.agents.conftest import ForgetfulBus, addressed, kinds, stored, text


def _editor(steps_before: int = 0) -> Agent:
    """Waits a week for each of two words, and returns what it heard."""
    agent = Agent("editor")

    async def look() -> str:
        return "looked"

    @agent.on("paper.wanted")
    async def wanted(run: Run, event: Event[Any]) -> list[str]:
        heard = []
        for number in range(steps_before):
            await run.step(f"look {number}", look)
        for _ in range(2):
            try:
                heard.append(text(await run.wait_for("verdict", "word", timeout_days=7)))
            except WaitTimeout:
                heard.append("nothing")
        return heard

    return agent


async def test_signals_that_come_before_the_run_waits_count_each_once(bus: Bus) -> None:
    agent = Agent("editor")

    @agent.on("paper.wanted")
    async def wanted(run: Run, event: Event[Any]) -> list[str]:
        await run.sleep(days=1)
        return [text(await run.wait_for("verdict")), text(await run.wait_for("verdict"))]

    async with runs(bus, agent) as kit:
        run = await kit.start("paper.wanted")
        await kit.signal(run, "verdict", 1)
        await kit.signal(run, "other", 0)
        await kit.signal(run, "verdict", 2)
        assert (await kit.journal(run)).state == "waiting"
        await kit.advance(days=1)
        assert await kit.result(run) == ["1", "2"]


async def test_one_signal_delivered_as_five_messages_is_one(forgetful_bus: ForgetfulBus) -> None:
    async with forgetful_bus() as bus, runs(bus, _editor()) as kit:
        run = await kit.start("paper.wanted")
        event = new("verdict", 1, source="/agents/test", id="the-one")
        payload = encode(addressed(event, run))
        for number in range(5):
            headers = {"Nats-Msg-Id": f"copy-{number}", "Content-Type": _JSON}
            await bus.connection.request("inbox.editor.test.verdict", payload, headers)
        await kit.settle()
        journal = await kit.journal(run)
        assert (kinds(journal).count(SIGNALLED), journal.state) == (1, "waiting")
        # The copies did not even wake the run.
        assert kinds(journal).count(RESUMED) == 1
        await kit.signal(run, "word", 2)
        assert await kit.result(run) == ["1", "2"]


_JSON = "application/cloudevents+json"


@pytest.mark.parametrize("first", ["signal", "time"])
async def test_of_a_signal_and_the_end_of_its_time_the_first_in_the_journal_wins(
    bus: Bus, first: str
) -> None:
    async with runs(bus, _editor()) as kit:
        run = await kit.start("paper.wanted")
        await kit.pause(run)  # so that it finds both when it goes on
        if first == "signal":
            await kit.signal(run, "verdict", 1)
        await kit.advance(days=7)
        if first == "time":
            await kit.signal(run, "verdict", 1)
        journal = await kit.journal(run)
        assert {FIRED, SIGNALLED} <= set(kinds(journal))
        assert journal.state == "waiting"
        await kit.resume(run)
        journal = await kit.journal(run)
        reasons = [r.entry.reason for r in journal.entries if r.kind == WAIT_COMPLETED]
        if first == "signal":
            assert reasons == [""]
            await kit.signal(run, "word", 2)
            assert await kit.result(run) == ["1", "2"]
        else:  # what came too late is there for the next wait
            assert reasons == ["timeout", ""]
            assert await kit.result(run) == ["nothing", "1"]


class _Interrupted(StandingClock):
    """Something happens while the worker itself waits."""

    def __init__(self, what: Callable[[], Awaitable[object]]) -> None:
        super().__init__()
        self._what = what

    async def wait_until(self, at: datetime) -> None:
        await self._what()
        await super().wait_until(at)


async def test_a_signal_just_before_a_short_time_is_over_counts(bus: Bus) -> None:
    agent = Agent("editor")

    @agent.on("paper.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        return text(await run.wait_for("verdict", timeout_seconds=0.5))

    started = new("paper.wanted", None, source="/test")
    run = run_id("editor", started.id)

    async def signal() -> None:
        verdict = addressed(new("verdict", 1, source="/test"), run)
        given = await stored(bus, "inbox.editor.test.verdict", verdict)
        assert await Worker(bus, agent).handle(given) == Done()

    worker = Worker(bus, agent, clock=_Interrupted(signal))
    await worker.handle(await stored(bus, "inbox.editor.test.paper.wanted", started))
    journal = await Journal(bus, "editor", run).load()
    assert kinds(journal) == [WAITING, SIGNALLED, WAIT_COMPLETED, "completed"]
    assert journal.decided["1"].entry.reason == ""


async def test_a_signal_to_a_run_that_is_not_there_yet_waits_for_it(bus: Bus) -> None:
    for steps_before in (0, 1):
        async with runs(bus, _editor(steps_before)) as kit:
            event = new("paper.wanted", None, source="/test", id=f"later-{steps_before}")
            run = run_id("editor", event.id)
            await kit.signal(run, "verdict", 1)
            assert (await kit.journal(run)).state == "new"
            assert await kit.start("paper.wanted", id=event.id) == run
            assert WAIT_COMPLETED in kinds(await kit.journal(run))
            await kit.signal(run, "verdict", 2)
            assert await kit.result(run) == ["1", "2"]


async def test_a_signal_to_a_run_that_has_ended_changes_nothing(bus: Bus) -> None:
    async with runs(bus, _editor()) as kit:
        run = await kit.start("paper.wanted")
        for number in (1, 2):
            await kit.signal(run, "verdict", number)
        ended = await kit.journal(run)
        assert ended.state == "completed"
        await kit.signal(run, "verdict", 3)
        await kit.cancel(run)
        await kit.pause(run)
        await kit.advance(days=30)
        assert kinds(await kit.journal(run)) == kinds(ended)


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_run_that_a_signal_resumed_is_resumed_again_after_a_crash(
    bus: Bus, at: int
) -> None:
    """The signal is delivered again; that it was taken in is no reason to leave the run alone."""
    async with runs(bus, _editor()) as kit:
        run = await kit.start("paper.wanted")
        kit.crash(at, stored=True)
        await kit.signal(run, "verdict", 1)
        await kit.signal(run, "word", 2)
        assert kit.crashed == 1
        assert await kit.result(run) == ["1", "2"]
        assert kinds(await kit.journal(run)).count(SIGNALLED) == 2


async def test_a_signal_that_nobody_waits_for_does_not_wake_the_run(bus: Bus) -> None:
    async with runs(bus, _editor()) as kit:
        run = await kit.start("paper.wanted")
        await kit.signal(run, "chatter", 1)
        journal = await kit.journal(run)
        assert kinds(journal) == [WAITING, SIGNALLED]
        assert SUSPENDED not in kinds(journal)


async def test_a_call_to_an_agent_without_a_handler_fails_and_does_not_wait_for_ever(
    bus: Bus,
) -> None:
    agent, other = Agent("asker"), Agent("silent")

    @agent.on("question")
    async def question(run: Run, event: Event[Any]) -> str:
        try:
            await run.call("silent", "what.is", None)
        except CallFailed as error:
            return error.failure.type
        return "answered"

    async with runs(bus, agent, other) as kit:
        run = await kit.start("question")
        assert await kit.result(run) == "NoHandler"


async def test_who_called_a_run_hears_from_the_one_that_it_went_on_as(bus: Bus) -> None:
    agent, other = Agent("asker"), Agent("counter")

    @agent.on("question")
    async def question(run: Run, event: Event[Any]) -> Any:
        return await run.call("counter", "count", 3)

    @other.on("count")
    async def count(run: Run, event: Event[int]) -> str:
        if event.data:
            await run.continue_as_new(event.data - 1)
        return "counted"

    async with runs(bus, agent, other) as kit:
        run = await kit.start("question")
        assert await kit.result(run) == "counted"


async def test_a_call_that_cannot_be_read_fails_at_its_caller(bus: Bus) -> None:
    agent, other = Agent("asker"), Agent("counter")

    @agent.on("question")
    async def question(run: Run, event: Event[Any]) -> Any:
        try:
            return await run.call("counter", "count", "three")
        except CallFailed as error:
            return error.failure.type

    @other.on("count")
    async def count(run: Run, event: Event[int]) -> str:
        return "counted"

    async with runs(bus, agent, other) as kit:
        run = await kit.start("question")
        assert await kit.result(run) == "Unreadable"
        [letter] = await kit.events("dead.counter.>")
        assert letter.data["reason"] == "unreadable"
