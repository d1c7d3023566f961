"""What `messages` says of what agents did with them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from anyio import to_thread

from stratum_agents.agent import Agent
from stratum_agents.fork import redrive
from stratum_agents.run import Run
from stratum_agents.testing import runs
from stratum_bus import dead
from stratum_bus.bus import Bus
from stratum_bus.event import Event

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def create(*, fails: bool = True) -> Agent:
    agent = Agent("worker", follows=["news"])

    @agent.on("nap")
    async def nap(run: Run, event: Event[Any]) -> None:
        await run.sleep(hours=1)

    @agent.on("review")
    async def review(run: Run, event: Event[Any]) -> None:
        await run.step("begin", len, "x")
        await run.wait_for("verdict")

    @agent.on("again")
    async def again(run: Run, event: Event[Any]) -> None:
        if event.data:
            await run.continue_as_new(0)

    @agent.on("fail")
    async def fail(run: Run, event: Event[Any]) -> None:
        await run.step("begin", len, "x")
        if fails:
            raise run.fail("no")

    return agent


async def fold(bus: Bus, tables: Any) -> Any:
    async with bus.read(start=tables.checkpoint.position + 1) as reader:
        await to_thread.run_sync(tables.apply, [message async for message in reader])
    return tables


def rows(tables: Any, columns: str) -> dict[str, list[Any]]:
    found = tables.rows(f"select id, {columns} from messages order by seq")
    return {row.pop("id"): list(row.values()) for row in found}


async def test_a_message_is_delivered_and_then_handled(bus: Bus, tables: Any) -> None:
    async with runs(bus, create(), now=NOW) as kit:
        run = await kit.start("nap", {}, id="m1")
        await kit.start("unknown", {}, id="m2")
        await fold(bus, tables)
        row = tables.one("select * from messages where id = 'm1'")
        assert (row["state"], row["delivered_seq"], row["run"]) == ("delivered", 2, run)
        assert (row["handled"], row["latency_seconds"], row["attempts"]) == (None, None, 1)
        assert row["delivered"] >= row["sent"]
        await kit.advance(hours=1)
        await fold(bus, tables)
    row = tables.one("select * from messages where id = 'm1'")
    assert (row["state"], row["delivered_seq"], row["attempts"]) == ("handled", 2, 1)
    assert row["handled"] >= row["delivered"]
    assert row["outcome_seq"] == row["handled_seq"] > 2
    assert rows(tables, "state, delivered_seq, attempts")["m2"] == ["sent", None, None]
    assert tables.rows("select id from messages_open") == [{"id": "m2"}]


async def test_a_signal_is_handled_by_the_run_that_takes_it_in(bus: Bus, tables: Any) -> None:
    async with runs(bus, create(), now=NOW) as kit:
        run = await kit.start("review", {}, id="m1")
        await fold(bus, tables)
        await kit.signal(run, "verdict", {}, id="m2")
        await kit.signal(run, "verdict", {}, id="too late")
        await fold(bus, tables)
    assert rows(tables, "state, run") == {
        "m1": ["handled", run], "m2": ["handled", run], "too late": ["sent", None],
    }  # fmt: skip


async def test_runs_that_are_cancelled_or_go_on_as_another(bus: Bus, tables: Any) -> None:
    async with runs(bus, create(), now=NOW) as kit:
        await kit.cancel(await kit.start("nap", {}, id="m1"))
        first = await kit.start("again", 1, id="m2")
        await fold(bus, tables)
    assert rows(tables, "state, handled_seq is null") == {
        "m1": ["cancelled", True], "m2": ["handled", False], f"{first}-1": ["handled", False],
    }  # fmt: skip


async def test_a_dead_message_that_is_redriven_goes_on_as_a_fork(bus: Bus, tables: Any) -> None:
    async with runs(bus, create(), now=NOW) as kit:
        run = await kit.start("fail", {}, id="m1")
        await fold(bus, tables)
        assert rows(tables, "state, run, decided_seq") == {"m1": ["dead", run, None]}
        [letter] = await dead.letters(bus)
        kit.deploy(create(fails=False))
        forked = await redrive(bus, letter, "mended")
        await fold(bus, tables)
        assert rows(tables, "state, run") == {"m1": ["redriven", run]}
        await kit.settle()
        await fold(bus, tables)
    assert rows(tables, "state, run") == {"m1": ["handled", forked]}
    assert tables.rows("select letter from message_letters") == []
