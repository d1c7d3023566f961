"""Recordings, and today's code replayed against them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stratum_agents.agent import Agent
from stratum_agents.replay import Replayed, assert_replays, load, record, replay, save
from stratum_agents.retry import Retry, Terminal
from stratum_agents.run import Run
from stratum_agents.testing import runs
from stratum_bus.bus import Bus
from stratum_bus.consume import Reject
from stratum_bus.errors import ConfigError
from stratum_bus.event import Event

Code = Callable[[Run, Event[Any]], Awaitable[Any]]

DONE: list[str] = []


def step(name: str) -> Callable[[], str]:
    def do() -> str:
        DONE.append(name)
        return name * 3

    return do


def agent(code: Code) -> Agent:
    made = Agent("reader")
    made.on("paper")(code)
    return made


async def replayed(bus: Bus, before: Code, now: Code | None = None, **signal: Any) -> Replayed:
    """Run the code `before`, record it as it stands, and replay the code of today."""
    async with runs(bus, agent(before)) as kit:
        run = await kit.start("paper", {"id": "p1"})
        for type, data in signal.items():
            await kit.signal(run, type, data)
        DONE.clear()
        found = await replay(agent(now or before), await record(bus, "reader", run))
        assert not DONE, "a replay has done a step again"
        return found


async def reads(run: Run, event: Event[Any]) -> str:
    first = await run.step("a", step("a"))
    await run.send("editor", "note.ready", {"id": event.data["id"]})
    await run.gather(run.step("b", step("b")), lambda own: own.step("c", step("c")))
    run.uuid()
    await run.remember("note", first)
    await run.sleep(days=30)
    return await run.step("d", step("d"))


async def test_unchanged_code_agrees_with_a_run_that_sleeps(bus: Bus) -> None:
    found = await replayed(bus, reads)
    assert (found.agrees, found.calls) == (True, 6)


async def test_a_recording_is_a_file_that_needs_no_server(bus: Bus, tmp_path: Path) -> None:
    async with runs(bus, agent(reads)) as kit:
        run = await kit.start("paper", {"id": "p1"})
        await kit.advance(days=30)
        recording = await record(bus, "reader", run)
    save(recording, tmp_path / "run.jsonl")
    assert load(tmp_path / "run.jsonl") == recording
    assert_replays(agent(reads), tmp_path / "run.jsonl")

    async def renamed(run: Run, event: Event[Any]) -> None:
        await run.step("alpha", step("a"))

    with pytest.raises(AssertionError, match=r"run.jsonl: run .* step:a was renamed to step:alpha"):
        assert_replays(agent(renamed), tmp_path / "run.jsonl")


def test_the_helper_works_without_a_loop_too(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text("{}\n")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name in ("broken", "empty", "binary"):
        with pytest.raises(ConfigError, match=f"{name}.jsonl: the file: expected a recorded run"):
            assert_replays(agent(reads), tmp_path / f"{name}.jsonl")


async def test_values_that_are_blobs_stand_in_the_recording(bus: Bus) -> None:
    def large() -> list[str]:
        return ["x" * 5000] * 20

    async def code(run: Run, event: Event[Any]) -> int:
        items = await run.step("large", large)
        await run.wait_for("go")
        return len(items)

    async with runs(bus, agent(code)) as kit:
        run = await kit.start("paper", {})
        recording = await record(bus, "reader", run)
        assert b"x" * 5000 in bytes(recording.entries[0].entry.result)
        assert (await replay(agent(code), recording)).agrees


async def a(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.step("b", step("b"))
    await run.send("editor", "note.ready", 1)
    await run.step("c", step("c"))
    await run.wait_for("verdict")


async def removed(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.send("editor", "note.ready", 1)
    await run.step("c", step("c"))
    await run.wait_for("verdict")


async def added(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.sleep(days=1)
    await run.step("b", step("b"))


async def renamed(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.step("b2", step("b"))


async def longer(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.step("a", step("a"))


async def shorter(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.step("b", step("b"))


async def another_receiver(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    await run.step("b", step("b"))
    await run.send("chief", "note.ready", 1)


async def by_chance(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    run.random()


async def raises(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    raise KeyError("id")


async def looks_outside(run: Run, event: Event[Any]) -> None:
    await run.memory.notes()


async def swallows(run: Run, event: Event[Any]) -> None:
    try:
        await run.step("other", step("a"))
    except Exception:  # noqa: BLE001 - as handlers do
        await run.step("b", step("b"))


EDITOR = "note.ready for inbox.editor.reader.note.ready"


@pytest.mark.parametrize(
    ("now", "n", "journaled", "asked", "change"),
    [
        (removed, "2", "step:b", EDITOR, "step:b was removed"),
        (added, "2", "step:b", "sleep", "sleep was added before step:b"),
        (renamed, "2", "step:b", "step:b2", "step:b was renamed to step:b2, or step:b2 was added"),
        (longer, "2", "step:b", "step:a", "step:a is done once more than then"),
        (shorter, "3", EDITOR, "nothing more", f"{EDITOR} was removed"),
        (another_receiver, "3", EDITOR, EDITOR.replace("editor", "chief"), "was renamed to"),
        (by_chance, "2", "step:b", "random", "random was added before step:b"),
        (raises, "", "no end yet", "an end by an error (KeyError: 'id')", ""),
        (looks_outside, "", "nothing of that", "run.bus or run.memory outside of a step", ""),
        (swallows, "1", "step:a", "step:other", "step:a was renamed to step:other"),
    ],
)
async def test_the_first_difference_is_named_with_what_was_probably_changed(
    bus: Bus, now: Code, n: str, journaled: str, asked: str, change: str
) -> None:
    found = await replayed(bus, a, now)
    assert (found.agrees, found.n, found.journaled, found.asked) == (False, n, journaled, asked)
    assert change in found.change
    assert (change == "") == (found.change == "")
    assert found.sentence().startswith(f"run {found.run} differs")


async def test_a_change_behind_a_version_agrees(bus: Bus) -> None:
    async def now(run: Run, event: Event[Any]) -> None:
        await run.step("a", step("a"))
        if run.version("without-b"):
            await run.step("new", step("new"))
        else:
            await run.step("b", step("b"))
        await run.send("editor", "note.ready", 1)
        await run.step("c", step("c"))
        await run.wait_for("verdict")

    assert (await replayed(bus, a, now)).agrees


async def test_a_difference_in_one_branch_is_seen_while_another_waits(bus: Bus) -> None:
    async def both(run: Run, event: Event[Any]) -> None:
        async def other(own: Run) -> None:
            await own.step("x", step("x"))
            await own.step("y", step("y"))

        await run.gather(lambda own: own.wait_for("verdict"), other)

    async def now(run: Run, event: Event[Any]) -> None:
        await run.gather(lambda own: own.wait_for("verdict"), lambda own: own.step("x", step("x")))

    assert (await replayed(bus, both)).agrees
    found = await replayed(bus, both, now)
    assert (found.agrees, found.n, found.asked) == (False, "1.2.2", "nothing more")


async def completes(run: Run, event: Event[Any]) -> str:
    return await run.step("a", step("a"))


async def fails(run: Run, event: Event[Any]) -> None:
    run.compensate(undo)
    await run.step("bad", bad, retry=Retry(max_attempts=1))


async def rejects(run: Run, event: Event[Any]) -> Reject:
    await run.step("a", step("a"))
    return Reject("no")


async def goes_on(run: Run, event: Event[Any]) -> None:
    await run.step("a", step("a"))
    if event.data["id"]:
        await run.continue_as_new({"id": ""})


async def undo() -> None:
    pass


async def other_undo() -> None:
    pass


async def bad() -> None:
    raise Terminal("no")


@pytest.mark.parametrize("code", [completes, fails, rejects, goes_on])
async def test_each_way_to_end_is_replayed_to_its_end(bus: Bus, code: Code) -> None:
    assert (await replayed(bus, code)).agrees


async def test_a_cancelled_run_agrees_up_to_where_it_was_cancelled(bus: Bus) -> None:
    async with runs(bus, agent(reads)) as kit:
        run = await kit.start("paper", {"id": "p1"})
        await kit.cancel(run)
        recording = await record(bus, "reader", run)
        assert recording.entries[-1].kind == "cancelled"
        assert (await replay(agent(reads), recording)).agrees


async def test_another_end_is_a_difference(bus: Bus) -> None:
    async def more(run: Run, event: Event[Any]) -> str:
        await run.step("a", step("a"))
        return await run.step("b", step("b"))

    async def another_result(run: Run, event: Event[Any]) -> str:
        return await run.step("a", step("a")) + "!"

    async def undoes_otherwise(run: Run, event: Event[Any]) -> None:
        run.compensate(other_undo)
        await run.step("bad", bad, retry=Retry(max_attempts=1))

    found = await replayed(bus, completes, more)
    assert (found.n, found.asked, found.change[:16]) == ("2", "one more call", "a call was added")
    found = await replayed(bus, completes, another_result)
    assert (found.journaled, found.asked) == ('the result "aaa"', 'the result "aaa!"')
    found = await replayed(bus, fails, undoes_otherwise)
    assert (found.n, found.journaled, found.asked) == (
        "c1",
        "step:undo undo",
        "step:undo other_undo",
    )
    found = await replayed(bus, completes, rejects)
    assert found.asked == "a rejection (no)"
    found = await replayed(bus, rejects, completes)
    assert (found.journaled, found.agrees) == ("the end of the run (failed)", False)


async def test_a_handler_that_is_gone_is_said(bus: Bus) -> None:
    async with runs(bus, agent(completes)) as kit:
        run = await kit.start("paper", {"id": "p1"})
        found = await replay(Agent("reader"), await record(bus, "reader", run))
    assert "no handler for paper" in found.sentence()
