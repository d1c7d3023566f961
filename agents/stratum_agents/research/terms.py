"""Terms: the words and phrases of a paper, and which of them say what it is about.

No model: phrases are runs of up to three words between punctuation and words that say nothing, and
they weigh more the oftener the paper uses them, in its title above all, and the fewer of the papers
read so far use them (TF-IDF). The same text and the same papers read give the same terms.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import msgspec

from stratum_agents.research import words

LONGEST_PHRASE = 3
LONGEST_TEXT = 20_000
"""Characters of an abstract that are read; arXiv takes 1,920."""

_MATH = re.compile(r"\$([^$]*)\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+")
_COMMAND = re.compile(r"\\[a-zA-Z]+|[{}\\~]")
_WORD = re.compile(r"\d*[^\W\d_][^\W_]*(?:[-'\u2019][^\W_]+)*|\d+(?:\.\d+)?|[^\w\s]|_")
_SHORT_FORM = re.compile(r"\(\s*([A-Z][A-Za-z]{1,6}?)s?\s*\)")
_PLURALS = {
    "analyses": "analysis",
    "hypotheses": "hypothesis",
    "indices": "index",
    "matrices": "matrix",
    "vertices": "vertex",
    **{
        word: word for word in ("always", "atlas", "bias", "canvas", "gas", "lens", "series", "yes")
    },
}
# adjectives, adverbs and participles: fine in a phrase, no term alone
_QUALIFIES = re.compile(
    r"(?!.*(?:bed|feed|seed|speed|archive|native|cable|variable|anomaly|assembly|family|supply)$)"
    r".{3,}(?:ed|ly|ous|ive|able|ible|ical|ional)"
)
_LENGTH_FACTOR = {1: 0.9, 2: 1.45, 3: 1.6}
_PRIOR_PAPERS = 20
_TITLE_COUNTS = 2
_PART_SHARE = 0.5
_LEAST_WEIGHT = 0.25
_SHORT_FORM_REACH = 200


class Frequencies(Protocol):
    """What was read so far: how many papers, and in how many of them a term stands, in any form."""

    @property
    def papers(self) -> int: ...
    def frequency(self, term: str) -> int: ...


class Term(msgspec.Struct, frozen=True):
    """A key term. `weight` is relative to the paper's weightiest term, which has 1."""

    term: str
    weight: float


class Text(msgspec.Struct, frozen=True):
    """The terms of one text: how often each word and phrase stands in it, and which in its title.

    `short_forms` are the ones that it explains itself, as in `{"gui": "graphical user interface"}`;
    both forms are counted.
    """

    counts: dict[str, int]
    title: frozenset[str]
    short_forms: dict[str, str] = {}

    def prominent(self, term: str) -> bool:
        """Whether it is more than a word in passing: used twice, or a phrase of the title."""
        return self.counts[term] > 1 or (" " in term and term in self.title)

    def emphasis(self, term: str) -> float:
        """How much the text dwells on a term; the title speaks louder, repetition fades."""
        return math.log1p(self.counts[term] + (_TITLE_COUNTS if term in self.title else 0))

    def spelt_out(self, term: str) -> str:
        """The term with its short forms in full."""
        return " ".join(self.short_forms.get(part, part) for part in term.split(" "))


def read(title: str, body: str) -> Text:
    """The terms of a title and an abstract."""
    title, body = title[:LONGEST_TEXT], body[:LONGEST_TEXT]
    short_forms = _short_forms(f"{title} . {body}")
    heading = Counter(_phrases(title, short_forms))
    counts = heading + Counter(_phrases(body, short_forms))
    return Text(dict(counts), frozenset(heading), short_forms)


def word(surface: str) -> str:
    """One form for a word: lower case, singular, without possessive. Acronyms keep their `S`."""
    text = surface.replace("\u2019", "'")
    text = text.removesuffix("'s").removesuffix("'")
    if "-" not in text:
        if text.isupper():
            return text.lower()
        if text[:-1].isupper() and len(text) > 2:
            return text.lower().removesuffix("s")
    text = text.lower()
    if text in _PLURALS:
        return _PLURALS[text]
    if len(text) > 4 and text.endswith("ies"):
        return text[:-3] + "y"
    if text.endswith(("sses", "xes", "ches", "shes", "zzes")):
        return text[:-2]
    if len(text) > 3 and text.endswith("s") and not text.endswith(("ss", "us", "is")):
        return text[:-1]
    return text


BREAKING = frozenset(word(each) for each in words.BREAKING.split())
WEAK = frozenset(word(each) for each in words.WEAK.split())


@lru_cache(maxsize=100_000)
def stem(term: str) -> str:
    """A rougher form, by which terms are counted: `software tests` and `software testing` are one."""
    return " ".join(_stem(part) for part in term.split(" "))


def plain(text: str) -> str:
    """The words of a text that say something, in their one form: what is worth embedding."""
    words = (word(token) for token in _tokens(text[:LONGEST_TEXT]) if token[0].isalpha())
    return " ".join(each for each in words if each not in BREAKING)


