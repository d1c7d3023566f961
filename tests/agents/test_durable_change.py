"""Code that was changed while runs were open: mismatches, versions, and going on when it is mended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from stratum_agents.agent import Agent
from stratum_agents.journal import PARKED, STEP_COMPLETED
from stratum_agents.run import Run
from stratum_agents.testing import Kit, runs
from stratum_bus.bus import Bus
from stratum_bus.event import Event
from tests.agents.conftest import kinds, text

Code = Callable[[Run], Awaitable[Any]]


class Read(msgspec.Struct):
    pages: int


class Form(msgspec.Struct):
    number: int


def _agent(code: Code) -> Agent:
    agent = Agent("clerk")

    @agent.on("form.came")
    async def came(run: Run, event: Event[Any]) -> Any:
        return await code(run)

    @agent.on("other.came")
    async def other(run: Run, event: Event[Any]) -> str:
        return "handled"

    return agent


async def _done(word: str = "") -> str:
    return f"done {word}"


async def _old(run: Run) -> str:
    await run.step("read", _done)
    await run.send("archive", "form.read", None)
    await run.step("check", _done)
    await run.wait_for("stamp")
    return await run.step("file", _done)


async def _renamed(run: Run) -> None:
    await run.step("read", _done)
    await run.send("archive", "form.read", None)
    await run.step("inspect", _done)


async def _removed(run: Run) -> None:
    await run.step("read", _done)
    await run.send("archive", "form.read", None)
    await run.wait_for("stamp")


async def _added(run: Run) -> None:
    await run.step("read", _done)
    await run.step("weigh", _done)
    await run.send("archive", "form.read", None)


async def _sent_to_another(run: Run) -> None:
    await run.step("read", _done)
    await run.send("library", "form.read", None)


async def _other_wait(run: Run) -> None:
    await run.step("read", _done)
    await run.send("archive", "form.read", None)
    await run.step("check", _done)
    await run.wait_for("signature")


async def _no_wait(run: Run) -> str:
    await run.step("read", _done)
    await run.send("archive", "form.read", None)
    await run.step("check", _done)
    return "over"


async def _shifted_by_chance(run: Run) -> None:
    await run.step("read", _done)
    run.uuid()


async def _swallowing(run: Run) -> str:
    """Goes on where a step fails, whatever the reason."""
    for name in ("read", "renamed", "more"):
        try:
            await run.step(name, _done)
        except Exception:  # noqa: BLE001 - what a careless handler does
            await run.send("archive", "trouble", None)
    return "over"


CHANGES = [
    (_renamed, "3", "step:check", "step:inspect"),
    (_removed, "3", "step:check", "wait:stamp"),
    (_added, "2", "form.read for inbox.archive.clerk.form.read", "step:weigh"),
    (
        _sent_to_another,
        "2",
        "form.read for inbox.archive.clerk.form.read",
        "form.read for inbox.library.clerk.form.read",
    ),
    (_other_wait, "4", "wait:stamp", "wait:signature"),
    (_no_wait, "4", "wait:stamp", "nothing more"),
    (_shifted_by_chance, "2", "form.read for inbox.archive.clerk.form.read", "uuid"),
    (_swallowing, "2", "form.read for inbox.archive.clerk.form.read", "step:renamed"),
]


@pytest.mark.parametrize(("code", "n", "journaled", "asked"), CHANGES)
async def test_changed_code_parks_the_run_with_both_sides_and_is_taken_up_when_mended(
    bus: Bus, code: Code, n: str, journaled: str, asked: str
) -> None:
    async with runs(bus, _agent(_old)) as kit:
        run = await kit.start("form.came")
        before = len(await kit.events("inbox.archive.>", "inbox.library.>"))
        kit.deploy(_agent(code))
        await kit.signal(run, "stamp", 1)
        await kit.resume(run)
        journal = await kit.journal(run)
        assert journal.state == "parked"
        assert journal.parked is not None
        error = journal.parked.entry.error
        assert error is not None
        assert error.type == "JournalMismatch"
        assert error.message.startswith(
            f"run {run} at {n}: the journal holds {journaled}, the handler asks for {asked}. "
        )
        assert "run.version" in error.message
        assert len(await kit.events("inbox.archive.>", "inbox.library.>")) == before
        # Others go on.
        assert (await kit.journal(await kit.start("other.came"))).state == "completed"
        # A signal does not touch a parked run; it finds it later.
        await kit.signal(run, "stamp", 2)
        assert (await kit.journal(run)).state == "parked"
        kit.deploy(_agent(_old))
        await kit.resume(run)
        assert await kit.result(run) == "done "


async def test_code_that_changes_between_a_crash_and_the_next_try_parks_the_run(bus: Bus) -> None:
    async with runs(bus, _agent(_old)) as kit:
        kit.crash(2, stored=True, then=_agent(_renamed))
        run = await kit.start("form.came")
        assert (kit.crashed, (await kit.journal(run)).state) == (1, "parked")
        kit.deploy(_agent(_old))
        await kit.resume(run)
        await kit.signal(run, "stamp", 1)
        assert await kit.result(run) == "done "
        assert kinds(await kit.journal(run)).count(STEP_COMPLETED) == 3


async def test_a_version_lets_sleeping_runs_end_the_old_way_and_new_ones_take_the_new(
    bus: Bus,
) -> None:
    async def versioned(run: Run) -> str:
        await run.step("read", _done)
        await run.send("archive", "form.read", None)
        await run.step("check", _done)
        # At the very place where the old runs wait.
        if run.version("weighed"):
            await run.step("weigh", _done)
        await run.wait_for("stamp")
        if run.version("filed-2026"):
            return await run.step("file better", _done, "better")
        return await run.step("file", _done, "as ever")

    async with runs(bus, _agent(_old)) as kit:
        old = await kit.start("form.came")
        kit.deploy(_agent(versioned))
        new = await kit.start("form.came")
        for run in (old, new):
            # Looked at again on the way: what was decided stays so.
            await kit.signal(run, "chatter", 0)
            await kit.pause(run)
            await kit.resume(run)
            await kit.signal(run, "stamp", 1)
        names = {n: r.entry.name for n, r in (await kit.journal(new)).decided.items()}
        assert names["4"] == "step:weigh"
        assert await kit.result(new) == "done better"
        # Where the old run had not yet come, it goes the new way.
        assert await kit.result(old) == "done better"
        assert (await kit.journal(old)).versions == {"filed-2026"}


async def test_a_version_since_a_time_leaves_runs_that_began_before_it_alone(bus: Bus) -> None:
    async def plain(run: Run) -> str:
        await run.wait_for("stamp")
        return "plain"

    async with runs(bus, _agent(plain)) as kit:
        old = await kit.start("form.came")
        since = kit.clock.now() + timedelta(days=1)

        async def versioned(run: Run) -> str:
            await run.wait_for("stamp")
            return "new" if run.version("new", since=since) else "plain"

        await kit.advance(days=2)
        kit.deploy(_agent(versioned))
        new = await kit.start("form.came")
        for run in (old, new):
            await kit.signal(run, "stamp")
        assert [await kit.result(run) for run in (old, new)] == ["plain", "new"]


async def test_a_version_taken_before_a_failure_is_kept_while_the_run_is_undone(bus: Bus) -> None:
    async def undo(run: str) -> str:
        return f"undone {run}"

    async def code(run: Run) -> None:
        await run.step("read", _done)
        if run.version("with-undo"):
            run.compensate(undo, "new")
        else:
            run.compensate(undo, "old")
        raise run.fail("no")

    async with runs(bus, _agent(code)) as kit:
        kit.crash(3, stored=True)
        run = await kit.start("form.came")
        assert kit.crashed == 1
        undone = (await kit.journal(run)).decided["c1"].entry.result
        assert bytes(undone) == b'"undone new"'


async def test_a_result_that_is_not_of_the_new_type_parks_the_run(bus: Bus) -> None:
    async def text_of() -> str:
        return "ten"

    async def pages_of() -> Read:
        return Read(10)

    def reads(function: Callable[[], Awaitable[Any]]) -> Code:
        async def code(run: Run) -> Any:
            read = await run.step("read", function)
            await run.wait_for("stamp")
            return read

        return code

    async with runs(bus, _agent(reads(text_of))) as kit:
        run = await kit.start("form.came")
        kit.deploy(_agent(reads(pages_of)))
        await kit.signal(run, "stamp")
        journal = await kit.journal(run)
        assert journal.parked is not None
        assert journal.parked.entry.error is not None
        assert "a result of step:read" in journal.parked.entry.error.message


async def test_an_undo_of_another_name_parks_the_run_and_others_go_on(bus: Bus) -> None:
    async def undo_old() -> None:
        pass

    async def undo_new() -> None:
        pass

    def failing(undo: Callable[[], Awaitable[None]]) -> Code:
        async def code(run: Run) -> None:
            run.compensate(_done)
            run.compensate(undo)
            await run.step("read", _done)
            raise run.fail("no")

        return code

    async with runs(bus, _agent(failing(undo_old))) as kit:
        kit.crash(4, then=_agent(failing(undo_new)))
        run = await kit.start("form.came")
        journal = await kit.journal(run)
        assert journal.state == "parked"
        assert journal.parked is not None
        assert "undo undo_old" in str(journal.parked.entry.error)
        assert (await kit.journal(await kit.start("other.came"))).state == "completed"
        kit.deploy(_agent(failing(undo_old)))
        await kit.resume(run)
        assert (await kit.journal(run)).state == "failed"


async def test_a_run_whose_handler_is_gone_is_parked_until_it_is_back(bus: Bus) -> None:
    async with runs(bus, _agent(_old)) as kit:
        run = await kit.start("form.came")
        kit.deploy(Agent("clerk"))
        await kit.signal(run, "stamp", 1)
        assert PARKED in kinds(await kit.journal(run))
        kit.deploy(_agent(_old))
        await kit.resume(run)
        assert await kit.result(run) == "done "


async def test_event_data_of_another_type_parks_an_open_run(bus: Bus) -> None:
    async def stamped(run: Run) -> str:
        return text(await run.wait_for("stamp"))

    changed = Agent("clerk")

    @changed.on("form.came")
    async def came(run: Run, event: Event[Form]) -> str:
        return await stamped(run)

    async with runs(bus, _agent(stamped)) as kit:
        run = await kit.start("form.came", {"number": "one"})
        kit.deploy(changed)
        await kit.signal(run, "stamp", 1)
        assert (await kit.journal(run)).state == "parked"
        assert await _letters(kit) == []


async def _letters(kit: Kit) -> list[Event[Any]]:
    return await kit.events("dead.>")
