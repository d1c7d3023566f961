"""Journals that cannot be read: the run is parked with the reason, wherever that is met."""

from __future__ import annotations

from typing import Any

import anyio.lowlevel
import msgspec
import pytest

from stratum_agents.agent import Agent
from stratum_agents.journal import PARKED, SIGNALLED, Journal
from stratum_agents.run import Run, run_id
from stratum_agents.testing import Kit, runs
from stratum_agents.worker import Worker
from stratum_bus import schema
from stratum_bus.blob import put
from stratum_bus.bus import Bus
from stratum_bus.consume import Done
from stratum_bus.errors import ConnectionLost
from stratum_bus.event import Event, encode, new
from stratum_bus.stream import load_streams, provision
from tests.agents.conftest import kinds, stored, text

GARBAGE = [
    (b"\xff\xfe not even text", "not a readable event"),
    (b'{"plain": "json"}', "no journal entry"),
    (encode(new("stratum.run.unheard-of", {}, source="/test", id="x1")), "no journal entry"),
    (encode(new("stratum.run.step.completed", {"n": 7}, source="/test", id="x2")), "is damaged"),
    (
        encode(
            Event(
                id="x3", source="/test", type="stratum.run.step.completed",
                dataref=f"blob:{'0' * 64}", data=None,
            )
        ),
        "there is no blob",
    ),
]  # fmt: skip


def _agent() -> Agent:
    agent = Agent("clerk")

    async def read() -> str:
        return "read"

    @agent.on("form.came")
    async def came(run: Run, event: Event[Any]) -> str:
        await run.step("read", read)
        return text(await run.wait_for("stamp", timeout_days=1))

    return agent


async def _damage(bus: Bus, run: str, payload: bytes) -> None:
    headers = {"Content-Type": "application/cloudevents+json"} if b"specversion" in payload else {}
    await bus.connection.request(f"run.clerk.{run}", payload, headers)


async def _state(kit: Kit, run: str) -> tuple[str, str]:
    """The run's state and the error it was parked with, of a journal that cannot be read."""
    journal = Journal(kit.bus, "clerk", run)
    with pytest.raises(Exception, match=r"damaged|no journal entry"):
        await journal.load()
    assert journal.parked is not None
    return journal.state, str(journal.parked.entry.error)


@pytest.mark.parametrize(("payload", "reason"), GARBAGE)
async def test_a_waiting_run_with_a_damaged_journal_is_parked_by_what_would_wake_it(
    bus: Bus, payload: bytes, reason: str
) -> None:
    async with runs(bus, _agent()) as kit:
        run, other = await kit.start("form.came"), await kit.start("form.came")
        await _damage(bus, run, payload)
        await kit.signal(run, "stamp", 1)
        state, error = await _state(kit, run)
        assert state == PARKED
        assert reason in error
        # What was said to it is kept, and does not park it again.
        await kit.signal(run, "stamp", 2)
        await kit.advance(days=2)
        journal = Journal(bus, "clerk", run)
        with pytest.raises(Exception, match=r"damaged|no journal entry"):
            await journal.load()
        assert kinds(journal).count(PARKED) == 1
        assert kinds(journal).count(SIGNALLED) == 2
        # Others go on.
        assert (await kit.journal(other)).state == "failed"  # its time was over
        assert (await kit.journal(await kit.start("form.came"))).state == "waiting"


@pytest.mark.parametrize(("payload", "reason"), GARBAGE)
async def test_a_working_run_that_meets_damage_is_parked(
    bus: Bus, payload: bytes, reason: str
) -> None:
    agent = Agent("clerk")

    async def damage(run: str) -> None:
        await _damage(bus, run, payload)

    @agent.on("form.came")
    async def came(run: Run, event: Event[Any]) -> str:
        await run.step("damage", damage, run.id)
        return "done"

    async with runs(bus, agent) as kit:
        state, error = await _state(kit, await kit.start("form.came"))
        assert state == PARKED
        assert reason in error
        assert await kit.events("dead.>") == []


async def test_a_run_whose_process_died_and_whose_journal_is_damaged_is_parked(bus: Bus) -> None:
    worker = Worker(bus, _agent())
    given = await stored(bus, "inbox.clerk.test.form.came", new("form.came", None, source="/test"))
    run = run_id("clerk", given.event.id)
    await worker.handle(given)
    await _damage(bus, run, b"\xff")
    again = msgspec.structs.replace(given, attempt=2)
    assert await Worker(bus, _agent()).handle(again) == Done()
    async with runs(bus, _agent()) as kit:
        assert (await _state(kit, run))[0] == PARKED


async def test_a_run_is_taken_up_where_the_code_can_read_its_journal_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an upcaster of the journal's entries was wrong, and is mended."""
    known = schema.TYPES["stratum.run.step.completed"]
    async with runs(bus, _agent()) as kit:
        run = await kit.start("form.came")
        with monkeypatch.context() as broken:
            broken.setattr(known, "version", 2)
            broken.setattr(known, "upcasters", {1: lambda data: data["not there"]})
            await kit.signal(run, "stamp", 1)
            state, error = await _state(kit, run)
            assert state == PARKED
            assert "the upcaster of stratum.run.step.completed from version 1 failed" in error
        await kit.resume(run)
        assert await kit.result(run) == "1"


async def test_a_lost_server_is_not_taken_for_damage(bus: Bus) -> None:
    """What stands in a blob cannot be had while the server is away."""

    class Losing(Bus):
        async def with_data(self, found: Any) -> Any:
            if found.dataref:
                raise ConnectionLost("gone")
            return await super().with_data(found)

    losing = Losing.__new__(Losing)
    losing.__dict__.update(bus.__dict__)
    async with runs(bus, _agent()) as kit:
        run = await kit.start("form.came")
        digest = await put(bus.connection, b'{"n":"9"}')
        event: Event[Any] = Event(
            id="x", source="/test", type="stratum.run.signalled", dataref=f"blob:{digest}"
        )
        await _damage(bus, run, encode(event))
        with pytest.raises(ConnectionLost):
            await Journal(losing, "clerk", run).load()
        assert (await kit.journal(run)).state == "waiting"


async def test_a_step_result_whose_blob_is_gone_parks_the_run(bus: Bus) -> None:
    agent = Agent("clerk")

    async def read() -> list[str]:
        return ["x" * 2000] * 20

    @agent.on("form.came")
    async def came(run: Run, event: Event[Any]) -> int:
        pages = await run.step("read", read)
        await run.wait_for("stamp")
        return len(pages)

    async with runs(bus, agent) as kit:
        run = await kit.start("form.came")
        await bus.connection.api("STREAM.DELETE.BLOBS")
        await anyio.lowlevel.checkpoint()
        await provision(bus.connection, load_streams())
        await kit.signal(run, "stamp")
        journal = await kit.journal(run)
        assert journal.state == PARKED
        assert "there is no blob" in str(journal.entries[-1].entry.error)
