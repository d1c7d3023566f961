"""What the agent makes of one paper: a function of the paper and of the library, nothing else."""

from __future__ import annotations

from stratum_agents.embed import Embedder
from stratum_agents.research import relate, terms
from stratum_agents.research.library import Library
from stratum_agents.research.note import PaperNote
from stratum_agents.research.paper import Paper
from stratum_agents.research.reader import Reader
from stratum_agents.research.relevance import Interests
from stratum_agents.research.settings import Settings


class Assessor:
    """Reads papers for the interests of some settings."""

    def __init__(self, settings: Settings, reader: Reader, embedder: Embedder) -> None:
        self._settings, self._reader, self._embedder = settings, reader, embedder
        self._interests = Interests(settings.interests, embedder)

    async def assess(self, paper: Paper, library: Library) -> PaperNote:
        """The data of the paper's note, as of the library."""
        reading = await self._reader.read(paper, library)
        text = terms.read(paper.title, paper.abstract)
        (vector,) = self._embedder.embed([terms.plain(f"{paper.title} . {paper.abstract}")])
        relevance = self._interests.relevance(text, vector, library)
        found = relate.related(paper, text, library, self._embedder, self._settings.related)
        return PaperNote(
            paper=paper,
            key_terms=reading.key_terms,
            points=reading.points,
            relevance=relevance.score,
            why=relevance.why,
            related=tuple(found),
            as_of=library.sequence,
        )


def sentence(note: PaperNote) -> str:
    """The note in words: its text in memory, by which it is found again."""
    parts = [note.paper.title, *note.points]
    if note.key_terms:
        parts.append(f"Key terms: {', '.join(term.term for term in note.key_terms)}")
    ended = (part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)
    return " ".join(ended)
