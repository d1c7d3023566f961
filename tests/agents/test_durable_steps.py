"""Steps: their attempts, their times, their results, and what is none of their failures."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import msgspec
import pytest

from stratum_agents.agent import Agent
from stratum_agents.clock import Clock
from stratum_agents.failure import StepFailed
from stratum_agents.journal import SENT, STEP_COMPLETED, STEP_FAILED, Journal
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import runs
from stratum_agents.worker import Worker, work
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import Reject
from stratum_bus.errors import ConnectionLost, EncodeError
from stratum_bus.event import Event, new
from stratum_bus.testing import eventually
from tests.agents.conftest import addressed, ids, kinds, stored


def _agent(code: Any) -> Agent:
    agent = Agent("worker")

    @agent.on("work")
    async def do(run: Run, event: Event[Any]) -> Any:
        return await code(run)

    return agent


async def _error(kit: Any, run: str) -> tuple[str, str]:
    """How a run failed."""
    journal = await kit.journal(run)
    assert journal.state == "failed"
    error = journal.end.entry.error
    return error.type, error.message


async def test_attempts_are_journaled_with_their_errors_and_their_backoff_is_kept_over_crashes(
    bus: Bus,
) -> None:
    tried: list[datetime] = []
    retry = Retry(max_attempts=4, first_seconds=60, factor=2, max_seconds=3600)

    clocks: list[Clock] = []

    async def flaky() -> str:
        tried.append(clocks[0].now())
        if len(tried) < 4:
            raise OSError(f"no {len(tried)}")
        return "at last"

    agent = _agent(lambda run: run.step("flaky", flaky, retry=retry))
    async with runs(bus, agent) as kit:
        clocks.append(kit.clock)
        run = await kit.start("work")
        assert (await kit.journal(run)).state == "waiting"
        await kit.advance(seconds=29)
        assert len(tried) == 1
        kit.crash(2, stored=True)
        await kit.advance(hours=1)
        assert await kit.result(run) == "at last"
        assert kit.crashed == 1
        journal = await kit.journal(run)
        failed = [r.entry for r in journal.entries if r.kind == STEP_FAILED]
        assert [(f.attempt, f.error.message if f.error else "", f.final) for f in failed] == [
            (1, "no 1", False), (2, "no 2", False), (3, "no 3", False),
        ]  # fmt: skip
        assert [f.until for f in failed] == sorted(f.until for f in failed if f.until)
        # Each wait is at least half of its time, the later ones too, and not skipped by an earlier.
        gaps = [(b - a).total_seconds() for a, b in itertools.pairwise(tried)]
        assert gaps[0] >= 30
        assert gaps[1] >= 60
        assert gaps[2] >= 120


async def test_fewer_attempts_in_new_code_end_a_step_that_had_more(bus: Bus) -> None:
    async def fail() -> None:
        raise OSError("no")

    def agent(most: int) -> Agent:
        retry = Retry(max_attempts=most, first_seconds=60)
        return _agent(lambda run: run.step("bad", fail, retry=retry))

    async with runs(bus, agent(10)) as kit:
        run = await kit.start("work")
        await kit.advance(minutes=3)
        assert kinds(await kit.journal(run)).count(STEP_FAILED) >= 2
        kit.deploy(agent(1))
        await kit.advance(hours=1)
        tried = kinds(await kit.journal(run)).count(STEP_FAILED)
        message = f"step 'bad' failed, tried {tried} times: OSError: no"
        assert await _error(kit, run) == ("StepFailed", message)


async def test_a_terminal_error_and_what_is_never_retried_fail_at_once(bus: Bus) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def code(run: Run) -> list[int]:
        attempts = []
        for error in (Terminal("no"), KeyError("x")):
            try:
                await run.step("bad", fail, error, retry=Retry(never=(KeyError,)))
            except StepFailed as failed:
                attempts.append(failed.attempts)
        return attempts

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        assert await kit.result(run) == [1, 1]


async def test_a_step_is_over_when_its_time_is_even_where_a_thread_goes_on(bus: Bus) -> None:
    hang = threading.Event()

    async def slow() -> None:
        await anyio.sleep_forever()

    async def code(run: Run) -> list[str]:
        said = []
        for function in (slow, hang.wait):
            try:
                retry = Retry(max_attempts=1)
                await run.step("slow", function, retry=retry, timeout_seconds=0.05)
            except StepFailed as failed:
                said.append(f"{failed.failure.type}: {failed.failure.message}")
        return said

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        assert await kit.result(run) == ["TimeoutError: it took longer than 0.05 s"] * 2
    hang.set()


class Thing(msgspec.Struct):
    name: str
    made: datetime
    parts: dict[str, list[int]]


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (object(), "$.result", "object"),
        ({"a": [1, {"b": {2}, "c": lambda: 1}]}, "$.result.a[1].c", "function"),
        (b"\xff".decode("latin1") + "\ud800", "$.result", "string"),
    ],
)
async def test_a_result_that_cannot_be_encoded_fails_the_run_at_once_and_nothing_is_journaled(
    bus: Bus, value: Any, path: str, kind: str
) -> None:
    done: list[str] = []

    async def make() -> Any:
        done.append("made")
        return value

    async def careless(run: Run) -> str:
        try:
            await run.step("make", make)
        except Exception:  # noqa: BLE001 - what a careless handler does
            await run.step("other", make)
        return "over"

    async with runs(bus, _agent(careless)) as kit:
        run = await kit.start("work")
        journal = await kit.journal(run)
        assert (kinds(journal), done) == (["failed"], ["made"])
        name, message = await _error(kit, run)
        assert name == EncodeError.__name__
        assert message.startswith(f"{path} is a {kind}")
        [letter] = await kit.events("dead.worker.>")
        assert path in letter.data["error"]


async def test_a_result_comes_back_as_its_annotation_says_live_and_replayed(bus: Bus) -> None:
    made = Thing("a", datetime(2026, 1, 2, tzinfo=UTC), {"x": [1, 2]})
    seen: list[Any] = []

    async def make() -> Thing:
        return made

    async def code(run: Run) -> None:
        seen.append(await run.step("make", make))
        await run.sleep(days=1)

    async with runs(bus, _agent(code)) as kit:
        await kit.start("work")
        await kit.advance(days=1)
        assert seen == [made, made]


async def test_a_result_that_is_not_of_its_annotation_fails_the_step_for_good(bus: Bus) -> None:
    tried: list[int] = []

    async def lie() -> int:
        tried.append(1)
        return "three"  # type: ignore[return-value]

    async def code(run: Run) -> str:
        try:
            await run.step("lie", lie)
        except StepFailed as failed:
            return failed.failure.message
        return ""

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        assert "the result is not what lie says it returns" in await kit.result(run)
        assert tried == [1]


async def test_what_is_sent_is_what_it_was_when_it_was_sent(bus: Bus) -> None:
    async def code(run: Run) -> None:
        data = {"n": 1}
        await run.send("editor", "note", data)
        data["n"] = 2
        await run.send("editor", "note", data)
        with pytest.raises(EncodeError, match=r"\$\.data\.bad is a object"):
            await run.send("editor", "note", {"bad": object()})

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        assert (await kit.journal(run)).state == "completed"
        assert [event.data for event in await kit.events("inbox.editor.>")] == [{"n": 1}, {"n": 2}]


async def test_awaiting_something_cancelled_is_an_error_of_the_step_and_no_slot_is_lost(
    bus: Bus,
) -> None:
    async def await_cancelled() -> None:
        task = asyncio.get_running_loop().create_task(anyio.sleep_forever())
        task.cancel()
        await task

    async def code(run: Run) -> str:
        try:
            await run.step("await", await_cancelled, retry=Retry(max_attempts=1))
        except StepFailed as failed:
            return failed.failure.message
        return ""

    agent = _agent(code)
    agent.concurrency = 1

    @agent.on("bare")
    async def bare(run: Run, event: Event[Any]) -> None:
        await await_cancelled()

    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: work(bus, agent, stop=stop))
        for type in ("bare", "work"):
            event = new(type, None, source="/test", id=type)
            await bus.publish(f"inbox.worker.test.{type}", event)
        journal = Journal(bus, "worker", run_id("worker", "work"))

        async def ended() -> bool:
            return (await journal.load()).end is not None

        await eventually(ended, within_seconds=10)
        stop.set()
    result = bytes(journal.entries[-1].entry.result)
    assert result == b'"something that was awaited had been cancelled"'


async def test_closures_of_steps_do_not_keep_their_runs_in_memory(bus: Bus) -> None:
    class Load:
        pass

    loads: list[weakref.ref[Load]] = []

    async def code(run: Run) -> str:
        load = Load()
        loads.append(weakref.ref(load))

        async def use() -> str:
            return str(load)

        return (await run.step("use", use))[:4]

    async with runs(bus, _agent(code)) as kit:
        for _ in range(5):
            await kit.start("work")
        gc.collect()
        assert [load() for load in loads] == [None] * 5


async def test_more_messages_than_fit_one_commit_are_sent_once_each(bus: Bus) -> None:
    async def code(run: Run) -> str:
        for number in range(1100):
            await run.send("editor", "note", number)
        return "sent"

    async with runs(bus, _agent(code)) as kit:
        kit.crash(2, stored=True)
        run = await kit.start("work")
        assert (await kit.result(run), kit.crashed) == ("sent", 1)
        said = [event.data for event in await kit.events("inbox.editor.>")]
        assert said == list(range(1100))
        assert kinds(await kit.journal(run)).count(SENT) == 2


async def test_a_lost_server_is_no_failure_that_a_handler_could_catch(bus_url: str) -> None:
    """It would go on as if a step had failed, and journal what no replay does again."""
    caught: list[str] = []

    class Losing(Bus):
        lose = False

        async def commit(self, appends: Any) -> Any:
            if self.lose:
                raise ConnectionLost("gone")
            return await super().commit(appends)

    async with connect(bus_url) as bus:
        losing = Losing.__new__(Losing)
        losing.__dict__.update(bus.__dict__)

        async def fine() -> str:
            losing.lose = len(caught) == 0
            return "fine"

        async def code(run: Run) -> str:
            try:
                return await run.step("fine", fine)
            except Exception:  # noqa: BLE001 - what a careless handler does
                caught.append("fallback")
                losing.lose = False
                await run.step("fallback", fine)
                return "fallback"

        given = await stored(bus, "inbox.worker.test.work", new("work", None, source="/test"))
        worker = Worker(losing, _agent(code))
        with pytest.raises(ConnectionLost):
            await worker.handle(given)
        journal = await Journal(bus, "worker", run_id("worker", given.event.id)).load()
        assert (caught, kinds(journal)) == (["fallback"], [])
        await worker.handle(given)
        journal = await Journal(bus, "worker", run_id("worker", given.event.id)).load()
        assert kinds(journal) == [STEP_COMPLETED, "completed"]
        assert journal.decided["1"].entry.name == "step:fine"


async def test_a_note_of_the_same_name_by_two_runs_stands_under_an_id_of_each(bus: Bus) -> None:
    async def code(run: Run) -> str:
        return await run.remember("fact", "known", note="the-fact")

    async with runs(bus, _agent(code)) as kit:
        first, second = [await kit.start("work"), await kit.start("work")]
        assert await kit.result(first) == await kit.result(second) == "the-fact"
        assert await ids(bus, "memory.worker.>") == [f"{first}-1", f"{second}-1"]


async def test_short_waits_of_a_retry_pass_at_once_by_the_standing_clock(bus: Bus) -> None:
    tried: list[int] = []

    async def flaky() -> str:
        tried.append(1)
        if len(tried) < 4:
            raise OSError("no")
        return "done"

    async with runs(bus, _agent(lambda run: run.step("flaky", flaky))) as kit:
        began = kit.clock.now()
        run = await kit.start("work")
        assert await kit.result(run) == "done"
        assert timedelta(seconds=1) < kit.clock.now() - began < timedelta(seconds=5)


async def test_a_call_on_the_run_within_a_step_is_refused_with_what_to_do_instead(
    bus: Bus,
) -> None:
    """A replay does not do the step, so that all places behind it would be others."""

    async def code(run: Run) -> str:
        async def tell() -> str:
            return await run.send("editor", "note", 1)

        try:
            await run.step("tell", tell)
        except Exception:  # noqa: BLE001 - what a careless handler does
            await run.step("tell again", tell)
        return "told"

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        name, message = await _error(kit, run)
        assert name == "RunFailed"
        assert "a step is done once: return from the step" in message
        assert await ids(bus, "inbox.editor.>") == []


async def test_another_server_that_is_lost_is_a_failure_like_any_other(bus: Bus) -> None:
    async def code(run: Run) -> None:
        raise ConnectionLost("no connection to the other one")

    async with runs(bus, _agent(code)) as kit:
        run = await kit.start("work")
        assert await _error(kit, run) == ("ConnectionLost", "no connection to the other one")


async def test_an_event_for_a_run_that_cannot_be_is_rejected_at_once(bus: Bus) -> None:
    event = addressed(new("word", None, source="/test"), "no.run")
    given = await stored(bus, "inbox.worker.test.word", event)
    outcome = await Worker(bus, _agent(None)).handle(given)
    assert isinstance(outcome, Reject)
    assert "no.run" in outcome.reason
