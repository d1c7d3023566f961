"""The library, relations and the picture of the field: pure functions of what was read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stratum_agents.embed import HashingEmbedder
from stratum_agents.research import field, relate, terms
from stratum_agents.research.assess import Assessor, sentence
from stratum_agents.research.atom import parse
from stratum_agents.research.library import Library
from stratum_agents.research.note import FieldNote, PaperNote, Related
from stratum_agents.research.paper import Paper
from stratum_agents.research.reader import TermReader
from stratum_agents.research.settings import Settings
from stratum_bus.event import Event, Raw
from stratum_bus.memory import NOTED, RETRACTED, REVISED

SAMPLES = Path(__file__).parents[2] / "examples" / "research"
EARLIER, LATER = SAMPLES / "sample-earlier.xml", SAMPLES / "sample-later.xml"
INTERESTS = ["machine-learned interatomic potentials", "autonomous laboratory"]


def load(*paths: Path) -> list[Paper]:
    return [paper for path in paths for paper in parse(path.read_bytes(), str(path)).papers]


def noted(note: PaperNote, id: str | None = None) -> Event[Raw]:
    return change(NOTED, {"text": "", "data": note}, id or f"note-{note.paper.id}")


def change(type: str, data: object, id: str = "e") -> Event[Raw]:
    return Event(id=id, source="/agents/research", type=type, data=Raw(msgspec.json.encode(data)))


async def read_all(papers: Iterable[Paper], library: Library) -> list[PaperNote]:
    """Read papers as the agent does, without a bus."""
    assessor = Assessor(Settings(INTERESTS), TermReader(), HashingEmbedder())
    notes = []
    for paper in papers:
        note = await assessor.assess(paper, library)
        known = library.get(paper.id)
        event = noted(note)
        if known:
            event = change(REVISED, {"note": known.note, "data": note})
        library.apply(library.sequence + 1, "paper", event)
        notes.append(note)
    return notes


def paper(id: str = "2601.00001", *, version: int = 1, **fields: Any) -> Paper:
    time = datetime(2026, 1, 1, tzinfo=UTC)
    given = {"title": "Braids and Knots", "published": time, "updated": time, **fields}
    return Paper(id=id, version=version, **given)


def found(related: Iterable[Related]) -> list[str]:
    return [each.title for each in related]


async def test_rebuilt_from_its_events_it_holds_the_same() -> None:
    library = Library()
    notes = await read_all(load(EARLIER, LATER), library)
    events = [noted(note) for note in notes if note.paper.version == 1]
    revised = next(note for note in notes if note.paper.version == 2)
    events.insert(8, change(REVISED, {"note": "note-2602.99004", "data": revised}))
    again = Library()
    for sequence, event in enumerate(events, 1):
        again.apply(sequence, "paper", event)
        again.apply(sequence, "paper", event)  # read twice, as after a reconnect
    assert again.papers == library.papers == 14
    assert field.picture(again) == field.picture(library)
    assert [entry.paper.name for entry in again.entries()] == [
        entry.paper.name for entry in library.entries()
    ]
    assert again.frequency("solid electrolyte") == library.frequency("solid electrolyte") == 11


def test_of_two_notes_of_one_paper_the_first_counts() -> None:
    library = Library()
    library.apply(1, "paper", noted(PaperNote(paper()), "first"))
    library.apply(2, "paper", noted(PaperNote(paper(version=2)), "second"))
    entry = library.get("2601.00001")
    assert entry and (entry.note, entry.paper.version) == ("first", 1)
    assert library.papers == library.frequency("braid") == 1


def test_a_revision_replaces_what_the_earlier_version_said() -> None:
    library = Library()
    library.apply(1, "paper", noted(PaperNote(paper(authors=("A. Braid",))), "n"))
    newer = PaperNote(paper(version=2, title="Tangles", authors=("B. Tangle",)))
    library.apply(2, "paper", change(REVISED, {"note": "n", "data": newer}))
    assert (library.frequency("braid"), library.frequency("tangle")) == (0, 1)
    assert not list(library.by_author("a braid"))
    assert [entry.paper.version for entry in library.by_author("B TANGLE")] == [2]


def test_a_retracted_note_is_forgotten_but_not_that_it_was_there() -> None:
    library = Library()
    library.apply(1, "paper", noted(PaperNote(paper()), "n"))
    library.apply(2, "paper", change(RETRACTED, {"note": "n"}))
    library.apply(3, "paper", change(REVISED, {"note": "n", "data": PaperNote(paper(version=2))}))
    assert library.papers == library.frequency("braid") == 0
    assert library.retracted == {"n"}


@pytest.mark.parametrize(
    "event",
    [
        change(NOTED, {"text": "a person's own note", "tags": ["todo"]}),
        change(NOTED, {"data": {"paper": {"id": "no paper"}}}),
        change(NOTED, {"data": 7}),
        change(NOTED, ["not", "a", "note"]),
        change(REVISED, {"note": "n", "text": "only the text"}),
        change(REVISED, {"note": "not there", "data": PaperNote(paper(version=2))}),
        change(RETRACTED, {"note": "not there"}),
        change("lab.remark", "hello"),
        Event(id="blob", source="/x", type=NOTED, dataref="blob:0"),
    ],
)
def test_what_the_agent_did_not_write_changes_nothing(event: Event[Raw]) -> None:
    library = Library()
    library.apply(1, "paper", noted(PaperNote(paper()), "n"))
    library.apply(2, "paper", event)
    entry = library.get("2601.00001")
    assert entry and (entry.note, entry.paper.version, library.papers) == ("n", 1, 1)
    assert library.sequence == 2


async def test_supposing_a_note_leaves_no_trace() -> None:
    library = Library()
    await read_all(load(EARLIER), library)
    before = field.picture(library)
    for other in load(LATER):
        with library.supposing("n", PaperNote(other)) as after:
            entry = after.get(other.id)
            assert entry and entry.paper == other
            assert after.papers == 8 + (other.version == 1)
    assert field.picture(library) == before
    assert library.papers == 8


async def test_relates_the_real_papers_that_a_reader_would(shared_data: Path) -> None:
    pages = [shared_data / "arxiv" / f"testing-{part}.xml" for part in ("000-009", "010-019")]
    pages.append(shared_data / "arxiv" / "testing-020-029.xml")
    notes = {note.paper.id: note for note in await read_all(load(*pages), Library())}
    assert notes["1912.04900"].related[0].title.startswith("Morphy: A Datamorphic")
    assert "common authors: Hong Zhu" in notes["1912.04900"].related[0].why[1]
    assert [each.paper for each in notes["1908.03707"].related[:2]] == ["2301.05651", "2301.13615"]
    assert notes["1908.03707"].related[0].why[0] == "both on mutation testing, mutation operator"
    assert notes["2106.13414"].related[0].paper == "2403.16981"
    assert notes["2008.01944"].related[0].paper == "2004.03322"
    assert "2202.12139" in [each.paper for each in notes["2602.15552"].related]
    # the first read has nothing to relate to, and one alone in its subject relates to nothing
    assert notes["2202.12139"].related == notes["1205.1866"].related == ()
    for note in notes.values():
        scores = [each.score for each in note.related]
        assert scores == sorted(scores, reverse=True)
        assert all(relate.MINIMUM_SCORE <= score <= 1 for score in scores)
        assert note.paper.id not in [each.paper for each in note.related]


async def test_the_key_terms_of_real_papers_are_what_they_are_about(shared_data: Path) -> None:
    library = Library()
    notes = await read_all(load(shared_data / "arxiv" / "testing-020-029.xml"), library)
    first = {note.paper.id: note.key_terms[0].term for note in notes}
    assert first["2008.01944"] == "pooling matrix design"
    assert first["1908.03707"] == "smart contract"
    assert first["2104.11069"] == "generative adversarial network"
    assert first["2007.10224"] == "agent-based software testing"
    every = {term.term for note in notes for term in note.key_terms}
    assert not every & {
        "paper",
        "approach",
        "result",
        "method",
        "based",
        "study",
        "test",
        "testing",
    }


async def test_brings_up_what_was_read_months_ago() -> None:
    notes = {note.paper.name: note for note in await read_all(load(EARLIER, LATER), Library())}
    dendrites = notes["2608.99011v1"].related[0]
    assert (dendrites.paper, dendrites.published.month) == ("2603.99005", 3)
    assert dendrites.why[0] == "both on dendrite growth, pressure"
    assert found(notes["2608.99012v1"].related)[0].startswith("Layered Oxide Cathodes")


async def test_the_field_moves_from_silicon_to_learned_potentials() -> None:
    library = Library()
    await read_all(load(EARLIER), library)
    assert field.picture(library).rising == ()
    await read_all(load(LATER), library)
    seen = field.picture(library)
    assert seen.recent and (seen.recent.first, seen.recent.papers) == ("2026-07", 6)
    assert seen.before and (seen.before.last, seen.before.papers) == ("2026-06", 8)
    rising = [trend.term for trend in seen.rising]
    assert rising[:2] == ["active learning", "machine-learned interatomic potential"]
    assert seen.falling[0].term == "silicon anode"
    assert (seen.falling[0].before, seen.falling[0].recent) == (4, 0)
    assert sum(seen.months.values()) == seen.papers == 14
    assert field.sentence(seen).startswith("14 papers read; most on solid electrolyte (11), ")
    assert len(msgspec.json.encode(seen)) < 8_000


def test_the_picture_of_an_empty_library_is_empty() -> None:
    assert field.picture(Library()) == FieldNote(papers=0)
    assert field.sentence(FieldNote(papers=0)) == "0 papers read."


def test_few_papers_over_many_years_still_compare_and_prove_little() -> None:
    library = Library()
    for i in range(8):
        time = datetime(2000 + 3 * i, 5, 1, tzinfo=UTC)
        note = PaperNote(paper(f"2601.0000{i}", published=time), (terms.Term("braid", 1.0),))
        library.apply(i + 1, "paper", noted(note))
    seen = field.picture(library)
    assert seen.recent and (seen.recent.first, seen.recent.papers) == ("2012-05", 4)
    assert seen.before and (seen.before.first, seen.before.papers) == ("2000-05", 4)
    assert seen.rising == seen.falling == ()
    assert seen.terms[0].papers == 8


async def test_the_text_of_a_note_reads_as_sentences() -> None:
    (note, *_) = await read_all(load(EARLIER), Library())
    text = sentence(note)
    assert text.startswith(
        "Crack Formation in Silicon Anodes During Fast Charging. We follow crack"
    )
    assert text.endswith("Key terms: silicon anode, crack formation, charging, cycle, particle.")


DIGEST = """
import anyio, hashlib, msgspec, sys
sys.path[:0] = sys.argv[1:]
import test_research_library as here
async def main():
    library = here.Library()
    notes = await here.read_all(here.load(here.EARLIER, here.LATER), library)
    content = msgspec.json.encode([notes, here.field.picture(library)])
    print(hashlib.sha256(content).hexdigest())
anyio.run(main)
"""


def test_notes_are_the_same_in_every_process() -> None:
    here = str(Path(__file__).parent)
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, here],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(digests) == 1
