"""What projections could not take in is listed with its reason, and tried again by building anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest

from stratum_bus import testing
from stratum_bus.bus import Bus
from stratum_bus.errors import QueryError
from stratum_bus.event import new
from stratum_bus.tasks import task_group
from stratum_projections import Projection, ask, run
from stratum_projections.quarantine import parked, parked_of_file, retry


def test_what_is_parked_is_listed_with_its_reason_and_its_text(log: Any, tables: Any) -> None:
    log.noted()
    log.add("memory.alice.note", "stratum.memory.noted", {"text": 5})
    log.raw("inbox.bob.alice.task", b"\xff")
    log.add("memory.bob.note", "stratum.memory.revised", {"note": 1})
    tables.apply(log.messages)
    tables.store.close()
    found = parked_of_file(tables.path)
    assert [(each.sequence, each.projection, each.reason) for each in found] == [
        (2, "memory", "data"),
        (3, None, "utf8"),
        (4, "memory", "data"),
    ]
    first, second, _ = found
    assert '"data":{"text":5}' in (first.text or "")
    assert "text" in first.detail and first.subject == "memory.alice.note"
    assert (first.stream, first.time) == ("LOG", log.messages[1].time)
    assert (second.text, second.payload) == (None, b"\xff")
    assert parked_of_file(tables.path, sequence=4) == found[2:]
    assert parked_of_file(tables.path, projections=["memory", "messages"], limit=1) == [first]
    assert not parked_of_file(tables.path, projections=["it's none"])


REFUSED = {"b", "c"}


def refuse(batch: pa.Table) -> pa.Table:
    data = [str(each) for each in batch["data"].to_pylist()]
    reasons = [f"{each} is not wanted" if each.strip('"') in REFUSED else None for each in data]
    return batch.append_column("refused", pa.array(reasons, pa.string()))


WORDS = Projection(
    name="words",
    types=("word",),
    prepare=refuse,
    tables={"words": "seq bigint, word varchar"},
    statements=("insert into words select seq, data->>'$' from batch",),
)


@asynccontextmanager
async def projecting(bus: Bus, path: Path) -> AsyncIterator[None]:
    stop = anyio.Event()

    async def answers() -> bool:
        try:
            await ask(bus, "select 1")
        except QueryError:
            return False
        return True

    async with task_group() as tasks:

        async def project() -> None:
            await run(bus, path, stop=stop, projections=[WORDS])

        tasks.start_soon(project)
        await testing.eventually(answers, within_seconds=30)
        yield
        stop.set()


async def test_a_retry_builds_anew_and_says_what_became_of_each(
    bus: Bus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QueryError, match="no projector"):
        await retry(bus)
    for word in "abcd":
        last = await bus.publish("topic.alice.word", new("word", word, source="/a"))
    await bus.connection.request("topic.alice.word", b"{")
    async with projecting(bus, tmp_path / "p.duckdb"):
        await ask(bus, "select 1", wait_for=last.sequence + 1, timeout_seconds=30)
        found = await parked(bus)
        assert [(each.sequence, each.projection) for each in found] == [
            (2, "words"),
            (3, "words"),
            (5, None),
        ]
        assert found[0].text and '"data":"b"' in found[0].text
        monkeypatch.setattr(f"{__name__}.REFUSED", {"c"})
        tried = await retry(bus)
        assert [(each.parked.sequence, each.released) for each in tried] == [
            (2, True),
            (3, False),
            (5, False),
        ]
        assert tried[1].detail == '"c" is not wanted'
        assert tried[2].detail.startswith("it is no event for any projection (")
        answer = await ask(bus, "select list(word order by seq) as words from words")
        assert answer.table.to_pylist() == [{"words": ["a", "b", "d"]}]
        assert [each.released for each in await retry(bus, ["words"])] == [False]
        with pytest.raises(QueryError, match="no projection 'nothing'"):
            await retry(bus, ["nothing"])
