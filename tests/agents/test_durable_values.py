"""Values of any size: they come back as they were, and what repeats is stored once."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from stratum_agents.agent import Agent
from stratum_agents.journal import SIGNALLED, Journal
from stratum_agents.run import Run
from stratum_agents.testing import runs
from stratum_agents.values import INLINE_MAX, Blobs
from stratum_bus.bus import Bus
from stratum_bus.event import Event, Raw
from tests.agents.conftest import kinds

MEBIBYTE = 1 << 20


async def _stored_bytes(bus: Bus) -> int:
    names = ("LOG", "BLOBS")
    infos = [await bus.connection.api(f"STREAM.INFO.{name}") for name in names]
    return sum(info["state"]["bytes"] for info in infos)


def _some(chance: random.Random, depth: int = 0) -> Any:
    """A value of any shape, with words in it that mean something to the packing."""
    words = ("$blob", "$list", "$dict", "rest", "a", "b", "price in $")
    kind = chance.choice(("text", "number", "list", "dict", "none") if depth < 5 else ("number",))
    if kind == "text":
        return chance.choice(words) * chance.choice((1, 5, 900, 20_000 // (depth + 1)))
    if kind == "number":
        return chance.choice((0, -1, 2**53, 1.5, True))
    if kind == "list":
        return [
            _some(chance, depth + 1) for _ in range(chance.choice((0, 1, 3, 20, 40)[: 5 - depth]))
        ]
    if kind == "dict":
        return {
            chance.choice(words) + chance.choice(("", "", "x")): _some(chance, depth + 1)
            for _ in range(chance.choice((1, 2, 4)))
        }
    return None


async def test_any_value_comes_back_as_it_was_whatever_words_are_in_it(bus: Bus) -> None:
    chance, packed_count = random.Random(7), 0
    for number in range(400):
        value = {"x": [_some(chance) for _ in range(3)], "n": number}
        raw, packed = await Blobs(bus.connection).pack(value)
        packed_count += packed
        read = msgspec.json.encode(raw)
        assert len(read) <= 2 * INLINE_MAX
        again = (
            await Blobs(bus.connection).unpack(Raw(read)) if packed else msgspec.json.decode(read)
        )
        assert again == value
    assert packed_count > 50


async def test_a_step_result_of_20_megabytes_comes_back_and_is_stored_once(bus: Bus) -> None:
    agent, made = Agent("painter"), "x" * (20 * MEBIBYTE)
    lengths: list[int] = []

    async def paint() -> str:
        return made

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> str:
        lengths.append(len(await run.step("paint", paint)))
        await run.sleep(days=1)
        return await run.step("again", paint)

    async with runs(bus, agent) as kit:
        run = await kit.start("picture.wanted")
        await kit.advance(days=1)
        journal = await kit.journal(run)
        assert journal.state == "completed"
        assert lengths == [20 * MEBIBYTE] * 2
        assert await _stored_bytes(bus) < 21 * MEBIBYTE


async def test_a_call_that_brings_2_megabytes_brings_them(bus: Bus) -> None:
    asker, painter = Agent("asker"), Agent("painter")

    @asker.on("question")
    async def question(run: Run, event: Event[Any]) -> int:
        picture = await run.call("painter", "picture.wanted", {"size": "y" * 100_000})
        await run.sleep(days=1)
        return len(picture)

    @painter.on("picture.wanted")
    async def wanted(run: Run, event: Event[dict[str, str]]) -> str:
        return event.data["size"] * 20

    async with runs(bus, asker, painter) as kit:
        run = await kit.start("question")
        await kit.advance(days=1)
        assert await kit.result(run) == 2_000_000


async def test_more_than_a_blob_can_hold_fails_the_run_with_the_limit(bus: Bus) -> None:
    agent = Agent("painter")

    async def paint() -> str:
        return "x" * (65 * MEBIBYTE)

    @agent.on("picture.wanted")
    async def wanted(run: Run, event: Event[Any]) -> None:
        await run.step("paint", paint)

    async with runs(bus, agent) as kit:
        run = await kit.start("picture.wanted")
        journal = await kit.journal(run)
        assert kinds(journal) == ["failed"]
        assert journal.end is not None
        assert "64 MiB" in str(journal.end.entry.error)


@pytest.mark.parametrize("turn_bytes", [150, 900, 3000])
async def test_a_conversation_whose_every_step_carries_all_of_it_grows_linearly(
    bus: Bus, turn_bytes: int
) -> None:
    agent = Agent("talker")
    sizes: dict[int, int] = {}

    async def answer(messages: list[dict[str, str]], number: int) -> list[dict[str, str]]:
        said = random.Random(number).randbytes(turn_bytes // 2).hex()
        return [*messages, {"role": "assistant", "content": said}]

    @agent.on("talk")
    async def talk(run: Run, event: Event[int]) -> int:
        messages: list[dict[str, str]] = []
        for number in range(event.data):
            messages = await run.step("turn", answer, messages, number)
            if number + 1 in (50, 100, 200):
                sizes[number + 1] = await _stored_bytes(bus)
        return len(messages)

    async with runs(bus, agent) as kit:
        run = await kit.start("talk", 200)
        assert await kit.result(run) == 200
    assert sizes[200] / sizes[100] < 2.6
    # Far from its square, which would be some 100 times what was said.
    assert sizes[200] < 20 * 200 * turn_bytes + 2 * MEBIBYTE
    assert SIGNALLED not in kinds(await Journal(bus, "talker", run).load())
