"""docs/runs.md is true: its code runs, its tables are those of the journal, its commands exist."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from stratum_agents import Agent
from stratum_agents.core import EFFECTS_MAX
from stratum_agents.journal import INPUTS, KINDS, Entry
from stratum_agents.replay import record, save
from stratum_agents.retry import Retry
from stratum_agents.steps import IN_PROCESS_SECONDS
from stratum_agents.testing import runs
from stratum_agents.values import INLINE_MAX
from stratum_bus import blob, dead, subject, timer
from stratum_bus.bus import Bus
from stratum_cli.reference import commands

PAGE = Path(__file__).parents[1] / "docs" / "runs.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = dict(commands())


def page() -> dict[str, Any]:
    """All Python of the page as one module, with the lines that it has there."""
    lines = [""] * TEXT.count("\n")
    first: list[str] = []
    for block in BLOCK.finditer(TEXT):
        if block[1] == "python":
            at = TEXT.count("\n", 0, block.start(2))
            lines[at : at + block[2].count("\n")] = block[2].splitlines()
            first += [line for line in block[2].splitlines() if line.startswith("from ")]
    module = ModuleType("docs_runs")
    sys.modules[module.__name__] = module
    for code in (first, lines):  # imports first: the page shows each where it is told of
        exec(compile("\n".join(code), str(PAGE), "exec"), module.__dict__)  # noqa: S102 - our page
    return module.__dict__


CODE = page()
TESTS = [name for name in CODE if name.startswith("test_")]


@pytest.mark.parametrize(
    "name", [name for name in TESTS if "bus" in inspect.signature(CODE[name]).parameters]
)
async def test_the_tests_of_the_page_pass(bus: Bus, name: str) -> None:
    await CODE[name](bus)


async def test_recordings_are_replayed_as_the_page_says(bus: Bus, tmp_path: Path) -> None:
    async with runs(bus, CODE["shop"]) as kit:
        run = await kit.start("order.placed", {"apples": 3})
        save(await record(bus, "shop", run), tmp_path / "order.jsonl")
    CODE["test_sleeping_orders_bear_the_code"](tmp_path)


@pytest.mark.parametrize(
    ("type", "data", "result"),
    [
        ("order.compared", ["anna", "bo"], [8, 4]),
        ("order.packed", {"apples": 200}, {"weight": "the scales are too small"}),
    ],
)
async def test_the_handlers_of_the_page_do_what_it_says(
    bus: Bus, type: str, data: Any, result: Any
) -> None:
    async with runs(bus, CODE["shop"], CODE["helper"]) as kit:
        assert await kit.result(await kit.start(type, data)) == result


async def test_a_called_and_a_spawned_run_answer(bus: Bus) -> None:
    async with runs(bus, CODE["shop"], CODE["helper"]) as kit:
        run = await kit.start("order.packed", {"apples": 2})
        await kit.advance(days=14)
        found = await kit.result(run)
        assert (found["weight"], found["paid"][:7]) == (300, "paid 84")


async def test_a_run_from_before_a_version_goes_its_old_way(bus: Bus) -> None:
    old = Agent("shop")

    @old.on("order.returned")
    async def take_back(run: Any, event: Any) -> str:
        await run.wait_for("parcel.arrived")
        return str(await run.step("refund", CODE["refund"]))

    async with runs(bus, old) as kit:
        before = await kit.start("order.returned", {})
        kit.deploy(CODE["shop"])
        after = await kit.start("order.returned", {})
        for run, steps in ((before, 1), (after, 2)):
            await kit.signal(run, "parcel.arrived")
            assert await kit.result(run) == "refunded"
            kinds = [recorded.kind for recorded in (await kit.journal(run)).entries]
            assert kinds.count("step.completed") == steps


async def test_what_the_card_does_not_allow_is_a_dead_letter(bus: Bus) -> None:
    async with runs(bus, CODE["shop"]) as kit:
        run = await kit.start("order.placed", {"apples": 100})
        [letter] = await dead.letters(bus, "shop")
        assert letter.letter.run == run
        assert "more than the card allows" in letter.letter.error


def test_every_handler_of_the_page_is_run_by_a_test() -> None:
    source = inspect.getsource(sys.modules[__name__]) + TEXT
    for agent in (each for each in CODE.values() if isinstance(each, Agent)):
        for type in agent.handlers:
            started = f'start("{type}"' in source or f'("{type}",' in source
            called = f'"{agent.name}", "{type}"' in source
            assert started or called, type


def rows(heading: str) -> list[list[str]]:
    """The table with this first heading."""
    table = TEXT.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in table]


def test_the_table_of_entries_is_that_of_the_journal() -> None:
    told = {row[0].strip("`"): row[2] for row in rows("kind")}
    assert told.keys() == KINDS
    assert {kind for kind, who in told.items() if who == "whoever received it"} == INPUTS


def test_the_table_of_fields_is_that_of_an_entry() -> None:
    told = [name for row in rows("field") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(Entry.__struct_fields__)


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    said = " ".join(TEXT.split())
    assert f"up to {INLINE_MAX // 1024} KiB" in said
    assert f"up to {blob.MAX_BYTES >> 20} MiB" in said
    assert f"| {EFFECTS_MAX}; more are committed in between" in said
    assert f"Delays up to {IN_PROCESS_SECONDS:g} s pass in the worker" in said
    retry = Retry()
    assert (
        f"{retry.max_attempts} attempts, {retry.first_seconds} s before the second, doubling to at "
        f"most {retry.max_seconds:g} s"
    ) in said
    assert retry.factor == 2
    assert timer.FIRED_TTL == f"{365 * 24}h"
    assert f"{subject.TOKEN_MAX} characters" in said
    assert f"event types {subject.TYPE_MAX}" in said


@pytest.mark.parametrize(
    "line", [line for b in BLOCK.finditer(TEXT) if b[1] == "console" for line in b[2].splitlines()]
)
def test_the_commands_of_the_page_exist(line: str) -> None:
    words = line.partition("  #")[0].removeprefix("$ ").split()
    path = max((p for p in COMMANDS if words[: len(p.split())] == p.split()), key=len)
    known = {option for each in COMMANDS[path].params for option in each.opts}
    assert {word for word in words if word.startswith("-")} <= known
