"""Who owns a run: the same event many times, two workers at once, one that comes late."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from stratum_agents.agent import Agent
from stratum_agents.journal import RESUMED, STEP_COMPLETED, Entry, Journal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import runs
from stratum_agents.worker import Worker, work
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import Delivery, Done, Leave
from stratum_bus.event import Event, encode, new
from stratum_bus.testing import eventually
from tests.agents.conftest import ForgetfulBus, addressed, ids, kinds, stored

WANTED = "inbox.painter.test.picture.wanted"


class Painter:
    """An agent whose steps wait for the test's word, and say that they began."""

    def __init__(
        self, name: str = "painter", *, steps: int = 3, held: tuple[int, ...] = ()
    ) -> None:
        self.agent = Agent(name)
        self.begun: list[str] = []
        self.go_on = anyio.Event()
        self.held = held

        @self.agent.on("picture.wanted")
        async def wanted(run: Run, event: Event[Any]) -> str:
            for number in range(1, steps + 1):
                await run.send("gallery", "stroke", number)
                await run.step(f"stroke {number}", self.stroke, number)
            await run.remember("picture", "painted")
            return "painted"

    async def stroke(self, number: int, idempotency_key: str) -> str:
        self.begun.append(idempotency_key)
        if number in self.held:
            await self.go_on.wait()
        return f"{number} by {id(self)}"

    async def reached(self, steps: int) -> None:
        await eventually(lambda: len(self.begun) == steps)


def _later(delivery: Delivery, attempt: int) -> Delivery:
    """The same message, delivered once more."""
    return replace(delivery, attempt=attempt)


async def test_one_event_as_five_messages_at_once_is_one_run(forgetful_bus: ForgetfulBus) -> None:
    painter = Painter()
    async with forgetful_bus() as bus:
        payload = encode(new("picture.wanted", None, source="/test", id="the-one"))
        headers = {"Content-Type": "application/cloudevents+json"}
        for number in range(5):
            id = {"Nats-Msg-Id": f"copy-{number}"}
            await bus.connection.request(WANTED, payload, {**headers, **id})
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(lambda: work(bus, painter.agent, stop=stop))
            await eventually(lambda: ids(bus, "memory.painter.>"))
            await eventually(lambda: _all_settled(bus), within_seconds=10)
            # And again when the run is over.
            await bus.connection.request(WANTED, payload, {**headers, "Nats-Msg-Id": "late"})
            await eventually(lambda: _all_settled(bus), within_seconds=10)
            stop.set()
        run = run_id("painter", "the-one")
        journal = await Journal(bus, "painter", run).load()
        assert kinds(journal) == [STEP_COMPLETED] * 3 + ["completed"]
        assert await ids(bus, "inbox.gallery.>") == [f"{run}-{n}" for n in (1, 3, 5)]
        assert await ids(bus, "memory.painter.>") == [f"{run}-7"]
        # Two instances may both have begun the first step: with one key.
        assert len(set(painter.begun)) == 3
        assert len(painter.begun) <= 4
        assert await ids(bus, "dead.>") == []


async def _all_settled(bus: Bus) -> bool:
    info = await bus.connection.api("CONSUMER.INFO.LOG.painter")
    return info["num_pending"] + info["num_ack_pending"] == 0  # type: ignore[no-any-return]


async def test_one_event_delivered_five_times_after_its_run_is_over_does_nothing(bus: Bus) -> None:
    painter = Painter()
    worker = Worker(bus, painter.agent)
    given = await stored(bus, WANTED, new("picture.wanted", None, source="/test"))
    assert await worker.handle(given) == Done()
    before = await ids(bus, ">")
    # A server that was killed may even call a further delivery the first one.
    for attempt in (1, 1, 2, 3, 4):
        assert await worker.handle(_later(given, attempt)) == Done()
    assert await ids(bus, ">") == before
    assert len(painter.begun) == 3