def rarity(term: str, known: Frequencies) -> float:
    """How much a term tells apart, from 1 (never read before) towards 0 (in every paper read).

    20 papers without the term are taken for granted, so that the first papers make no difference.
    """
    papers = known.papers + _PRIOR_PAPERS
    return math.log(papers / (known.frequency(term) + 1)) / math.log(papers)


def can_stand(term: str) -> bool:
    """Whether a term says something by itself: any phrase does, of words not the weak ones."""
    return " " in term or not (term in WEAK or _QUALIFIES.fullmatch(term))


def telling(term: str, known: Frequencies) -> float:
    """How much a word or phrase says of a paper: rare ones more, phrases more than words."""
    words = term.split(" ")
    rare = sum(rarity(part, known) for part in words) / len(words)
    if len(words) > 1:
        rare = (rare + rarity(term, known)) / 2
    return rare * _LENGTH_FACTOR[len(words)]


def weights(text: Text, known: Frequencies) -> dict[str, float]:
    """Every term of a text that can be a key term, with its TF-IDF weight."""
    return {
        term: text.emphasis(term) * telling(term, known)
        for term in text.counts
        if can_stand(term) and (text.prominent(term) or (" " in term and known.frequency(term)))
    }


def key_terms(text: Text, known: Frequencies, limit: int = 8) -> list[Term]:
    """The terms that say what the text is about, weightiest first.

    Of a phrase and a part of it one is taken: the longer, unless the part is used far oftener. Of
    a short form and what it stands for the weightier one is taken.
    """
    weighed = weights(text, known)
    order = sorted(weighed, key=lambda term: (-weighed[term], term))
    chosen: list[str] = []
    for term in order:
        if len(chosen) == 2 * limit:
            break
        if any(overlap(text.spelt_out(term), text.spelt_out(other)) for other in chosen):
            continue
        share = _PART_SHARE * text.counts[term]
        longer = [o for o in order if _within(term, o) and text.counts[o] >= share]
        best = max(longer, key=lambda o: (o.count(" "), weighed[o], o))
        if not any(overlap(text.spelt_out(best), text.spelt_out(other)) for other in chosen):
            chosen.append(best)
    chosen = sorted(chosen, key=lambda term: (-weighed[term], term))[:limit]
    top = weighed[chosen[0]] if chosen else 1.0
    found = [Term(term, round(weighed[term] / top, 3)) for term in chosen]
    return [term for term in found if term.weight >= _LEAST_WEIGHT]


def overlap(one: str, other: str) -> bool:
    """Whether one holds the other, or both hold the same two words in a row."""
    if _within(one, other) or _within(other, one):
        return True
    words = one.split(" ")
    return any(_within(" ".join(words[i : i + 2]), other) for i in range(len(words) - 1))


def _stem(part: str) -> str:
    for ending in ("ing", "ed", "er"):
        rest = part.removesuffix(ending)
        if rest != part and len(rest) >= 4:
            double = rest[-1] == rest[-2] and rest[-1] not in "lsz"
            part = rest[:-1] if double else rest
            break
    return part.removesuffix("e") if len(part) > 4 else part


def _within(short: str, long: str) -> bool:
    return f" {short} " in f" {long} "


def _tokens(text: str) -> list[str]:
    """Words, numbers and punctuation marks of a text without its formulas and addresses."""
    text = unicodedata.normalize("NFKC", text)
    text = _ADDRESS.sub(" . ", text)
    # a formula breaks a phrase, a single symbol as in `$k$-means` belongs to its word
    text = _MATH.sub(lambda m: m[1] if m[1] and len(m[1].strip()) == 1 else " . ", text)
    return _WORD.findall(_COMMAND.sub(" ", text))


def _phrases(text: str, short_forms: dict[str, str]) -> Iterator[str]:
    """Each occurrence of a word, and of a phrase of two or three; with each short form also what it
    stands for.
    """
    run: list[str] = []
    for token in [*_tokens(text), "."]:
        part = word(token) if token[0].isalnum() else ""
        if len(part) > 1 and part not in BREAKING and not part[0].isdigit():
            run.append(part)
            continue
        yield from _parts(run)
        if not short_forms.keys().isdisjoint(run):
            once = Counter(_parts(run))
            full = " ".join(short_forms.get(part, part) for part in run).split(" ")
            yield from (Counter(_parts(full)) - once).elements()
        run = []


def _parts(run: list[str]) -> Iterator[str]:
    for start in range(len(run)):
        for end in range(start + 1, min(start + LONGEST_PHRASE, len(run)) + 1):
            yield " ".join(run[start:end])


def _short_forms(text: str) -> dict[str, str]:
    """What the text itself explains: `{"tcp": "test case prioritisation"}`."""
    found: dict[str, str] = {}
    for match in _SHORT_FORM.finditer(text):
        letters = match[1].lower()
        start = max(0, match.start() - _SHORT_FORM_REACH)
        before = [token for token in _tokens(text[start : match.start()]) if token[0].isalnum()]
        for size in range(1, min(len(letters), len(before)) + 1):
            parts = before[-size:]
            initials = "".join(piece[0].lower() for part in parts for piece in part.split("-"))
            if initials == letters:
                long = [word(part) for part in parts]
                if len(long) <= LONGEST_PHRASE and not BREAKING.intersection(long):
                    found[word(match[1])] = " ".join(long)
    return found
