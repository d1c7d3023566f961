"""Reading one paper: from its text to key terms and points.

The seam for a model: an agent takes any `Reader`. `TermReader` is the one that needs none.
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec

from stratum_agents.research import terms
from stratum_agents.research.paper import Paper
from stratum_agents.research.terms import Frequencies, Term

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"“$])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|et al|Fig|resp)|\b[A-Z])\.$")
_SAYS_WHAT_IS_NEW = re.compile(
    r"\b(?:we|this (?:paper|article|work|study)|our)\b.{0,40}\b(?:propos|present|introduc|develop|"
    r"show|find|found|derive|prove|provide|describ|investigat|evaluat|report|identif|demonstrat)"
    r"|\b(?:results?|findings?|experiments?|evaluation)\b.{0,30}\b(?:show|indicat|suggest|reveal)",
    re.IGNORECASE,
)


class Reading(msgspec.Struct, frozen=True):
    """What a reader made of a paper: its key terms, weightiest first, and its main points."""

    key_terms: tuple[Term, ...]
    points: tuple[str, ...]


class Reader(Protocol):
    """Reads one paper. `known` tells which terms are common among the papers read before.

    The same paper and the same `known` should give the same reading: a run that is repeated after
    a crash reads again.
    """

    async def read(self, paper: Paper, known: Frequencies) -> Reading: ...


class TermReader:
    """Key terms by TF-IDF; the points are the abstract's own sentences that hold most of them."""

    def __init__(self, *, max_terms: int = 8, max_points: int = 2) -> None:
        self._max_terms, self._max_points = max_terms, max_points

    async def read(self, paper: Paper, known: Frequencies) -> Reading:
        text = terms.read(paper.title, paper.abstract)
        found = terms.key_terms(text, known, self._max_terms)
        return Reading(tuple(found), tuple(self._points(paper.abstract, found)))

    def _points(self, abstract: str, key_terms: list[Term]) -> list[str]:
        told = sentences(abstract)
        scores = [_score(sentence, key_terms) for sentence in told]
        best = sorted(range(len(told)), key=lambda i: (-scores[i], i))[: self._max_points]
        return [told[i] for i in sorted(best)]


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order; a full stop after `e.g.` or an initial ends none."""
    found: list[str] = []
    for part in _SENTENCE.split(text.strip()):
        if found and _ABBREVIATION.search(found[-1]):
            found[-1] += f" {part}"
        elif part:
            found.append(part)
    return found


def _score(sentence: str, key_terms: list[Term]) -> float:
    inside = terms.read("", sentence).counts
    held = sum(term.weight for term in key_terms if term.term in inside)
    return held + (1.0 if _SAYS_WHAT_IS_NEW.search(sentence) else 0.0)
