"""The picture of the field: what the papers are about by month of publication, and how it moves.

A term is counted once for each paper that it stands in. Rising and falling compare its share of the
recent papers with that of the papers before them: the recent window is the newest three months,
made longer until it holds four papers; the one before is twelve months, made longer until it holds
as many as the recent one. With fewer than four papers in either nothing is compared. What counts is
the difference in standard deviations (two proportions, one paper with the term and one without
added to each side, so that few papers prove little).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from stratum_agents.research import terms
from stratum_agents.research.library import Library
from stratum_agents.research.note import FieldNote, Trend, Window

RECENT_MONTHS = 3
BEFORE_MONTHS = 12
MINIMUM_PAPERS = 4
MINIMUM_CHANGE = 0.7

_SHOWN_TERMS = 12
_SHOWN_TRENDS = 8
_SHOWN_MONTHS = 24


class _Move(msgspec.Struct, frozen=True):
    """A term with its counts in the two windows."""

    stem: str
    term: str
    papers: int
    recent: int
    before: int
    change: float


def picture(library: Library) -> FieldNote:
    """The field as the library holds it now."""
    months = library.months()
    recent, before = _windows(months)
    moves = _moves(library, recent, before)
    common = sorted(moves, key=lambda m: (-m.papers, -len(m.term), m.term))
    rising = sorted((m for m in moves if m.change > 0), key=lambda m: (-m.change, m.term))
    falling = sorted((m for m in moves if m.change < 0), key=lambda m: (m.change, m.term))
    return FieldNote(
        papers=library.papers,
        months=_newest(months),
        terms=_trends(library, common, _SHOWN_TERMS),
        rising=_trends(library, rising, _SHOWN_TRENDS, MINIMUM_CHANGE),
        falling=_trends(library, falling, _SHOWN_TRENDS, MINIMUM_CHANGE),
        recent=recent,
        before=before,
        as_of=library.sequence,
    )


def sentence(field: FieldNote) -> str:
    """The picture in words, for the note's text."""
    most = ", ".join(f"{trend.term} ({trend.papers})" for trend in field.terms[:6])
    parts = [f"{field.papers} {'paper' if field.papers == 1 else 'papers'} read"]
    if most:
        parts.append(f"most on {most}")
    for name, trends in (("rising", field.rising), ("falling", field.falling)):
        if trends:
            parts.append(f"{name}: {', '.join(trend.term for trend in trends[:6])}")
    return "; ".join(parts) + "."


def _moves(library: Library, recent: Window | None, before: Window | None) -> list[_Move]:
    """The key terms that stand in two papers or more, each in the form used most."""
    recent_months, before_months = _months_of(recent), _months_of(before)
    found = []
    for stem, forms in library.key_forms().items():
        months = library.months(stem)
        papers = sum(months.values())
        if papers < 2 or not forms:
            continue
        now = sum(months.get(month, 0) for month in recent_months)
        then = sum(months.get(month, 0) for month in before_months)
        change = 0.0
        if recent and before:
            change = _change(now, recent.papers, then, before.papers)
        term = min(forms, key=lambda form: (-forms[form], form))
        found.append(_Move(stem, term, papers, now, then, change))
    return found


def _windows(months: Mapping[str, int]) -> tuple[Window | None, Window | None]:
    """The recent months and those before them; none where there are no papers to compare."""
    if not months:
        return None, None
    newest, oldest = max(months), min(months)
    recent = _window(months, newest, oldest, RECENT_MONTHS, MINIMUM_PAPERS)
    last = _shift(recent.first, -1)
    if last < oldest:
        return recent, None
    before = _window(months, last, oldest, BEFORE_MONTHS, recent.papers)
    return recent, before if before.papers >= MINIMUM_PAPERS else None


def _window(months: Mapping[str, int], last: str, oldest: str, length: int, papers: int) -> Window:
    """The months up to `last`: `length` of them, or more until they hold so many papers."""
    first, held = last, months.get(last, 0)
    while first > oldest and (length > 1 or held < papers):
        first, length = _shift(first, -1), length - 1
        held += months.get(first, 0)
    return Window(first, last, held)


def _shift(month: str, by: int) -> str:
    count = int(month[:4]) * 12 + int(month[5:]) - 1 + by
    return f"{count // 12:04}-{count % 12 + 1:02}"


def _months_of(window: Window | None) -> list[str]:
    if window is None:
        return []
    found = [window.first]
    while found[-1] < window.last:
        found.append(_shift(found[-1], 1))
    return found


def _change(recent: int, recent_papers: int, before: int, before_papers: int) -> float:
    """By how many standard deviations the share of papers with a term moved."""
    first = (recent + 1) / (recent_papers + 2)
    second = (before + 1) / (before_papers + 2)
    spread = first * (1 - first) / (recent_papers + 2) + second * (1 - second) / (before_papers + 2)
    return round((first - second) / math.sqrt(spread), 2)


def _trends(
    library: Library, moves: Sequence[_Move], limit: int, minimum: float = 0.0
) -> tuple[Trend, ...]:
    """The first of them, without those that are part of another or hold it."""
    found: list[Trend] = []
    for move in moves:
        if len(found) == limit or abs(move.change) < minimum:
            break
        if not any(terms.overlap(move.term, other.term) for other in found):
            months = _newest(library.months(move.stem))
            found.append(
                Trend(move.term, move.papers, move.recent, move.before, move.change, months)
            )
    return tuple(found)


def _newest(months: Mapping[str, int]) -> dict[str, int]:
    return {month: months[month] for month in sorted(months)[-_SHOWN_MONTHS:]}
