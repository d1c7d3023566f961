"""What `field` says of the notes of a research agent."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from stratum_agents.research import agent as research
from stratum_agents.research import feed
from stratum_agents.research.settings import Settings
from stratum_agents.testing import runs
from stratum_bus import memory, subject
from stratum_bus.bus import Bus
from stratum_projections.views.field import FIELD

Open = Callable[..., Any]
SAMPLES = Path(__file__).parents[2] / "examples" / "research"


def paper(log: Any, note: str, *terms: str, type: str = memory.NOTED, **more: Any) -> None:
    content = {
        "paper": {"id": note[1:], "published": more.get("published", "2026-01-05T00:00:00Z")},
        "key_terms": [{"term": term, "weight": 0.5} for term in terms],
        "relevance": more.get("relevance", 0.25),
    }
    log.add(subject.memory("lab", "paper"), type, {"note": note, "data": content})


def gone(log: Any, note: str) -> None:
    log.add(subject.memory("lab", "paper"), memory.RETRACTED, {"note": note})


def picture(log: Any, *, type: str = memory.REVISED, **lists: list[str]) -> None:
    data = {
        name: [{"term": t, "papers": 3, "recent": 2, "before": 1, "change": 1.5} for t in terms]
        for name, terms in {"terms": [], **lists}.items()
    }
    log.add(subject.memory("lab", "field"), type, {"note": "lab:field", "data": data})


def counts(tables: Any) -> dict[str, int]:
    return {row["term"]: row["papers"] for row in tables.rows("select term, papers from field")}


def test_terms_are_counted_by_the_papers_that_stand(tables: Any, log: Any) -> None:
    paper(log, "p1", "graph", "agent", relevance=0.5)
    paper(log, "p2", "graph", published="2026-03-05T00:00:00Z")
    tables.apply(log.messages)
    row = tables.one("select * from field where term = 'graph'")
    assert (row["agent"], row["papers"], row["relevance"]) == ("lab", 2, 0.5)
    assert row["first_published"] == "2026-01-05T00:00:00+00:00"
    assert row["last_published"] == "2026-03-05T00:00:00+00:00"
    assert row["first_noted"] == "2026-01-01T00:00:01+00:00"
    assert row["last_noted"] == "2026-01-01T00:00:02+00:00"
    assert (row["trend"], row["standing"]) == (None, None)
    paper(log, "p1", "agent", "tool", type=memory.REVISED)
    tables.apply(log.messages[2:])
    assert counts(tables) == {"graph": 1, "agent": 1, "tool": 1}
    gone(log, "p2")
    paper(log, "p2", "graph", type=memory.REVISED)
    tables.apply(log.messages[3:])
    assert counts(tables) == {"agent": 1, "tool": 1}
    row = tables.one("select paper, noted from field_terms where term = 'tool'")
    assert row == {"paper": "1", "noted": "2026-01-01T00:00:01+00:00"}


def test_trends_are_those_of_the_last_picture(tables: Any, log: Any) -> None:
    paper(log, "p1", "graph", "agent")
    picture(log, type=memory.NOTED, terms=["graph"], rising=["graph", "tool"])
    tables.apply(log.messages)
    trends = "select term, trend, change, papers from field where standing is not null order by 1"
    assert tables.rows(trends) == [
        {"term": "graph", "trend": "rising", "change": 1.5, "papers": 1},
        {"term": "tool", "trend": "rising", "change": 1.5, "papers": 0},
    ]
    picture(log, terms=["agent"], falling=["graph"])
    tables.apply(log.messages[2:])
    assert [(row["term"], row["trend"]) for row in tables.rows(trends)] == [
        ("agent", None), ("graph", "falling"),
    ]  # fmt: skip
    assert counts(tables) == {"graph": 1, "agent": 1}


def test_notes_of_another_form_are_passed_over(tables: Any, log: Any) -> None:
    log.add("memory.lab.paper", memory.NOTED, {"text": "a paper", "data": {"paper": 3}})
    log.add("memory.lab.paper", memory.NOTED, {"text": "a paper"})
    log.add("memory.lab.field", memory.NOTED, {"data": {"terms": [{"term": "x", "papers": 1e30}]}})
    log.noted("lab", data={"paper": {"id": "1", "published": "2026-01-05T00:00:00Z"}})
    log.raw("memory.lab.paper", b'{"note": 3}')
    assert tables.apply(log.messages).quarantined == 1  # by `memory`
    assert counts(tables) == {}


@pytest.mark.parametrize("seed", range(3))
def test_where_batches_are_cut_makes_no_difference(seed: int, log: Any, open_tables: Open) -> None:
    chance = random.Random(seed)
    terms = ["graph", "agent", "tool", "proof", "trace"]
    for _ in range(60):
        note, some = f"p{chance.randrange(15)}", chance.sample(terms, chance.randrange(4))
        type = chance.choice([memory.NOTED, memory.REVISED])
        match chance.randrange(8):
            case 0:
                gone(log, note)
            case 1:
                picture(log, type=type, terms=some, rising=chance.sample(terms, 1))
            case _:
                paper(log, note, *some, type=type, relevance=chance.random())
    whole, pieces = open_tables("whole", (FIELD,)), open_tables("pieces", (FIELD,))
    whole.apply(log.messages)
    start = 0
    while start < len(log.messages):
        end = start + chance.randint(1, 6)
        pieces.apply(log.messages[start:end])
        start = end
    expected, found = whole.dump(), pieces.dump()
    for table, rows in expected.items():
        assert found[table] == rows, table
    assert len(expected["field"]) > 1


async def test_the_field_of_the_research_agent(bus: Bus, tables: Any) -> None:
    agent = research.create(Settings(interests=["software testing"]))
    async with runs(bus, agent) as kit:
        for sample in ("sample-earlier.xml", "sample-later.xml"):
            for each in await feed.papers(str(SAMPLES / sample)):
                await kit.start("paper.published", each)
    async with bus.read() as reader:
        messages = [message async for message in reader]
    await to_thread.run_sync(tables.apply, messages)
    notes = tables.rows("select data from memory where kind = 'paper'")
    of_notes = Counter(
        each["term"] for note in notes for each in json.loads(note["data"])["key_terms"]
    )
    assert {t: n for t, n in counts(tables).items() if n} == of_notes
    drawn = json.loads(tables.one("select data from memory where kind = 'field'")["data"])
    for trend in ("rising", "falling"):
        rows = tables.rows(
            f"select term, papers, recent, before, change from field where trend = '{trend}'"
        )
        found = {row["term"]: (row["recent"], row["before"], row["change"]) for row in rows}
        assert found == {t["term"]: (t["recent"], t["before"], t["change"]) for t in drawn[trend]}
    assert drawn["rising"]
