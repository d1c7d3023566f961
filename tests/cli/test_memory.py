"""`stratum memory`: the notes of an agent, filtered, and as they were."""

from __future__ import annotations

import json
from typing import Any

from stratum_bus.bus import Bus
from stratum_bus.memory import Memory


async def remember(bus: Bus) -> None:
    """Four entries: two notes, a revision and a retraction."""
    memory = Memory(bus, "research")
    first = await memory.note("first", about="paper-1", tags=["cs.SE", "new"], score=0.5)
    second = await memory.note("second", kind="idea", tags=["cs.SE"])
    await memory.revise(first, text="first, revised")
    await memory.retract(second, "wrong")


def texts(result: Any) -> list[str]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line)["text"] for line in result.stdout.splitlines()]


def test_shows_what_the_agent_believes(stratum: Any, log: Any) -> None:
    log.do(remember)
    assert texts(stratum("memory", "research", "--json")) == ["first, revised"]
    assert texts(stratum("memory", "research", "--retracted", "--json")) == [
        "first, revised",
        "second",
    ]
    table = stratum("memory", "research").stdout
    assert "paper-1" in table
    assert "cs.SE, new" in table


def test_filters_are_all_fulfilled(stratum: Any, log: Any) -> None:
    log.do(remember)
    for options, expected in {
        ("--about", "paper-1"): ["first, revised"],
        ("--about", "paper-2"): [],
        ("--tag", "cs.SE", "--tag", "new"): ["first, revised"],
        ("--tag", "cs.SE", "--tag", "old"): [],
        ("--kind", "idea"): [],
        ("--kind", "idea", "--retracted"): ["second"],
    }.items():
        assert texts(stratum("memory", "research", "--json", *options)) == expected


def test_shows_what_was_believed_then(stratum: Any, log: Any) -> None:
    log.do(remember)
    assert texts(stratum("memory", "research", "--as-of", "1", "--json")) == ["first"]
    assert texts(stratum("memory", "research", "--as-of", "3", "--json")) == [
        "first, revised",
        "second",
    ]
    assert texts(stratum("memory", "research", "--as-of", "1h", "--json")) == []
    assert texts(stratum("memory", "research", "--as-of", "2999-01-01", "--json")) == [
        "first, revised"
    ]
