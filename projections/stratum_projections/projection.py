"""A projection as data: its tables, the events it reads, and SQL over `batch`.

A projection is one file under `views/`:

    PAPERS = Projection(
        name="papers",
        tables={"papers": "seq bigint, id varchar, title varchar"},
        types=("paper.published",),
        statements=("insert into papers select seq, id, data->>'$.title' from batch",),
    )

`batch` holds the next events of the log in order, with the columns of `batch.COLUMNS` and `cause`,
the sequence of the event that `causationid` names (NULL where none before it has that id). An event
that was stored twice (same `id`, two sequences) is in it once, at its first sequence.

Two promises make a rebuild give the same tables as the live run, and the tests hold every shipped
projection to them:

- the log's order alone decides: no clock, no randomness, no other projection's tables;
- where the batches are cut makes no difference, so a statement may not assume that two events come
  in one batch, or in two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import lru_cache, reduce
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_WORD = re.compile(r"[a-z0-9_]+")
RESERVED = {
    *("batch", "wanted", "kept", "parked", "main"),
    *("projections", "checkpoint", "quarantine", "ids", "lake", "all_events"),
}
"""Names of the core: no projection may have one, nor a table of one."""

BESIDE = "+"
"""Ends the name of a projection while it is built beside the one that it is to replace."""


Prepare = Callable[[pa.Table], pa.Table]


class Step(msgspec.Struct, frozen=True):
    """A statement that has nothing to do in a batch without events of these types.

    It is then left out, which saves the milliseconds that planning it takes.
    """

    sql: str
    types: tuple[str, ...] = ()


class Projection(msgspec.Struct, frozen=True, kw_only=True):
    """Tables derived from events. Raises ValueError at once for a name that cannot be a table.

    `tables` maps a table to its column definitions. `types` are the event types it reads and
    `roles` the first tokens of their subjects; empty means all. `statements` are SQL, or a Step;
    they run in order, in one transaction with everything else of the batch. A changed `version` is
    built from the log's beginning.

    Where SQL can't say it, `prepare` gets `batch` as Arrow and returns what the statements see as
    `batch`, with a text column `refused`: a row that has one is quarantined with it as the reason.
    With `repeats`, an event that is stored twice is in `batch` twice. Data over 16 KiB is kept as a
    blob and brought into `batch`; with `blobs` only that of events of these types, and the `data` of
    others that were kept so is NULL.
    """

    name: str
    tables: dict[str, str]
    statements: tuple[str | Step, ...]
    version: int = 1
    types: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    prepare: Prepare | None = None
    repeats: bool = False
    blobs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in (self.name.removesuffix(BESIDE), *self.tables):
            if not _NAME.fullmatch(name) or name in RESERVED:
                raise ValueError(
                    f"projection {self.name!r}: {name!r} cannot be a name: it must be of a-z 0-9 _ "
                    f"and none of {', '.join(sorted(RESERVED))}"
                )

    def steps(self) -> list[Step]:
        """All statements as steps."""
        return [Step(step) if isinstance(step, str) else step for step in self.statements]

    def only_adds(self, step: Step) -> bool:
        """Whether a statement reads nothing but `batch`: it names one table, to insert into it."""
        return _only_adds(step.sql, tuple(self.tables))

    def concerns(self, types: AbstractSet[str], roles: AbstractSet[str]) -> bool:
        """Whether it may read any of some events, by the types and roles that there are."""
        return not (
            (self.types and types.isdisjoint(self.types))
            or (self.roles and roles.isdisjoint(self.roles))
        )

    def beside(self) -> Projection:
        """The same, under the name that it has while it is built beside an older one."""
        return msgspec.structs.replace(self, name=self.name.removesuffix(BESIDE) + BESIDE)

    def ddl(self) -> list[str]:
        """The statements that make its tables."""
        return [f"create table {table} ({columns})" for table, columns in self.tables.items()]

    def reads(self, rows: pa.Table) -> pa.Table:
        """Those of the decoded rows that it reads."""
        return _where(rows, ([] if self.repeats else [rows["first"]]) + self._concern(rows))

    def whole(self, rows: pa.Table) -> pa.Table:
        """Those of the decoded rows whose data it wants, also where that is in a blob."""
        wanted = [] if self.blobs is None else [_among(rows["type"], self.blobs)]
        return _where(rows, self._concern(rows) + wanted)

    def _concern(self, rows: pa.Table) -> list[Any]:
        masks = []
        if self.types:
            masks.append(_among(rows["type"], self.types))
        if self.roles:
            masks.append(_among(rows["role"], self.roles))
        return masks


def _where(rows: pa.Table, masks: list[Any]) -> pa.Table:
    """The rows for which all masks are true; as it is where that is all of them."""
    narrow = [mask for mask in masks if not pc.all(mask, min_count=0).as_py()]
    return rows.filter(reduce(pc.and_, narrow)) if narrow else rows


def _among(column: Any, values: Sequence[str]) -> Any:
    """Whether each value of a text column is one of `values`; NULL is not."""
    return pc.is_in(column.cast(pa.string()), value_set=pa.array(values, pa.string()))


@lru_cache(maxsize=1_024)
def _only_adds(sql: str, tables: tuple[str, ...]) -> bool:
    words = _WORD.findall(sql.lower())
    return words[:1] == ["insert"] and sum(map(words.count, tables)) == 1


def quoted(text: str) -> str:
    """Text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def together(projections: Sequence[Projection]) -> None:
    """Raise ValueError where two projections of one file share a name or a table."""
    owner: dict[str, str] = {}
    for projection in projections:
        for name in {f"the name {projection.name!r}"} | {
            f"the table {t!r}" for t in projection.tables
        }:
            if name in owner:
                raise ValueError(
                    f"projections {owner[name]!r} and {projection.name!r} both have {name}: "
                    "rename one"
                )
            owner[name] = projection.name
