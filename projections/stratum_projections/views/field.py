"""The field as a research agent has noted it: its key terms, in which papers, and how they move.

It reads the notes of kind `paper` (of each its paper and its key terms, as they are after its last
revision, until it is retracted) and of kind `field` (the agent's own picture, redrawn with every
paper). Any agent that notes such data has a field.

`field`, one row a term of an agent's field:
  agent, term      whose field, and the term
  papers           papers that have it as a key term
  relevance        of the most relevant of these, 0 to 1
  first_published, last_published
                   when the oldest and the newest of them appeared
  first_noted, last_noted
                   when the first and the last of them were noted
  trend            rising or falling, in the agent's last picture; NULL where it says neither
  change           by how many standard deviations its share of the papers moved there
  recent, before   papers that it stands in, in the picture's recent months and in those before
  standing         all papers that it stands in, as a key term or not
The last four are NULL for a term that the picture does not list. What rises and what falls:
`select trend, term, before, recent, change from field where trend is not null order by change desc`.

`field_terms`, one row a key term of a paper, for series by any span of time:
  agent, term, weight
                   as above; `weight` is relative to the paper's weightiest term, which has 1
  paper, title, relevance, published, noted
                   the paper, how relevant it is, when it appeared and when it was first noted
  note, note_seq   the note of the paper, and the event that made it
`select date_trunc('month', published) as month, count(*) from field_terms where term = 'retrieval'
group by month order by month`.

`field_notes` are the notes that were read so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from stratum_bus.memory import NOTED, RETRACTED, REVISED
from stratum_projections.projection import Projection
from stratum_projections.views.columns import lists

_PAPER, _FIELD = "paper", "field"


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Term(msgspec.Struct):
    term: str
    weight: float = 0.0


class _Paper(msgspec.Struct):
    id: str
    published: datetime
    title: str = ""


class _PaperNote(msgspec.Struct):
    paper: _Paper
    key_terms: list[_Term]
    relevance: float = 0.0


class _Trend(msgspec.Struct):
    term: str
    papers: _Count = 0
    recent: _Count = 0
    before: _Count = 0
    change: float = 0.0


class _Picture(msgspec.Struct):
    terms: list[_Trend]
    rising: list[_Trend] = []
    falling: list[_Trend] = []


class _Change(msgspec.Struct):
    """What is read of any memory event."""

    note: str | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


_change_of = msgspec.json.Decoder(_Change).decode
_note_of = msgspec.json.Decoder(_PaperNote).decode
_picture_of = msgspec.json.Decoder(_Picture).decode

_READ = ("seq", "time", "id", "type", "agent", "kind", "data")
_TIME = pa.timestamp("us", "UTC")
_COLUMNS = {
    **dict.fromkeys(("what", "agent", "note", "paper", "title", "term", "trend"), pa.string()),
    **dict.fromkeys(("seq", "note_seq", "standing", "recent", "before"), pa.int64()),
    **dict.fromkeys(("relevance", "weight", "change"), pa.float64()),
    **dict.fromkeys(("noted", "published"), _TIME),
    **dict.fromkeys(("known", "gone"), pa.bool_()),
    "refused": pa.string(),
}
"""`what` a row is: note (it was made), version (of a note) with its terms, picture with its trends.

