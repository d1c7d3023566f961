"""How relevant a paper is to what its readers are interested in.

For each interest, 80 % of the score is how much of its words and phrases the paper has: a word in
the title counts fully, one in the abstract by how often it stands there, a phrase more than its
words, a rare word more than a common one. 20 % is the cosine of the two texts' embeddings, which
sees word stems that differ. The best interest counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from stratum_agents.embed import Embedder, Vector, cosine
from stratum_agents.research import terms
from stratum_agents.research.terms import Frequencies, Text

_OVERLAP_SHARE = 0.8
_COSINE_OF_THE_SAME = 0.4
"""A few words and an abstract that is about them have a cosine of about this; it counts as 1."""
_WEAK_WORD = 0.3
_PHRASE = 2.0
_LEAST_RARITY = 0.25
_WORTH_SAYING = 0.2


class Relevance(msgspec.Struct, frozen=True):
    """`score` is 0-1; `why` has one line for each interest that the paper has something of."""

    score: float
    why: tuple[str, ...]


class Interests:
    """What readers of the field want to hear of, as phrases in plain words."""

    def __init__(self, phrases: Sequence[str], embedder: Embedder) -> None:
        vectors = embedder.embed([terms.plain(phrase) for phrase in phrases])
        self._each = [(p, terms.read("", p), v) for p, v in zip(phrases, vectors, strict=True)]

    def relevance(self, text: Text, vector: Vector, known: Frequencies) -> Relevance:
        """The relevance of a paper with these terms and this embedding."""
        stems = _stems(text)
        best = 0.0
        said: list[tuple[float, str]] = []
        for phrase, wanted, wanted_vector in self._each:
            overlap, found = _overlap(wanted, stems, known)
            alike = min(1.0, max(0.0, cosine(vector, wanted_vector)) / _COSINE_OF_THE_SAME)
            score = _OVERLAP_SHARE * overlap + (1 - _OVERLAP_SHARE) * alike
            best = max(best, score)
            if score >= _WORTH_SAYING and found:
                said.append((-score, f"{phrase}: {', '.join(found)}"))
        return Relevance(round(best, 3), tuple(line for _, line in sorted(said)))


def _stems(text: Text) -> dict[str, tuple[int, bool]]:
    """Each stemmed word and pair of words: how often, and whether in the title."""
    counts: Counter[str] = Counter()
    title: set[str] = set()
    for term, count in text.counts.items():
        if term.count(" ") < 2:
            stemmed = terms.stem(term)
            counts[stemmed] += count
            if term in text.title:
                title.add(stemmed)
    return {term: (count, term in title) for term, count in counts.items()}


def _overlap(
    wanted: Text, stems: dict[str, tuple[int, bool]], known: Frequencies
) -> tuple[float, list[str]]:
    """The share of an interest that a paper has, and what of it."""
    all_of_it = got = 0.0
    found: list[str] = []
    for term in wanted.counts:
        words = term.split(" ")
        if len(words) > 2:
            continue
        value = sum(
            max(_LEAST_RARITY, terms.rarity(word, known))
            * (_WEAK_WORD if word in terms.WEAK else 1.0)
            for word in words
        ) / len(words)
        if len(words) == 2:
            value *= _PHRASE
        all_of_it += value
        count, in_title = stems.get(terms.stem(term), (0, False))
        if count:
            got += value * (1.0 if in_title else 1 - 0.6**count)
            found.append(f"{term} ({'in the title' if in_title else _times(count)})")
    # a phrase that was found speaks for its words
    shown = [
        f for f in found if not any(f.split(" (")[0] in o.split(" (")[0] for o in found if o != f)
    ]
    return (got / all_of_it if all_of_it else 0.0), shown


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
