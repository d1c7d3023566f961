"""Recall: the notes that are near to a text, by what they say and how they say it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from stratum_agents.embed import HashingEmbedder, cosine
from stratum_bus.memory import Note

_WORD = re.compile(r"[^\W_]{3,}")
_EMBEDDER = HashingEmbedder()


class Recalled(msgspec.Struct, frozen=True):
    """A note and how near it is, 0 to 1: half its vector's cosine, half the share of the text's
    words that it has.
    """

    note: Note
    score: float


def nearest(text: str, notes: Sequence[Note], limit: int) -> list[Recalled]:
    """The nearest notes, best first; equally near ones in the order they were noted."""
    if not notes:
        return []
    wanted = _words(text)
    vector, *vectors = _EMBEDDER.embed([text, *(_said(note) for note in notes)])
    scored = [
        Recalled(note, round(0.5 * max(0.0, cosine(vector, other)) + 0.5 * _share(wanted, note), 4))
        for note, other in zip(notes, vectors, strict=True)
    ]
    best = sorted(scored, key=lambda recalled: -recalled.score)
    return [recalled for recalled in best[:limit] if recalled.score > 0]


def _share(wanted: set[str], note: Note) -> float:
    return len(wanted & _words(_said(note))) / len(wanted) if wanted else 0.0


def _said(note: Note) -> str:
    return " ".join([note.text, note.about or "", *note.tags])


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))
