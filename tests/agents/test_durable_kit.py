"""The kit: time that the test moves, crashes where it says, and what the runs made of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_agents.testing import runs
from stratum_bus.bus import Bus
from stratum_bus.event import Event


async def test_a_run_that_sleeps_thirty_days_ends_in_no_time(bus: Bus) -> None:
    agent = Agent("reader")

    @agent.on("paper.published")
    async def read(run: Run, event: Event[dict[str, Any]]) -> str:
        began = run.now()
        await run.sleep(days=30)
        verdict = await run.wait_for("review.verdict", timeout_days=7)
        await run.send("editor", "note.ready", {"days": (run.now() - began).days})
        return str(verdict.data, "utf-8") if verdict.data else ""

    async with runs(bus, agent) as kit:
        run = await kit.start("paper.published", {"id": "p1"})
        assert (await kit.journal(run)).state == "waiting"
        await kit.advance(days=29)
        assert len((await kit.journal(run)).decided) == 0
        await kit.advance(days=1)
        await kit.signal(run, "review.verdict", {"ok": True})
        journal = await kit.journal(run)
        assert journal.state == "completed"
        assert await kit.result(run) == '{"ok":true}'
        [sent] = await kit.events("inbox.editor.>")
        assert sent.data == {"days": 30}


async def test_timers_fire_at_their_time_in_their_order_with_those_that_this_sets(bus: Bus) -> None:
    agent, woken = Agent("reader"), list[tuple[str, float]]()

    async def wake(run: str, passed: timedelta) -> None:
        woken.append((run, round(passed.total_seconds() / 3600, 3)))

    @agent.on("nap")
    async def nap(run: Run, event: Event[list[float]]) -> None:
        for hours in event.data:
            await run.sleep(hours=hours)
            await run.step("wake", wake, run.id, run.now() - began)

    async with runs(bus, agent) as kit:
        began = kit.clock.now()
        first = await kit.start("nap", [3, 1, 1])
        second = await kit.start("nap", [2, 2.5])
        await kit.advance(hours=4.4)
        assert woken == [(second, 2), (first, 3), (first, 4)]
        await kit.advance(hours=10)
        assert woken[3:] == [(second, 4.5), (first, 5)]
        assert kit.clock.now() - began == timedelta(hours=14.4)
        assert [await kit.result(run) for run in (first, second)] == [None, None]


async def test_a_clock_that_stands_is_the_runs_own_from_its_beginning(bus: Bus) -> None:
    agent = Agent("reader")

    @agent.on("look")
    async def look(run: Run, event: Event[Any]) -> list[str]:
        began = run.now()
        await run.wait_for("word")
        return [began.isoformat(), run.now().isoformat()]

    async with runs(bus, agent, now=datetime(2030, 1, 1, tzinfo=UTC)) as kit:
        await kit.advance(days=1)
        run = await kit.start("look")
        await kit.advance(days=1)
        await kit.signal(run, "word")
        assert await kit.result(run) == ["2030-01-02T00:00:00+00:00", "2030-01-03T00:00:00+00:00"]


async def test_what_has_not_ended_has_no_result(bus: Bus) -> None:
    agent = Agent("reader")

    @agent.on("look")
    async def look(run: Run, event: Event[Any]) -> None:
        await run.wait_for("word")

    async with runs(bus, agent) as kit:
        run = await kit.start("look")
        with pytest.raises(AssertionError, match="has not ended: it is waiting"):
            await kit.result(run)
