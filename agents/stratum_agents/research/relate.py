"""Prior work: which earlier notes a paper relates to, how closely, and why.

Evidence is summed and brought to 0-1 as `1 - exp(-evidence / 2)`: for each term that both papers
dwell on, how much the less emphatic one dwells on it times how much the term tells (squared: rare
terms decide); for common authors; and for the cosine of the texts' embeddings, from which words
that many papers have were taken out. What was read before decides what is rare.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

import msgspec

from stratum_agents.embed import Embedder, cosine
from stratum_agents.research import terms
from stratum_agents.research.library import Entry, Library, author_key, emphasis_of
from stratum_agents.research.note import Related
from stratum_agents.research.paper import Paper
from stratum_agents.research.terms import Text

MINIMUM_SCORE = 0.2

_COMMON = 0.45
"""Rarity from which a word tells papers apart: about one paper in six, of a hundred."""
_IN_PASSING = 0.4
"""Taken off the emphasis, so that words which both papers use once count for little."""
_FIRST_AUTHOR, _MORE_AUTHORS, _MOST_AUTHORS = 0.6, 0.2, 3
_ALIKE = 0.35
"""A cosine that relates two papers by itself, without a term or an author to name."""
_CHANCE_COSINE, _COSINE_EVIDENCE = 0.15, 2.0
_EVIDENCE_UNIT = 2.0
_CANDIDATES = 50
_SHARED_TERMS = 40
_SHOWN_TERMS, _WORTH_SHOWING = 3, 0.2


class _Link(msgspec.Struct, frozen=True):
    """An earlier note with the evidence for a relation, before the texts are compared."""

    entry: Entry
    evidence: float
    shared: tuple[str, ...]
    authors: tuple[str, ...]


def related(
    paper: Paper, text: Text, library: Library, embedder: Embedder, limit: int
) -> list[Related]:
    """The earlier notes that a paper relates to, nearest first, at most `limit`."""
    # the form that the paper uses most is the one to show
    surfaces = {terms.stem(t): t for t in sorted(text.counts, key=lambda t: (text.counts[t], t))}
    emphasis = emphasis_of(text)
    spelt_out = {stem: terms.stem(text.spelt_out(surfaces[stem])) for stem in emphasis}
    telling = {stem: terms.telling(surfaces[stem], library) ** 2 for stem in emphasis}
    links = (
        _link(paper, entry, emphasis, telling, surfaces, spelt_out)
        for entry in _candidates(paper, emphasis, library)
    )
    nearest = heapq.nsmallest(
        _CANDIDATES, links, key=lambda link: (-link.evidence, link.entry.paper.id)
    )
    own, *others = embedder.embed(
        [embeddable(each, library) for each in (paper, *(link.entry.paper for link in nearest))]
    )
    found = []
    for link, vector in zip(nearest, others, strict=True):
        alike = max(0.0, cosine(own, vector))
        evidence = link.evidence + _COSINE_EVIDENCE * max(0.0, alike - _CHANCE_COSINE)
        score = round(1 - math.exp(-evidence / _EVIDENCE_UNIT), 3)
        says_why = link.shared or link.authors or alike >= _ALIKE
        if score >= MINIMUM_SCORE and says_why:
            found.append(_as_related(link, score, alike))
    found.sort(key=lambda each: (-each.score, each.paper))
    return found[:limit]


def embeddable(paper: Paper, library: Library) -> str:
    """What of a paper is embedded: its words that few papers have, those of the title twice."""
    words = terms.plain(f"{paper.title} . {paper.title} . {paper.abstract}").split(" ")
    return " ".join(each for each in words if terms.rarity(each, library) >= _COMMON)


def _candidates(paper: Paper, emphasis: dict[str, float], library: Library) -> Iterable[Entry]:
    """Papers with one of its rarer terms or one of its authors, without the paper itself."""
    found: dict[str, Entry] = {}
    for stem in emphasis:
        if terms.rarity(stem, library) >= _COMMON:
            found |= {entry.paper.id: entry for entry in library.with_term(stem)}
    for name in paper.authors:
        found |= {entry.paper.id: entry for entry in library.by_author(name)}
    found.pop(paper.id, None)
    return found.values()


def _link(
    paper: Paper,
    entry: Entry,
    emphasis: dict[str, float],
    telling: dict[str, float],
    surfaces: dict[str, str],
    spelt_out: dict[str, str],
) -> _Link:
    weighed = [
        (telling[stem] * (min(value, entry.emphasis[stem]) - _IN_PASSING), stem)
        for stem, value in emphasis.items()
        if stem in entry.emphasis
    ]
    evidence = 0.0
    taken: list[str] = []
    shared: list[str] = []
    strongest = heapq.nsmallest(_SHARED_TERMS, weighed, key=lambda pair: (-pair[0], pair[1]))
    for value, stem in strongest:
        # a phrase, its words and its short form are one piece of evidence
        if any(terms.overlap(spelt_out[stem], other) for other in taken):
            continue
        taken.append(spelt_out[stem])
        evidence += value
        if value >= _WORTH_SHOWING and len(shared) < _SHOWN_TERMS:
            shared.append(surfaces[stem])
    theirs = {author_key(name) for name in entry.paper.authors}
    authors = tuple(name for name in paper.authors if author_key(name) in theirs)
    if authors:
        evidence += _FIRST_AUTHOR + _MORE_AUTHORS * (min(len(authors), _MOST_AUTHORS) - 1)
    return _Link(entry, evidence, tuple(shared), authors)


def _as_related(link: _Link, score: float, alike: float) -> Related:
    why = []
    if link.shared:
        why.append(f"both on {', '.join(link.shared)}")
    if link.authors:
        more = len(link.authors) - 2
        names = ", ".join(link.authors[:2])
        why.append(f"common authors: {names}" + (f" and {more} more" if more > 0 else ""))
    why.append(f"similarity of the texts {alike:.2f}")
    paper = link.entry.paper
    return Related(
        paper=paper.id,
        note=link.entry.note,
        title=paper.title,
        published=paper.published,
        score=score,
        why=tuple(why),
    )
