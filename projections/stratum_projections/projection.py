"""A projection as data: its tables, the events it reads, and SQL over `batch`.

A projection is one file under `views/`:

    PAPERS = Projection(
        name="papers",
        tables={"papers": "seq bigint, id varchar, title varchar"},
        types=("paper.published",),
        statements=("insert into papers select seq, id, data->>'$.title' from batch",),
    )

`batch` holds the next events of the log, each once, with the columns of `batch.COLUMNS`. Three
promises make a rebuild give the same tables as the live run, and the tests hold every shipped
projection to them:

- the log's order alone decides: no clock, no randomness, no other projection's tables;
- where the batches are cut makes no difference, so a statement may not assume that two events come
  in one batch, or in two;
- the same event stored twice (same `id`, two sequences) counts as its first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec
import pyarrow as pa

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
RESERVED = {
    *("batch", "incoming", "decoded", "completed", "prepared", "parked"),
    *("projections", "checkpoint", "quarantine", "reflected", "lake", "all_events"),
}
"""Names of the core: no projection may have one, nor a table of one."""


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
    """

    name: str
    tables: dict[str, str]
    statements: tuple[str | Step, ...]
    version: int = 1
    types: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        for name in (self.name, *self.tables):
            if not _NAME.fullmatch(name) or name in RESERVED:
                raise ValueError(
                    f"projection {self.name!r}: {name!r} cannot be a name: it must be of a-z 0-9 _ "
                    f"and none of {', '.join(sorted(RESERVED))}"
                )

    def steps(self) -> list[Step]:
        """All statements as steps."""
        return [Step(step) if isinstance(step, str) else step for step in self.statements]

    def ddl(self) -> list[str]:
        """The statements that make its tables."""
        return [f"create table {table} ({columns})" for table, columns in self.tables.items()]

    def condition(self) -> str:
        """The SQL condition on a decoded event that this projection reads."""
        parts = ["true"]
        for column, values in (("type", self.types), ("role", self.roles)):
            if values:
                parts.append(f"{column} in ({', '.join(map(quoted, values))})")
        return " and ".join(parts)

    def reads(self, types: set[str], roles: set[str]) -> bool:
        """Whether a batch with these types and roles may hold something for it."""
        return (not self.types or not types.isdisjoint(self.types)) and (
            not self.roles or not roles.isdisjoint(self.roles)
        )


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
