"""Embedders: texts as vectors whose cosine says how alike they are.

The default needs no model and no download. Another one (a model, a service) is a class with the
same three members.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Protocol
from zlib import crc32

Vector = tuple[float, ...]

_WORD = re.compile(r"[^\W_]+")
_TRIGRAM_WEIGHT = 0.6
_PAIR_WEIGHT = 0.5


class Embedder(Protocol):
    """`name` tells vectors of one embedder from another's: only vectors of one may be compared."""

    @property
    def name(self) -> str: ...
    @property
    def dimensions(self) -> int: ...
    def embed(self, texts: Sequence[str]) -> list[Vector]:
        """One vector of length 1 for each text, in order; zeros for a text without a word."""
        ...


class HashingEmbedder:
    """Words, pairs of words and the three-letter parts of words, hashed into signed dimensions.

    The same text gives the same vector on every machine and in every version of Python (CRC-32,
    no random state). It sees shared words and shared word stems, not meaning: `car` and `vehicle`
    are strangers. About 0.5 ms for an abstract.
    """

    def __init__(self, dimensions: int = 384) -> None:
        if dimensions < 8:
            raise ValueError(f"an embedder needs at least 8 dimensions, got {dimensions}")
        self._dimensions = dimensions

    @property
    def name(self) -> str:
        return f"hashing-{self._dimensions}"

    @property
    def dimensions(self) -> int:
        return self._dimensions

    def embed(self, texts: Sequence[str]) -> list[Vector]:
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Vector:
        words = _WORD.findall(text.lower())
        sums = [0.0] * self._dimensions
        for word, count in Counter(words).items():
            # a word said ten times is not ten times as much of the subject
            emphasis = 1.0 + math.log(count)
            for feature, weight in _features(word):
                self._add(sums, feature, weight * emphasis)
        for pair, count in Counter(pairwise(words)).items():
            self._add(sums, _hash(" ".join(pair)), _PAIR_WEIGHT * (1.0 + math.log(count)))
        length = math.sqrt(sum(value * value for value in sums))
        return tuple(value / length for value in sums) if length else tuple(sums)

    def _add(self, sums: list[float], hashed: int, weight: float) -> None:
        # the sign, from a bit of its own, lets features that share a dimension cancel out
        sums[(hashed >> 1) % self._dimensions] += weight if hashed & 1 else -weight


def cosine(one: Vector, other: Vector) -> float:
    """How alike two vectors of length 1 are: 1 the same, about 0 nothing in common."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def _hash(feature: str) -> int:
    return crc32(feature.encode())


@lru_cache(maxsize=50_000)
def _features(word: str) -> tuple[tuple[int, float], ...]:
    """The hashes of a word and of its three-letter parts, with weights that favour neither long
    words nor short ones.
    """
    framed = f"<{word}>"
    parts = {framed[i : i + 3] for i in range(len(framed) - 2)} - {framed}
    share = _TRIGRAM_WEIGHT / math.sqrt(len(parts)) if parts else 0.0
    return ((_hash(word), 1.0), *((_hash(part), share) for part in sorted(parts)))
