"""The kit: time that the test moves, crashes where it says, and what the runs made of it."""

from __future__ import annotations

from typing import Any

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