async def test_a_late_owner_is_fenced_at_its_next_commit_and_does_nothing_more(
    bus_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    slow, quick = Painter(held=(2,)), Painter()
    async with connect(bus_url) as bus, connect(bus_url) as other_bus:
        given = await stored(bus, WANTED, new("picture.wanted", None, source="/test"))
        run = run_id("painter", given.event.id)
        outcomes: list[Any] = []

        async def late() -> None:
            outcomes.append(await Worker(bus, slow.agent).handle(given))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            await slow.reached(2)
            worker = Worker(other_bus, quick.agent)
            assert await worker.handle(_later(given, 2)) == Done()
            said = await ids(bus, "inbox.gallery.>", "memory.painter.>")
            journal = await Journal(bus, "painter", run).load()
            slow.go_on.set()
        assert outcomes == [Leave()]
        assert len(slow.begun) == 2
        assert await ids(bus, "inbox.gallery.>", "memory.painter.>") == said
        after = await Journal(bus, "painter", run).load()
        assert kinds(after) == kinds(journal)
        lines = [r for r in caplog.records if r.name.startswith("stratum") and r.levelno >= 30]
        assert [r.getMessage() for r in lines] == [
            f"run {run} was taken over by another worker: left to it"
        ]


@pytest.mark.parametrize("frozen_in", [1, 2])
async def test_a_late_owner_does_not_take_the_entry_of_another_for_its_own(
    bus_url: str, frozen_in: int
) -> None:
    """Both did the same step, and the other has got no further: the next to append is that one.

    In the first step, nothing in the journal tells a late owner from the worker of a new run.
    """
    slow, quick = Painter(held=(frozen_in,)), Painter(held=(frozen_in + 1,))
    async with connect(bus_url) as bus, connect(bus_url) as other_bus:
        given = await stored(bus, WANTED, new("picture.wanted", None, source="/test"))
        outcomes: dict[str, Any] = {}

        async def handle(name: str, bus: Bus, painter: Painter, attempt: int) -> None:
            outcomes[name] = await Worker(bus, painter.agent).handle(_later(given, attempt))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(handle, "slow", bus, slow, 1)
            await slow.reached(frozen_in)
            tasks.start_soon(handle, "quick", other_bus, quick, 2)
            await quick.reached(2)
            slow.go_on.set()
            await eventually(lambda: "slow" in outcomes)
            quick.go_on.set()
        assert outcomes == {"slow": Leave(), "quick": Done()}
        assert len(slow.begun) == frozen_in
        journal = await Journal(bus, "painter", run_id("painter", given.event.id)).load()
        result = bytes(journal.decided[str(2 * frozen_in)].entry.result).decode()
        assert result == f'"{frozen_in} by {id(quick)}"'
        assert journal.state == "completed"
        assert len(await ids(bus, "inbox.gallery.>")) == 3


async def test_of_two_signals_that_wake_a_run_at_once_one_goes_on_with_it(bus_url: str) -> None:
    agent = Agent("painter")
    begun: list[str] = []

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        await run.wait_for("word")
        await run.step("paint", paint)
        await run.wait_for("word")
        return "painted"

    async def paint(idempotency_key: str) -> None:
        begun.append(idempotency_key)

    async with connect(bus_url) as bus, connect(bus_url) as other_bus:
        workers = Worker(bus, agent), Worker(other_bus, agent)
        given = await stored(bus, WANTED, new("picture.wanted", None, source="/test"))
        await workers[0].handle(given)
        run = run_id("painter", given.event.id)
        words: list[Delivery] = []
        for _ in workers:
            event = addressed(new("word", None, source="/test"), run)
            words.append(await stored(bus, "inbox.painter.test.word", event))
        outcomes: list[Any] = []

        async def handle(worker: Worker, word: Delivery) -> None:
            outcomes.append(await worker.handle(word))

        async with anyio.create_task_group() as tasks:
            for worker, word in zip(workers, words, strict=True):
                tasks.start_soon(handle, worker, word)
        # Who came second left it to the other, or its message comes again: nothing is lost.
        for worker, word in zip(workers, words, strict=True):
            await worker.handle(_later(word, 2))
        journal = await Journal(bus, "painter", run).load()
        assert journal.state == "completed"
        assert len(begun) <= 2 and len(set(begun)) == 1
        assert kinds(journal).count(STEP_COMPLETED) == 1


async def test_an_append_whose_answer_was_lost_is_known_for_ones_own_behind_an_input(
    bus: Bus,
) -> None:
    """It is not the last entry any more when the owner looks, and must not pass for another's."""
    journal = Journal(bus, "painter", "r1")
    await journal.append(RESUMED, Entry(holder="LOG-1"), id="r1-resumed")
    behind = journal.last_sequence
    await journal.append(STEP_COMPLETED, Entry(n="1", name="step:x", result=1), id="r1-1")
    await Journal(bus, "painter", "r1").add_input("signalled", Entry(name="word"), id="in")
    # As if the last append had not been answered, and were tried again.
    forgetful = Journal(bus, "painter", "r1")
    forgetful._owner = journal._owner
    forgetful.last_sequence = behind
    await forgetful.append(STEP_COMPLETED, Entry(n="1", name="step:x", result=1), id="r1-1")
    assert forgetful.decided["1"].sequence == journal.last_sequence
    whole = await Journal(bus, "painter", "r1").load()
    assert kinds(whole) == [RESUMED, STEP_COMPLETED, "signalled"]


async def test_a_run_given_back_while_it_waits_is_not_left_alone(bus: Bus) -> None:
    """Nothing but a redelivery knows of a run whose process died before its timer was set."""
    agent = Agent("painter")

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        await run.sleep(days=1)
        return "dry"

    async with runs(bus, agent) as kit:
        kit.crash(1, stored=True)
        run = await kit.start("picture.wanted")
        assert kit.crashed == 1
        await kit.advance(days=1)
        assert await kit.result(run) == "dry"


async def test_another_message_with_the_event_of_a_waiting_run_changes_nothing(
    forgetful_bus: ForgetfulBus,
) -> None:
    agent = Agent("painter")

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        await run.sleep(days=1)
        return "dry"

    async with forgetful_bus() as bus, runs(bus, agent) as kit:
        run = await kit.start("picture.wanted", id="the-one")
        before = kinds(await kit.journal(run))
        payload = encode(new("picture.wanted", None, source="/test", id="the-one"))
        headers = {"Content-Type": "application/cloudevents+json", "Nats-Msg-Id": "copy"}
        await bus.connection.request(WANTED, payload, headers)
        await kit.settle()
        assert kinds(await kit.journal(run)) == before
