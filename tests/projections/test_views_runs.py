"""What `runs`, `steps` and `timers` say of the journals of real agents."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from anyio import to_thread
from msgspec.structs import replace

from stratum_agents.agent import Agent
from stratum_agents.fork import fork
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run
from stratum_agents.testing import Kit, runs
from stratum_bus.bus import Bus
from stratum_bus.consume import Reject
from stratum_bus.event import Event
from stratum_bus.message import Message
from stratum_projections.views import entry
from stratum_projections.views.runs import RUNS

Open = Callable[..., Any]
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Worker:
    """An agent that does all that a run can do; `failing` counts down the failures of a step."""

    def __init__(self) -> None:
        self.failing = 0
        self.agent = agent = Agent("worker")
        self.helper = helper = Agent("helper")

        @agent.on("work")
        async def work(run: Run, event: Event[Any]) -> str:
            await run.step("fetch", self.fetch, retry=Retry(max_attempts=4, first_seconds=60))
            await run.remember("note", "fetched")
            await run.send("editor", "done", {"of": event.id})
            await run.step("store", len, "x")
            return "done"

        @agent.on("nap")
        async def nap(run: Run, event: Event[Any]) -> None:
            await run.sleep(hours=1)
            await run.step("after", len, "x")

        @agent.on("review")
        async def review(run: Run, event: Event[Any]) -> None:
            run.compensate(print, "undone")
            await run.step("begin", len, "x")
            await run.wait_for("verdict", "word", timeout_days=7)
            await run.step("end", len, "x")

        @agent.on("ask")
        async def ask(run: Run, event: Event[Any]) -> Any:
            return await run.call("helper", "answer", event.data, timeout_seconds=600)

        @agent.on("both")
        async def both(run: Run, event: Event[Any]) -> None:
            await run.gather(run.sleep(hours=1), run.wait_for("verdict"))

        @agent.on("again")
        async def again(run: Run, event: Event[Any]) -> None:
            if event.data["left"]:
                await run.continue_as_new({"left": event.data["left"] - 1})

        @agent.on("refuse")
        async def refuse(run: Run, event: Event[Any]) -> Reject:
            return Reject("not this one")

        @helper.on("answer")
        async def answer(run: Run, event: Event[Any]) -> Any:
            await run.step("think", len, "x")
            if event.data == "fail":
                raise run.fail("no answer")
            return 42

    async def fetch(self) -> int:
        if self.failing < 0:
            raise Terminal("gone for good")
        if self.failing:
            self.failing -= 1
            raise ConnectionError("no line")
        return 3


@pytest.fixture
def worker() -> Worker:
    return Worker()


async def log_of(bus: Bus) -> list[Message]:
    async with bus.read() as reader:
        return [message async for message in reader]


async def fold(bus: Bus, tables: Any) -> Any:
    """The whole log as it is, into tables that hold a part of it."""
    messages = await log_of(bus)
    await to_thread.run_sync(tables.apply, messages[tables.checkpoint.position :])
    return tables


def of_run(tables: Any, table: str, run: str, columns: str = "*") -> list[dict[str, Any]]:
    order = "set_seq" if table == "timers" else "first_seq"
    rows: list[dict[str, Any]] = tables.rows(
        f"select {columns} from {table} where run = '{run}' order by {order}"
    )
    return rows


async def test_a_run_its_steps_and_what_it_did(bus: Bus, tables: Any, worker: Worker) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("work", {}, id="e1")
        await fold(bus, tables)
    [row] = of_run(tables, "runs", run)
    assert (row["agent"], row["status"], row["handler"]) == ("worker", "completed", "work")
    assert (row["event"], row["event_seq"], row["event_type"]) == ("e1", 1, "work")
    assert (row["steps"], row["attempts"], row["resumed"], row["takeovers"]) == (2, 2, 0, 0)
    assert (row["sent"], row["noted"], row["parent"], row["error"]) == (1, 1, None, None)
    assert row["ended"] == "2026-03-01T12:00:00+00:00"
    assert 0 <= row["duration_seconds"] < 30
    assert row["started"] <= row["ended"]
    assert (row["waits_for"], row["until"], row["correlationid"]) == (None, None, "e1")
    steps = of_run(tables, "steps", run, "n, kind, name, label, status, attempts, error, due")
    assert steps == [
        {"n": n, "kind": "step", "name": name, "label": f"step {name}", "status": "completed",
         "attempts": 1, "error": None, "due": None}
        for n, name in (("1", "fetch"), ("4", "store"))
    ]  # fmt: skip
    assert of_run(tables, "timers", run) == []


async def test_a_step_that_is_tried_again_has_a_timer(
    bus: Bus, tables: Any, worker: Worker
) -> None:
    worker.failing = 2
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("work", {})
        await fold(bus, tables)
        [step] = of_run(tables, "steps", run)
        assert (step["status"], step["attempts"], step["ended"]) == ("retrying", 1, None)
        assert step["error"] == "ConnectionError: no line"
        [row] = of_run(tables, "runs", run)
        assert (row["status"], row["waits_for"], row["until"]) == (
            "waiting", "step fetch", step["due"],
        )  # fmt: skip
        [timer] = of_run(tables, "timers", run)
        assert (timer["name"], timer["state"], timer["fired"]) == ("t1-a1", "set", None)
        assert (timer["kind"], timer["call"], timer["due"]) == ("step", "fetch", step["due"])
        await kit.advance(hours=1)
        await fold(bus, tables)
    [row] = of_run(tables, "runs", run)
    assert (row["status"], row["attempts"], row["steps"]) == ("completed", 4, 2)
    assert (row["resumed"], row["takeovers"], row["waits_for"]) == (2, 0, None)
    step = of_run(tables, "steps", run)[0]
    assert (step["status"], step["attempts"], step["due"]) == ("completed", 3, None)
    assert step["error"] == "ConnectionError: no line"
    timers = of_run(tables, "timers", run, "name, state, fired = due as on_time, closed_seq > 0 c")
    assert timers == [
        {"name": f"t1-a{n}", "state": "fired", "on_time": True, "c": True} for n in (1, 2)
    ]


async def test_a_step_and_its_run_that_fail_for_good(bus: Bus, tables: Any, worker: Worker) -> None:
    worker.failing = -1
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("work", {})
        await fold(bus, tables)
    [step] = of_run(tables, "steps", run)
    assert (step["status"], step["error"], step["due"]) == (
        "failed", "Terminal: gone for good", None,
    )  # fmt: skip
    [row] = of_run(tables, "runs", run)
    assert (row["status"], row["sent"], row["noted"]) == ("failed", 0, 0)
    assert row["error"].startswith("StepFailed: step 'fetch' failed, tried once: Terminal: gone")


async def test_a_sleep_ends_by_its_timer(bus: Bus, tables: Any, worker: Worker) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("nap", {})
        await fold(bus, tables)
        due = "2026-03-01T13:00:00+00:00"
        [row] = of_run(tables, "runs", run, "status, waits_for, until, ended, duration_seconds d")
        assert row == {
            "status": "waiting", "waits_for": "sleep", "until": due, "ended": None, "d": None,
        }  # fmt: skip
        assert of_run(tables, "timers", run, "state, due, call, closed_seq") == [
            {"state": "set", "due": due, "call": "sleep", "closed_seq": None}
        ]
        await kit.advance(hours=2)
        await fold(bus, tables)
    [row] = of_run(
        tables, "runs", run, "status, waits_for, until, ended, duration_seconds, resumed"
    )
    assert row == {
        "status": "completed", "waits_for": None, "until": None, "ended": due,
        "duration_seconds": 3600.0, "resumed": 1,
    }  # fmt: skip
    [timer] = of_run(tables, "timers", run, "state, fired")
    assert timer == {"state": "fired", "fired": due}
    slept, _ = of_run(tables, "steps", run, "kind, name, label, status, seconds")
    assert slept == {
        "kind": "sleep", "name": "sleep", "label": "sleep", "status": "completed", "seconds": 3600.0,
    }  # fmt: skip


@pytest.mark.parametrize(("signalled", "status", "state"), [
    (True, "completed", "cancelled"), (False, "timeout", "fired"),
])  # fmt: skip
async def test_a_wait_ends_by_what_it_waits_for_or_by_its_time(
    signalled: bool, status: str, state: str, bus: Bus, tables: Any, worker: Worker
) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("review", {})
        await fold(bus, tables)
        [row] = of_run(tables, "runs", run, "status, waits_for, until")
        assert row == {
            "status": "waiting", "waits_for": "wait verdict|word",
            "until": "2026-03-08T12:00:00+00:00",
        }  # fmt: skip
        await kit.advance(days=1)
        if signalled:
            await kit.signal(run, "word", {})
        await kit.advance(days=7)
        await fold(bus, tables)
    wait = of_run(tables, "steps", run)[1]
    assert (wait["kind"], wait["status"], wait["due"]) == ("wait", status, None)
    assert wait["seconds"] == (1 if signalled else 7) * 86_400
    [timer] = of_run(tables, "timers", run)
    assert (timer["state"], timer["fired"] is None) == (state, signalled)
    [row] = of_run(tables, "runs", run, "status, error")
    if signalled:
        assert row == {"status": "completed", "error": None}
    else:
        assert (row["status"], row["error"]) == (
            "failed", "WaitTimeout: verdict or word did not come in time",
        )  # fmt: skip


async def test_a_run_that_is_cancelled_undoes_and_leaves_its_wait(
    bus: Bus, tables: Any, worker: Worker
) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("review", {})
        await fold(bus, tables)
        await kit.cancel(run)
        await fold(bus, tables)
    [row] = of_run(tables, "runs", run)
    assert (row["status"], row["error"]) == ("cancelled", "Cancelled: the run was cancelled")
    assert (row["waits_for"], row["until"]) == (None, None)
    steps = of_run(tables, "steps", run, "n, kind, name, status, due")
    assert steps == [
        {"n": "1", "kind": "step", "name": "begin", "status": "completed", "due": None},
        {"n": "2", "kind": "wait", "name": "verdict|word", "status": "abandoned", "due": None},
        {"n": "c1", "kind": "undo", "name": "print", "status": "completed", "due": None},
    ]
    [timer] = of_run(tables, "timers", run)
    assert (timer["state"], timer["fired"], timer["closed_seq"]) == (
        "cancelled", None, row["last_seq"],
    )  # fmt: skip
    for table in ("runs_open", "steps_open"):
        assert tables.rows(f"select * from {table}") == []


async def test_a_run_is_paused_on_request(bus: Bus, tables: Any, worker: Worker) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("nap", {})
        await fold(bus, tables)
        await kit.pause(run)
        await fold(bus, tables)
        [row] = of_run(tables, "runs", run, "status, waits_for")
        assert row == {"status": "paused", "waits_for": "sleep"}
        await kit.advance(hours=2)
        await fold(bus, tables)
        assert of_run(tables, "runs", run, "status") == [{"status": "paused"}]
        assert of_run(tables, "timers", run, "state") == [{"state": "fired"}]
        await kit.resume(run)
        await fold(bus, tables)
    assert of_run(tables, "runs", run, "status") == [{"status": "completed"}]


async def test_a_call_and_the_run_that_it_starts(bus: Bus, tables: Any, worker: Worker) -> None:
    async with runs(bus, worker.agent, worker.helper, now=NOW) as kit:
        run = await kit.start("ask", "what", id="e1")
        await fold(bus, tables)
    child, mother = tables.rows("select * from runs order by last_seq")
    assert (mother["run"], mother["status"], mother["parent"]) == (run, "completed", None)
    assert (child["agent"], child["parent"], child["status"]) == ("helper", run, "completed")
    assert (child["correlationid"], child["event"]) == ("e1", f"{run}-1")
    assert child["event_seq"] == tables.one(f"select seq from events where id = '{run}-1'")["seq"]
    [call] = of_run(tables, "steps", run)
    assert (call["kind"], call["name"], call["status"]) == ("call", "answer at helper", "completed")
    [timer] = of_run(tables, "timers", run)
    assert timer["state"] == "cancelled"


async def test_branches_wait_for_several_things_at_once(
    bus: Bus, tables: Any, worker: Worker
) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("both", {})
        await fold(bus, tables)
        [row] = of_run(tables, "runs", run, "waits_for, until")
        assert row == {"waits_for": "sleep, wait verdict", "until": "2026-03-01T13:00:00+00:00"}
        await kit.advance(hours=1)
        await fold(bus, tables)
        [row] = of_run(tables, "runs", run, "waits_for, until, status")
        assert row == {"waits_for": "wait verdict", "until": None, "status": "waiting"}


async def test_a_run_goes_on_as_another_and_one_is_forked(
    bus: Bus, tables: Any, worker: Worker
) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        first = await kit.start("again", {"left": 1})
        done = await kit.start("work", {}, id="e1")
        forked = await fork(bus, "worker", done, "store")
        await kit.settle()
        await fold(bus, tables)
    [row] = of_run(tables, "runs", first, "status, next, sent")
    assert row["status"] == "continued"
    [follower] = of_run(tables, "runs", row["next"], "status, parent, next")
    assert follower == {"status": "completed", "parent": first, "next": None}
    [row] = of_run(
        tables, "runs", forked, "status, forked_from, forked_at, event, event_seq, steps"
    )
    expected = {"status": "completed", "forked_from": done, "forked_at": "4", "steps": 1}
    of_event = tables.one("select seq from events where id = 'e1'")["seq"]
    assert row == {**expected, "event": "e1", "event_seq": of_event}


async def test_a_run_is_taken_over_from_an_owner_that_died(
    bus: Bus, tables: Any, worker: Worker
) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        kit.crash(2)
        run = await kit.start("work", {})
        await fold(bus, tables)
    [row] = of_run(tables, "runs", run, "status, resumed, takeovers")
    assert row == {"status": "completed", "resumed": 1, "takeovers": 1}


async def test_a_run_whose_code_changed_is_parked(bus: Bus, tables: Any, worker: Worker) -> None:
    async with runs(bus, worker.agent, now=NOW) as kit:
        run = await kit.start("nap", {})
        changed = Agent("worker")

        @changed.on("nap")
        async def nap(run: Run, event: Event[Any]) -> None:
            await run.step("something else", len, "x")

        kit.deploy(changed)
        await kit.advance(hours=1)
        await fold(bus, tables)
        [row] = of_run(tables, "runs", run, "status, error, waits_for")
        assert (row["status"], row["waits_for"]) == ("parked", None)
        assert row["error"].startswith("JournalMismatch: ")
        kit.deploy(worker.agent)
        await kit.resume(run)
        await fold(bus, tables)
    assert of_run(tables, "runs", run, "status, error") == [{"status": "completed", "error": None}]


async def everything(kit: Kit, worker: Worker) -> None:
    """A bit of all that may happen, mixed."""
    worker.failing = 2
    naps = [await kit.start("nap", {}) for _ in range(2)]
    reviews = [await kit.start("review", {}) for _ in range(2)]
    kit.crash(2)
    await kit.start("work", {})
    await kit.start("ask", "what")
    await kit.start("ask", "fail")
    await kit.start("again", {"left": 2})
    await kit.start("both", {})
    await kit.pause(naps[0])
    await kit.cancel(naps[1])
    await kit.advance(minutes=30)
    await kit.signal(reviews[0], "word", {})
    await kit.cancel(reviews[1])
    kit.crash(1)
    await kit.advance(hours=2)
    await kit.resume(naps[0])
    worker.failing = 0
    await fork(kit.bus, "worker", await kit.start("work", {}), "store")
    await kit.settle()
    worker.failing = -1
    await kit.start("work", {})
    await kit.start("refuse", {})
    kit.crash(3, stored=True)
    await kit.start("review", {})
    await kit.start("nap", {})


async def test_where_batches_are_cut_makes_no_difference(
    bus: Bus, open_tables: Open, worker: Worker
) -> None:
    async with runs(bus, worker.agent, worker.helper, now=NOW) as kit:
        await everything(kit, worker)
        messages = await log_of(bus)
    await to_thread.run_sync(compare, messages, open_tables)


def compare(messages: list[Message], open_tables: Open) -> None:
    whole = open_tables("whole", (RUNS,))
    whole.apply(messages)
    expected = whole.dump()
    assert {row["status"] for row in expected["runs"]} == {
        "completed", "failed", "cancelled", "continued", "waiting",
    }  # fmt: skip
    assert {row["state"] for row in expected["timers"]} == {"set", "fired", "cancelled"}
    assert len(expected["runs"]) > 12
    again = [replace(m, sequence=m.sequence + messages[-1].sequence) for m in messages]
    twice = open_tables("twice", (RUNS,))
    twice.apply(messages + again)
    for table in RUNS.tables:
        assert twice.dump()[table] == expected[table], "each event counts once"
    for seed, most in enumerate((5, 25)):
        chance, pieces = random.Random(seed), open_tables(f"pieces{most}", (RUNS,))
        start = 0
        while start < len(messages):
            end = start + chance.randint(1, most)
            pieces.apply(messages[start:end])
            start = end
        found = pieces.dump()
    for table, rows in expected.items():
        assert found[table] == rows, table


def entries_at_random(log: Any, seed: int, length: int) -> None:
    """Journal entries in an order that no run would write."""
    chance = random.Random(seed)
    kinds = [*entry.CALLS * 3, *entry.INPUTS, *entry.ENDS, *entry.OTHERS, "resumed"]
    for number in range(length):
        kind, run, n = chance.choice(kinds), chance.choice("abc"), chance.choice(["1", "2.1"])
        attempt = chance.randint(1, 3)
        data: dict[str, Any] = {"suspends": chance.random() < 0.5}
        if kind in entry.CALLS:
            what = "step:x" if kind.startswith("step.") else chance.choice(["sleep", "wait:y"])
            data |= {"n": n, "name": what, "seconds": chance.random()}
            data["reason"] = chance.choice(["", "timeout"])
        if kind in ("waiting", "step.failed") and chance.random() < 0.8:
            data["until"] = f"2026-01-01T00:00:{number % 60:02}Z"
        if kind.startswith("step."):
            data |= {"attempt": attempt, "final": chance.random() < 0.3}
            data["error"] = {"type": "E", "message": str(number)} if kind == "step.failed" else None
        if kind == "fired":
            data["name"] = f"t{n.replace('.', '-')}" + chance.choice(["", f"-a{attempt}"])
        if kind == "suspended":
            data["reason"] = chance.choice(["", "paused"])
        log.add(f"run.bob.{run}", entry.PREFIX + kind, data, runid=run, causationid="e1")
        if chance.random() < 0.1:
            log.raw(f"run.bob.{run}", b'{"n": 1}')
            log.add(f"run.bob.{run}", entry.PREFIX + kind, {"attempt": "x"}, runid=run)
            log.again(log.messages[-3].subject, log.messages[-3].event())


@pytest.mark.parametrize("seed", [6, 7])
def test_entries_that_make_no_sense_give_the_same_rows_however_they_are_cut(
    seed: int, log: Any, open_tables: Open
) -> None:
    entries_at_random(log, seed, 60)
    whole = open_tables("whole", (RUNS,))
    whole.apply(log.messages)
    expected = whole.dump()
    assert len(expected["runs"]) > 2
    assert len(expected["timers"]) > 2
    chance, pieces = random.Random(seed), open_tables("pieces", (RUNS,))
    start = 0
    while start < len(log.messages):
        end = start + chance.randint(1, 5)
        pieces.apply(log.messages[start:end])
        start = end
    found = pieces.dump()
    for table, rows in expected.items():
        assert found[table] == rows, table
