"""The research agent on a real bus: what it reads, remembers, tells, and does only once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from stratum_agents.embed import HashingEmbedder
from stratum_agents.research import (
    FeedError,
    Handed,
    Handled,
    Paper,
    PaperNote,
    PaperNoted,
    PaperRelevant,
    Settings,
    create,
    hand_over,
    poll,
    wait_handled,
)
from stratum_agents.research.agent import catch_up
from stratum_agents.research.assess import Assessor
from stratum_agents.research.library import Library
from stratum_agents.research.reader import TermReader
from stratum_agents.worker import work
from stratum_bus.bus import Bus
from stratum_bus.consume import Retry
from stratum_bus.errors import NoAnswer
from stratum_bus.event import new, typed
from stratum_bus.memory import Memory, Note
from stratum_bus.testing import eventually

SAMPLES = Path(__file__).parents[2] / "examples" / "research"
EARLIER, LATER = str(SAMPLES / "sample-earlier.xml"), str(SAMPLES / "sample-later.xml")
SETTINGS = Settings(
    interests=["machine-learned interatomic potentials", "autonomous laboratory"],
    threshold=0.5,
    tell=["editor"],
)


@asynccontextmanager
async def running(bus: Bus, settings: Settings = SETTINGS, **options: Any) -> AsyncIterator[None]:
    """One instance of the agent, made anew as by a new process."""
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        agent = create(settings)
        options = {"retry": Retry(max_attempts=8, first_seconds=0.05), **options}
        tasks.start_soon(lambda: work(bus, agent, stop=stop, **options))
        try:
            yield
        finally:
            stop.set()


async def read(bus: Bus, *sources: str) -> list[Handed]:
    """Hand over and wait."""
    handed = await hand_over(bus, sources)
    await wait_handled(bus, handed, timeout_seconds=20)
    return handed


async def notes(bus: Bus, kind: str = "paper") -> list[Note]:
    return await Memory(bus, "research").notes(kind=kind)


def content(note: Note) -> PaperNote:
    return msgspec.convert(note.data, PaperNote)


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


async def count(bus: Bus, *filters: str) -> int:
    async with bus.read(filters=filters) as reader:
        return len([message async for message in reader])


async def test_three_real_pages_read_again_make_twenty_notes(bus: Bus, shared_data: Path) -> None:
    first = str(shared_data / "arxiv" / "testing-000-009.xml")
    second = str(shared_data / "arxiv" / "testing-010-019.xml")
    settings = Settings(interests=["mutation testing"])
    async with running(bus, settings):
        assert [len(await read(bus, each)) for each in (first, second, first)] == [10, 10, 10]
        made = await notes(bus)
    assert len(made) == len({note.about for note in made}) == 20
    assert all(note.revision == 0 for note in made)
    assert await count(bus, "inbox.research.>") == 20
    assert await count(bus, "run.research.>") == 20
    scores = {note.about: note.score or 0 for note in made}
    assert all(scores[id] > 0.7 for id in ("2301.05651", "2301.13615"))
    assert scores["1205.1866"] < 0.2
    assert sum(bool(content(note).related) for note in made) > 8


async def test_a_note_holds_what_a_reader_looks_for(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER)
        note = next(note for note in await notes(bus) if note.about == "2603.99005")
    assert note.id == "research:paper:2603.99005"
    assert note.text.startswith("Dendrite Growth Through Garnet Solid Electrolytes Under Pressure.")
    assert note.tags == ("cond-mat.mtrl-sci", "physics.app-ph")
    data = content(note)
    assert data.paper.authors == ("Ruben Castellanos", "Mei-Ling Okafor")
    assert data.paper.published.isoformat() == "2026-03-03T08:31:19+00:00"
    assert data.key_terms[0].term == "dendrite growth"
    assert data.relevance == note.score
    assert data.related[0].note == "research:paper:2601.99002"
    assert "common authors: Ruben Castellanos, Mei-Ling Okafor" in data.related[0].why


async def test_a_newer_version_revises_the_note_and_an_older_one_does_not(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER, LATER)
        made = {note.about: note for note in await notes(bus)}
        assert len(made) == 14
        revised = made["2602.99004"]
        assert (revised.revision, content(revised).paper.version) == (1, 2)
        assert "active learning" in revised.text
        older = msgspec.structs.replace(content(revised).paper, version=1)
        await give(bus, "again", older)
        assert next(n for n in await notes(bus) if n.about == "2602.99004") == revised


async def give(bus: Bus, id: str, data: object) -> dict[str, Handled]:
    """Send one event of somebody else and wait until it is handled."""
    event = new("paper.published", data, source="/somebody", id=id)
    ack = await bus.publish("inbox.research.somebody.paper.published", event)
    placeholder = msgspec.convert(
        {"id": "2601.1234", "version": 1, "title": "-", "published": event.time, "updated": event.time},
        Paper,
    )  # fmt: skip
    return await wait_handled(
        bus, [Handed(id, ack.sequence, placeholder, new=True)], timeout_seconds=10
    )


async def test_tells_the_editor_of_relevant_papers_and_everybody_of_each(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER, LATER)
        scores = {note.about: note.score or 0 for note in await notes(bus)}
    async with bus.read(filters=["inbox.editor.research.paper.relevant"]) as reader:
        told = [typed(message.event(), PaperRelevant).data async for message in reader]
    async with bus.read(filters=["topic.research.paper.noted"]) as reader:
        said = [typed(message.event(), PaperNoted).data async for message in reader]
    assert {each.id for each in told} == {id for id, score in scores.items() if score >= 0.5}
    assert [(each.id, each.revised) for each in told[:2]] == [
        ("2602.99004", False),
        ("2602.99004", True),
    ]
    assert told[0].link == "https://arxiv.example/abs/2602.99004v1"
    assert told[0].why and told[0].key_terms
    assert len(said) == 15
    assert sum(each.revised for each in said) == 1


async def test_the_one_note_of_the_field_moves_with_each_paper(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER)
        (before,) = await notes(bus, "field")
        await read(bus, LATER)
        (after,) = await notes(bus, "field")
    assert before.id == after.id == "research:field"
    assert (before.revision, after.revision) == (7, 14)
    assert before.data["papers"] == 8
    assert after.data["papers"] == 14
    assert after.data["rising"][0]["term"] == "active learning"
    assert "falling: silicon anode" in after.text


async def test_a_new_process_remembers_what_was_read(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER)
    async with running(bus):
        await read(bus, EARLIER, LATER)
        made = {note.about: content(note) for note in await notes(bus)}
    assert len(made) == 14
    assert made["2608.99011"].related[0].paper == "2603.99005"


async def test_each_note_follows_from_its_paper_and_the_memory_it_names(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER, LATER)
    assessor = Assessor(SETTINGS, TermReader(), HashingEmbedder())
    for note in await notes(bus):
        data = content(note)
        library = Library()
        filters = ["memory.research.paper", "memory.research.field"]
        if data.as_of:
            async with bus.read(filters=filters, end=data.as_of) as reader:
                async for message in reader:
                    library.apply(
                        message.sequence, message.subject.rpartition(".")[2], message.event()
                    )
        assert await assessor.assess(data.paper, library) == data


async def test_a_retracted_note_is_not_written_again(bus: Bus) -> None:
    async with running(bus):
        await read(bus, EARLIER)
        await Memory(bus, "research").retract("research:paper:2602.99004", "not for us")
        await Memory(bus, "research").retract("research:field")
        await read(bus, LATER)
        made = await notes(bus)
    assert len(made) == 13
    assert "2602.99004" not in {note.about for note in made}
    assert all("2602.99004" not in {e.paper for e in content(n).related} for n in made[7:])
    assert await notes(bus, "field") == []


async def test_a_note_by_somebody_else_does_not_stop_it(bus: Bus) -> None:
    await bus.connection.request("memory.research.paper", b"\xff not an event")
    await bus.connection.request("memory.research.paper", b'{"text": "buy milk"}')
    async with running(bus):
        await read(bus, EARLIER)
        assert len(await notes(bus)) == 9


async def test_what_is_no_paper_becomes_a_dead_letter_that_the_waiting_hears_of(bus: Bus) -> None:
    async with running(bus):
        settled = await give(bus, "bad", {"id": "../etc", "version": 1, "title": "x"})
        assert settled["bad"].state == "dead"
        assert "unreadable" in settled["bad"].reason
        # the one behind it is read all the same
        assert (await read(bus, EARLIER))[0].new
        assert len(await notes(bus)) == 8


async def test_two_instances_make_no_double_notes_and_end_at_the_newest_version(bus: Bus) -> None:
    async with running(bus), running(bus):
        versions = []
        for number in range(6):
            for version in (1, 2):
                versions.append(_paper(f"2601.9000{number}", version))
        events = [new("paper.published", p, source="/somebody", id=f"e-{p.name}") for p in versions]
        acks = [await bus.publish("topic.feeds.paper.published", event) for event in events]
        handed = [
            Handed(event.id, ack.sequence, paper, new=True)
            for event, ack, paper in zip(events, acks, versions, strict=True)
        ]
        settled = await wait_handled(bus, handed, timeout_seconds=20)
        made = await notes(bus)
    assert {each.state for each in settled.values()} == {"done"}
    assert len(made) == len({note.about for note in made}) == 6
    assert {content(note).paper.version for note in made} == {2}
    assert len(await notes(bus, "field")) == 1
    assert await count(bus, "run.research.>") == 12


def _paper(id: str, version: int) -> Paper:
    time = "2026-01-01T00:00:00Z"
    title = f"Version {version} of Braids and Interatomic Potentials"
    given = {"id": id, "version": version, "title": title, "published": time, "updated": time}
    return msgspec.convert(given, Paper)


async def test_a_paper_with_three_thousand_authors_is_read_and_remembered(bus: Bus) -> None:
    crowd = msgspec.structs.replace(
        _paper("2601.90001", 1), authors=tuple(f"Author Number {i}" for i in range(3000))
    )
    single = msgspec.structs.replace(_paper("2601.90002", 1), authors=("Author Number 2999",))
    async with running(bus):
        await give(bus, "crowd", crowd)
        await give(bus, "single", single)
        made = {note.about: content(note) for note in await notes(bus)}
    assert len(made["2601.90001"].paper.authors) == 3000
    assert made["2601.90002"].related[0].paper == "2601.90001"


async def test_handing_over_again_publishes_nothing_however_long_ago(bus: Bus) -> None:
    first = await hand_over(bus, [EARLIER, EARLIER])
    again = await hand_over(bus, [f"file://{EARLIER}", LATER])
    assert [each.new for each in first] == [True] * 8
    assert sum(each.new for each in again) == 7
    assert [each.sequence for each in again if not each.new] == [each.sequence for each in first]
    assert await count(bus, "inbox.research.feed.paper.published") == 15
    dates = [each.paper.published for each in again]
    assert dates == sorted(dates)


async def test_two_that_hand_over_at_once_make_no_doubles(bus: Bus) -> None:
    handed: list[Handed] = []

    async def give_all() -> None:
        handed.extend(await hand_over(bus, [EARLIER]))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(give_all)
    assert sum(each.new for each in handed) == 8
    assert await count(bus, "inbox.research.>") == 8


async def test_each_agent_gets_its_own_copy(bus: Bus) -> None:
    await hand_over(bus, [EARLIER], agent="research")
    other = await hand_over(bus, [EARLIER], agent="physics")
    assert all(each.new for each in other)
    assert await count(bus, "inbox.physics.>") == 8


async def test_nothing_is_handed_over_when_one_of_the_feeds_is_bad(
    bus: Bus, tmp_path: Path
) -> None:
    torn = tmp_path / "torn.xml"
    torn.write_bytes(content_of(EARLIER)[:5000])
    with pytest.raises(FeedError, match=r"torn\.xml: it breaks off"):
        await hand_over(bus, [EARLIER, str(torn)])
    assert await count(bus, "inbox.>") == 0


async def test_waiting_says_how_many_are_left_when_no_agent_runs(bus: Bus) -> None:
    handed = await hand_over(bus, [EARLIER])
    with pytest.raises(NoAnswer, match=r"has not handled 8 of 8 papers within 0\.2 s"):
        await wait_handled(bus, handed, timeout_seconds=0.2)
    assert await wait_handled(bus, [], timeout_seconds=0.2) == {}


async def test_polls_its_feeds_and_goes_on_behind_a_bad_one(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = msgspec.structs.replace(SETTINGS, feeds=[str(tmp_path / "missing.xml"), EARLIER])
    async with running(bus, settings):
        await eventually(lambda: _noted(bus, 8), within_seconds=10)
    assert "missing.xml: there is no such file; check the path; tried again in 60" in caplog.text


async def _noted(bus: Bus, wanted: int) -> bool:
    return len(await notes(bus)) == wanted


async def test_polling_again_hands_over_only_what_is_new(bus: Bus, tmp_path: Path) -> None:
    feed = tmp_path / "feed.xml"
    settings = Settings(interests=["braids"], feeds=[str(feed)])
    # each poll by a new process, which finds out from the log what was handed over
    for content_now, total in ((EARLIER, 8), (EARLIER, 8), (LATER, 15)):
        feed.write_bytes(content_of(content_now))
        stop = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(poll, bus, settings, stop=stop))
            await eventually(partial(_handed, bus, total))
            stop.set()


async def _handed(bus: Bus, wanted: int) -> bool:
    return await count(bus, "inbox.research.feed.paper.published") == wanted


async def test_catching_up_reads_only_what_is_new(bus: Bus) -> None:
    library = Library()
    await catch_up(bus, "research", library)
    assert library.sequence == 0
    async with running(bus):
        await read(bus, EARLIER)
        await catch_up(bus, "research", library)
        reached = library.sequence
        assert library.papers == 8
        await catch_up(bus, "research", library)
        assert library.sequence == reached
        await read(bus, LATER)
        await catch_up(bus, "research", library)
    assert library.papers == 14
