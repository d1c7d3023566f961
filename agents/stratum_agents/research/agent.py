"""The research agent: a lab's monitor of papers.

For each `paper.published` it makes or revises a note, tells those who follow the field of a paper
that is relevant, and redraws the picture of the field. All of it is one commit with the end of the
run, so a paper is read as a whole or not at all.

Twice is once. An event handled again is refused by its run's journal. A version is read only where
the library, brought up to date before each paper, has no same or newer one. And a note is made only
if no other came in between: where two instances note two versions at the same moment, the log
refuses the second commit, and its next attempt finds the note and revises it.

An instance reads one paper after the other (concurrency 1), since each is read in the light of those
before it. With several instances two papers read at the same moment do not see each other: neither
names the other as related, and the picture of the field counts both from the next paper on.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio
import anyio.lowlevel

from stratum_agents.agent import Agent
from stratum_agents.embed import Embedder, HashingEmbedder
from stratum_agents.research import assess, field, intake
from stratum_agents.research.assess import Assessor
from stratum_agents.research.library import Library
from stratum_agents.research.note import FIELD, PAPER, FieldNote, PaperNote
from stratum_agents.research.paper import Paper, PaperNoted, PaperRelevant
from stratum_agents.research.reader import Reader, TermReader
from stratum_agents.research.settings import Settings
from stratum_agents.run import Run
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent
from stratum_bus.event import Event

_YIELD_EVERY = 25

log = logging.getLogger("stratum.research")


def create(
    settings: Settings, *, reader: Reader | None = None, embedder: Embedder | None = None
) -> Agent:
    """The agent with these settings; `reader` and `embedder` are where a model comes in."""
    agent = Agent(settings.name, follows=[intake.PUBLISHED], concurrency=1)
    assessor = Assessor(settings, reader or TermReader(), embedder or HashingEmbedder())
    library = Library()

    @agent.on(intake.PUBLISHED)
    async def read(run: Run, event: Event[Paper]) -> None:
        known_to = await catch_up(run.bus, run.agent, library)
        await _read(run, event.data, library, assessor, settings, known_to)

    if settings.feeds:

        @agent.task
        async def poll(bus: Bus, stop: anyio.Event) -> None:
            await intake.poll(bus, settings, stop=stop)

    return agent


async def catch_up(bus: Bus, agent: str, library: Library) -> int:
    """Fold in what came into the agent's memory since: its own notes and another instance's.

    Returns the last sequence of the notes on papers that the library knows.
    """
    subjects = {kind: subject.memory(agent, kind) for kind in (PAPER, FIELD)}
    newest = {kind: await bus.last(each) for kind, each in subjects.items()}
    paper = newest[PAPER]
    known_to = paper.sequence if paper else 0
    if all(each is None or each.sequence <= library.sequence for each in newest.values()):
        return known_to
    filters = list(subjects.values())
    async with bus.read(filters=filters, start=library.sequence + 1) as reader:
        taken = 0
        async for message in reader:
            kind = subject.parse(message.subject).kind
            known_to = max(known_to, message.sequence) if kind == PAPER else known_to
            try:
                library.apply(message.sequence, kind, await bus.event(message))
            except (InvalidEvent, BlobError) as error:
                log.debug("memory of %s: passed over %s", agent, error)
            if (taken := taken + 1) % _YIELD_EVERY == 0:
                await anyio.lowlevel.checkpoint()
    return known_to


async def _read(
    run: Run,
    paper: Paper,
    library: Library,
    assessor: Assessor,
    settings: Settings,
    known_to: int,
) -> None:
    name = note_id(run.agent, paper.id)
    known = library.get(paper.id)
    if name in library.retracted or (known and known.paper.version >= paper.version):
        log.debug("%s was read before", paper.name)
        return
    note = await assessor.assess(paper, library)
    text, fields = assess.sentence(note), _fields(note)
    if known:
        name = known.note
        await run.revise(name, PAPER, expected_sequence=known_to, text=text, **fields)
    else:
        await run.remember(PAPER, text, note=name, expected_sequence=known_to, **fields)
    await _tell(run, name, note, settings, revised=known is not None)
    with library.supposing(name, note) as after:
        picture = field.picture(after)
    await _redraw(run, picture, library)
    log.info(
        "%s %s: relevance %.2f, related to %d",
        "revised" if known else "noted",
        paper.name,
        note.relevance,
        len(note.related),
    )


def _fields(note: PaperNote) -> dict[str, Any]:
    return {
        "data": note,
        "tags": list(note.paper.categories),
        "about": note.paper.id,
        "score": note.relevance,
    }


async def _tell(run: Run, name: str, note: PaperNote, settings: Settings, *, revised: bool) -> None:
    """Messages to those who follow the field where the paper is relevant, and a word to all."""
    paper = note.paper
    if note.relevance >= settings.threshold:
        told = PaperRelevant(
            id=paper.id,
            version=paper.version,
            title=paper.title,
            relevance=note.relevance,
            note=name,
            link=paper.links.get("abstract", ""),
            why=note.why,
            key_terms=tuple(term.term for term in note.key_terms),
            related=tuple(each.title for each in note.related),
            revised=revised,
        )
        for other in settings.tell:
            await run.send(other, "paper.relevant", told, about=paper.id)
    noted = PaperNoted(
        id=paper.id,
        version=paper.version,
        title=paper.title,
        relevance=note.relevance,
        note=name,
        related=len(note.related),
        revised=revised,
    )
    await run.publish("paper.noted", noted, about=paper.id)


async def _redraw(run: Run, picture: FieldNote, library: Library) -> None:
    """Make or revise the one note of the field; a person who retracted it is not contradicted."""
    name, text = f"{run.agent}:field", field.sentence(picture)
    if name in library.retracted:
        return
    if library.has_field_note:
        await run.revise(name, FIELD, text=text, data=picture)
    else:
        await run.remember(FIELD, text, data=picture, note=name)


def note_id(agent: str, paper: str) -> str:
    """The id of the note of a paper: one, whichever version and whoever reads it."""
    return f"{agent}:paper:{paper}"