A version counts where the note was `known` before the batch, or where it was not.
"""

Row = dict[str, Any]


class _Note:
    """A note in the batch: what it says last, if it was known before it, and if it was not."""

    def __init__(self) -> None:
        self.made: Row | None = None
        self.versions: dict[bool, tuple[int, _PaperNote | None]] = {}

    def add(self, seq: int, type: str, time: datetime, content: _PaperNote | None) -> None:
        """Take in the next event; without content it is retracted, and nothing counts any more."""
        if type == NOTED:
            if self.made is None:
                self.made = {"note_seq": seq, "noted": time}
                self.versions[False] = seq, content
            return
        for known in (True, False) if self.made else (True,):
            if self.versions.get(known, (0, content))[1] or known not in self.versions:
                self.versions[known] = seq, content


def prepare(batch: pa.Table) -> pa.Table:
    """What the notes say, as rows. Notes of another form are passed over."""
    notes: dict[tuple[str, str], _Note] = {}
    pictures: dict[str, tuple[int, _Picture]] = {}
    kinds = batch["kind"].cast(pa.string())
    batch = batch.filter(pc.is_in(kinds, value_set=pa.array([_PAPER, _FIELD], pa.string())))
    events: Iterable[tuple[Any, ...]] = zip(*lists(batch, _READ), strict=True)
    for seq, time, id, type, agent, kind, data in events:
        if data is None:
            continue
        try:
            change = _change_of(data)
            if kind == _PAPER:
                content = _note_of(change.data) if type != RETRACTED else None
                key = agent, change.note or id
                notes.setdefault(key, _Note()).add(seq, type, time, content)
            else:
                picture = _picture_of(change.data) if type != RETRACTED else _Picture([])
                pictures[agent] = seq, picture
        except msgspec.DecodeError:
            continue
    rows = [row for key, note in notes.items() for row in _rows_of(*key, note)]
    for agent, (seq, picture) in pictures.items():
        rows += _rows_of_picture(agent, seq, picture)
    return pa.table({n: pa.array([row.get(n) for row in rows], k) for n, k in _COLUMNS.items()})


def _rows_of(agent: str, name: str, note: _Note) -> list[Row]:
    made = {"agent": agent, "note": name, **(note.made or {})}
    rows: list[Row] = [{**made, "what": "note"}] if note.made else []
    for known, (seq, content) in note.versions.items():
        row = {**made, "what": "version", "known": known, "seq": seq, "gone": content is None}
        rows.append(row)
        if content is not None:
            paper = content.paper
            said = {
                "what": "term", "paper": paper.id, "title": paper.title,
                "published": paper.published, "relevance": content.relevance,
            }  # fmt: skip
            terms = {each.term: each.weight for each in reversed(content.key_terms)}
            rows += [{**row, **said, "term": t, "weight": w} for t, w in terms.items()]
    return rows


def _rows_of_picture(agent: str, seq: int, picture: _Picture) -> list[Row]:
    found: dict[str, Row] = {}
    for trend, listed in (
        (None, picture.terms), ("rising", picture.rising), ("falling", picture.falling),
    ):  # fmt: skip
        for each in listed:
            found[each.term] = {
                "what": "trend", "agent": agent, "seq": seq, "term": each.term, "trend": trend,
                "standing": each.papers, "recent": each.recent, "before": each.before,
                "change": each.change,
            }  # fmt: skip
    return [{"what": "picture", "agent": agent, "seq": seq}, *found.values()]


# Versions that count, with their terms; `place` is the event that made the note.
_VERSIONS = """(
    select b.*, f.seq as place, f.noted as first_noted
    from batch b join field_notes f on f.agent = b.agent and f.note = b.note
    where b.what in ('version', 'term') and case
        when b.known then f.seq is distinct from b.note_seq and not f.retracted
        else f.seq = b.note_seq end
)"""
_PLACES = f"(select distinct place from {_VERSIONS} where what = 'version')"
_OF_PAPERS = (
    "papers",
    "relevance",
    "first_published",
    "last_published",
    "first_noted",
    "last_noted",
)
_OF_PICTURES = ("standing", "recent", "before", "change", "trend")


def _set(columns: tuple[str, ...], value: str) -> str:
    return ", ".join(f"{column} = {value.format(column)}" for column in columns)


FIELD = Projection(
    name="field",
    roles=("memory",),
    types=(NOTED, REVISED, RETRACTED),
    prepare=prepare,
    tables={
        "field": """
            agent varchar, term varchar, papers bigint, relevance double,
            first_published timestamptz, last_published timestamptz, first_noted timestamptz,
            last_noted timestamptz, trend varchar, change double, recent bigint, before bigint,
            standing bigint
        """,
        "field_terms": """
            agent varchar, term varchar, weight double, paper varchar, title varchar,
            relevance double, published timestamptz, noted timestamptz, note varchar,
            note_seq bigint, stands boolean
        """,
        "field_notes": """
            agent varchar, note varchar, seq bigint, noted timestamptz, retracted boolean
        """,
    },
    statements=(
        """
        insert into field_notes by name
        select b.agent, b.note, b.note_seq as seq, b.noted, false as retracted
        from batch b anti join field_notes f on f.agent = b.agent and f.note = b.note
        where b.what = 'note'
        """,
        f"""
        update field_terms set stands = false
        from {_PLACES} p where field_terms.note_seq = p.place
        """,
        f"""
        insert into field_terms by name
        select agent, term, weight, paper, title, relevance, published, first_noted as noted,
            note, place as note_seq, true as stands
        from {_VERSIONS} where what = 'term'
        """,
        f"""
        merge into field f using (
            select agent, term, count(*) filter (where stands) as papers,
                max(relevance) filter (where stands) as relevance,
                min(published) filter (where stands) as first_published,
                max(published) filter (where stands) as last_published,
                min(noted) filter (where stands) as first_noted,
                max(noted) filter (where stands) as last_noted
            from field_terms semi join (
                select t.agent, t.term from {_PLACES} p join field_terms t on t.note_seq = p.place
            ) using (agent, term)
            group by agent, term
        ) t on f.agent = t.agent and f.term = t.term
        when matched then update set {_set(_OF_PAPERS, "t.{}")}
        when not matched then insert by name
        """,
        f"""
        delete from field_terms t using {_PLACES} p where t.note_seq = p.place and not t.stands
        """,
        f"""
        update field_notes set retracted = true
        from (select place from {_VERSIONS} where what = 'version' and gone) p
        where field_notes.seq = p.place
        """,
        f"""
        update field set {_set(_OF_PICTURES, "null")}
        where standing is not null and agent in (select agent from batch where what = 'picture')
        """,
        f"""
        merge into field f using (
            select agent, term, 0 as papers, {", ".join(_OF_PICTURES)}
            from batch where what = 'trend'
        ) t on f.agent = t.agent and f.term = t.term
        when matched then update set {_set(_OF_PICTURES, "t.{}")}
        when not matched then insert by name
        """,
        "delete from field where papers = 0 and standing is null",
    ),
)
