"""What the agent writes into its memory: a note for each paper, and one of the field."""

from __future__ import annotations

from datetime import datetime

import msgspec

from stratum_agents.research.paper import Paper
from stratum_agents.research.terms import Term

PAPER = "paper"
FIELD = "field"
"""The kinds of note: `memory.<agent>.paper` and `memory.<agent>.field`."""


class Related(msgspec.Struct, frozen=True):
    """An earlier note that a paper relates to. `score` is 0-1, `why` says what they share."""

    paper: str
    note: str
    title: str
    published: datetime
    score: float
    why: tuple[str, ...]


class PaperNote(msgspec.Struct, frozen=True):
    """The data of a note of kind `paper`.

    `as_of` is the log sequence of the agent's last earlier note: key terms, relevance and relations
    follow from the paper and from the notes up to there, and from nothing else.
    """

    paper: Paper
    key_terms: tuple[Term, ...] = ()
    points: tuple[str, ...] = ()
    relevance: float = 0.0
    why: tuple[str, ...] = ()
    related: tuple[Related, ...] = ()
    as_of: int = 0


class Window(msgspec.Struct, frozen=True):
    """A span of months, both included (`2026-01`), and the papers that were published in it."""

    first: str
    last: str
    papers: int


class Trend(msgspec.Struct, frozen=True):
    """A term of the field. `recent` and `before` are papers with the term in the two windows;
    `change` is by how many standard deviations its share moved; `months` is the count by month.
    """

    term: str
    papers: int
    recent: int
    before: int
    change: float
    months: dict[str, int]


class FieldNote(msgspec.Struct, frozen=True):
    """The data of the note of kind `field`: what the papers read so far are about, and how it moves.

    `months` counts the papers by month of publication. `before` is None while there are too few
    papers to compare.
    """

    papers: int
    months: dict[str, int] = {}
    terms: tuple[Trend, ...] = ()
    rising: tuple[Trend, ...] = ()
    falling: tuple[Trend, ...] = ()
    recent: Window | None = None
    before: Window | None = None
    as_of: int = 0
