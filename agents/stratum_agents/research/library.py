"""The library: the agent's own notes, folded from the events of its memory.

It is a pure function of those events in their order: one that is rebuilt, one that is kept up to
date and one in another instance hold the same. It also counts, for key terms and trends, in which
papers each term stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from stratum_agents.research import terms
from stratum_agents.research.note import FIELD, PAPER, PaperNote
from stratum_agents.research.paper import Paper
from stratum_agents.research.terms import Text
from stratum_bus.event import Event
from stratum_bus.memory import NOTED, RETRACTED, REVISED


class Entry(msgspec.Struct, frozen=True):
    """One paper that was read. `emphasis` says, by stem, how much it dwells on a term; `stems` are
    of all terms that count as standing in it.
    """

    note: str
    paper: Paper
    key_terms: tuple[str, ...]
    emphasis: dict[str, float]
    stems: frozenset[str]

    @property
    def month(self) -> str:
        return f"{self.paper.published:%Y-%m}"


class _Change(msgspec.Struct):
    """What is read of a memory event's data, whatever else stands there."""

    note: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")


_decode_change = msgspec.json.Decoder(_Change).decode
_decode_note = msgspec.json.Decoder(PaperNote).decode


class Library:
    """`sequence` is the position in the log up to which memory was folded in; `retracted` are the
    ids of notes that were taken back.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.has_field_note = False
        self.retracted: set[str] = set()
        self._entries: dict[str, Entry] = {}
        self._paper_of_note: dict[str, str] = {}
        self._by_stem: dict[str, set[str]] = {}
        self._months: Counter[str] = Counter()
        self._stem_months: dict[str, Counter[str]] = {}
        self._forms: dict[str, Counter[str]] = {}
        self._by_author: dict[str, set[str]] = {}

    @property
    def papers(self) -> int:
        """How many papers were read."""
        return len(self._entries)

    def frequency(self, term: str) -> int:
        """In how many of them a term stands, in any of its forms."""
        return len(self._by_stem.get(terms.stem(term), ()))

    def get(self, paper: str) -> Entry | None:
        """The note of a paper, by the paper's id."""
        return self._entries.get(paper)

    def entries(self) -> Iterable[Entry]:
        """All papers, in the order in which they were first noted."""
        return self._entries.values()

    def months(self, stem: str | None = None) -> Mapping[str, int]:
        """How many papers of each month of publication there are, or those that a term stands in."""
        return self._months if stem is None else self._stem_months.get(stem, {})

    def key_forms(self) -> Mapping[str, Mapping[str, int]]:
        """The key terms of all papers: by stem, how often each form of it is one."""
        return self._forms

    def with_term(self, term: str) -> Iterable[Entry]:
        """The papers that a term stands in; no particular order."""
        return (self._entries[paper] for paper in self._by_stem.get(terms.stem(term), ()))

    def by_author(self, name: str) -> Iterable[Entry]:
        """The papers of an author; no particular order."""
        return (self._entries[paper] for paper in self._by_author.get(author_key(name), ()))

    def apply(self, sequence: int, kind: str, event: Event[Any]) -> None:
        """Fold in one event of the agent's memory, read at `sequence`, of a kind of note.

        What was folded in before is ignored, and so is what the agent did not write in this form:
        a note by somebody else must not stop it. Of two notes of one paper the first counts.
        """
        if sequence <= self.sequence:
            return
        self.sequence = sequence
        try:
            change = _decode_change(event.data) if event.data is not None else _Change()
            if event.type == NOTED:
                self._noted(kind, change.note or event.id, change.data)
            elif event.type == REVISED and kind == PAPER:
                self._revised(change.note or "", change.data)
            elif event.type == RETRACTED:
                self._retracted(kind, change.note or "")
        except msgspec.DecodeError:
            return

    def _noted(self, kind: str, name: str, data: msgspec.Raw) -> None:
        if kind == FIELD:
            self.has_field_note = True
            return
        note = _decode_note(data)
        if note.paper.id not in self._entries and name not in self._paper_of_note:
            self._paper_of_note[name] = note.paper.id
            self._remember(name, note)

    def _revised(self, name: str, data: msgspec.Raw) -> None:
        known = self._entries.get(self._paper_of_note.get(name, ""))
        if known and (note := _decode_note(data)).paper.id == known.paper.id:
            self._remember(name, note)

    def _retracted(self, kind: str, name: str) -> None:
        self.retracted.add(name)
        entry = self._entries.get(self._paper_of_note.get(name, ""))
        if kind == PAPER and entry:
            del self._entries[entry.paper.id]
            self._unlink(entry)

    @contextmanager
    def supposing(self, name: str, note: PaperNote) -> Iterator[Library]:
        """This library as it will be with a note that is not stored yet; it must not be kept."""
        before = self._entries.get(note.paper.id)
        self._remember(name, note)
        try:
            yield self
        finally:
            self._unlink(self._entries[note.paper.id])
            if before:
                self._link(before)
            else:
                del self._entries[note.paper.id]

    def _remember(self, name: str, note: PaperNote) -> None:
        paper = note.paper
        if known := self._entries.get(paper.id):
            self._unlink(known)
        text = terms.read(paper.title, paper.abstract)
        entry = Entry(
            note=name,
            paper=paper,
            key_terms=tuple(term.term for term in note.key_terms),
            emphasis=emphasis_of(text),
            stems=self._standing(text),
        )
        self._link(entry)

    def _link(self, entry: Entry) -> None:
        self._entries[entry.paper.id] = entry  # a revised paper keeps its place in the order
        for stem in entry.stems:
            self._by_stem.setdefault(stem, set()).add(entry.paper.id)
        for author in entry.paper.authors:
            self._by_author.setdefault(author_key(author), set()).add(entry.paper.id)
        self._count(entry, 1)

    def _standing(self, text: Text) -> frozenset[str]:
        """All words, and the phrases that are more than a chance: here, or in a paper before."""
        return frozenset(
            stem
            for term in text.counts
            for stem in (terms.stem(term),)
            if " " not in term or text.prominent(term) or stem in self._by_stem
        )

    def _unlink(self, entry: Entry) -> None:
        authors = {author_key(name) for name in entry.paper.authors}
        for index, keys in ((self._by_stem, entry.stems), (self._by_author, authors)):
            for key in keys:
                index[key].discard(entry.paper.id)
                if not index[key]:
                    del index[key]
        self._count(entry, -1)

    def _count(self, entry: Entry, by: int) -> None:
        _add(self._months, entry.month, by)
        for stem in entry.stems:
            _add(self._stem_months.setdefault(stem, Counter()), entry.month, by)
        for term in entry.key_terms:
            _add(self._forms.setdefault(terms.stem(term), Counter()), term, by)


def _add(counter: Counter[str], key: str, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]


def author_key(name: str) -> str:
    """One form for an author's name: `Ankit Pensia` and `ANKIT PENSIA` are one."""
    return " ".join(name.casefold().replace(".", " ").split())


def emphasis_of(text: Text) -> dict[str, float]:
    """How much a text dwells on each of its terms that say something alone, by stem."""
    found: dict[str, float] = {}
    for term in text.counts:
        if terms.can_stand(term) and (" " not in term or text.prominent(term)):
            stem = terms.stem(term)
            found[stem] = max(found.get(stem, 0.0), text.emphasis(term))
    return found
