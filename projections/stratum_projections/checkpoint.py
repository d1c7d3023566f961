"""How far each projection has read: one row each and stream, moved in the same transaction as rows.

A row carries an epoch. Opening a file raises the epoch of all its rows, and a row moves only from
the epoch and sequence that its owner knows: a projector that was taken over, or that applies a
batch twice, moves nothing and is told so.
"""

from __future__ import annotations

from collections.abc import Sequence

from stratum_bus.errors import ProjectorError
from stratum_projections.projection import Projection, quoted, together
from stratum_projections.store import Store

CORE = "quarantine"
"""The name under which the core itself keeps its position: what it quarantines, it does once."""

STREAM = "LOG"

_LAYOUT = 1
"""The version of the core's own tables."""

_TABLES = (
    "create table projections(name varchar primary key, version bigint, tables varchar[])",
    """create table checkpoint(
           projection varchar, stream varchar, epoch bigint, sequence bigint, created varchar,
           active boolean, primary key (projection, stream))""",
    """create table quarantine(
           stream varchar, seq bigint, subject varchar, projection varchar, reason varchar,
           detail varchar, payload blob, time timestamptz)""",
    f"""create view reflected as
        select coalesce(min(sequence), 0) as sequence
        from checkpoint where active and stream = {quoted(STREAM)}""",
    f"insert into projections values ({quoted(CORE)}, {_LAYOUT}, [])",
)


class Checkpoint:
    """The positions in one stream, as this projector last committed them."""

    def __init__(
        self, store: Store, stream: str, epoch: int, created: str, positions: dict[str, int]
    ) -> None:
        self._store = store
        self._stream = stream
        self.epoch = epoch
        self.created = created
        self.positions = positions

    @property
    def position(self) -> int:
        """The sequence that all projections have read."""
        return min(self.positions.values())

    def bind(self, created: str) -> None:
        """Note which stream of this name it is, by when the server says it was created."""
        self._store.execute(
            "update checkpoint set created = ? where stream = ?", [created, self._stream]
        )
        self.created = created

    def advance(self, names: Sequence[str], sequence: int) -> None:
        """Move the projections to `sequence`, inside the caller's transaction.

        Raises ProjectorError `fenced`. `moved` is to be called when it is committed.
        """
        for position in {self.positions[name] for name in names}:
            expected = [name for name in names if self.positions[name] == position]
            found = self._store.execute(
                """update checkpoint set sequence = ? where stream = ? and epoch = ?
                   and sequence = ? and list_contains(?, projection) returning projection""",
                [sequence, self._stream, self.epoch, position, expected],
            )
            if len(found) != len(expected):
                raise ProjectorError(
                    "fenced", f"another projector has taken over {self._store.path}: stopping"
                )

    def moved(self, names: Sequence[str], sequence: int) -> None:
        """The advance is committed."""
        self.positions |= dict.fromkeys(names, sequence)


def install(
    store: Store, projections: Sequence[Projection], stream: str = STREAM
) -> tuple[Checkpoint, list[str]]:
    """Make or renew the tables and take the file over; returns also what was (re)started, by name.

    A projection that is new, or whose version changed, begins with empty tables at sequence 0. One
    that is no longer asked for keeps its tables and its position, and goes on when it is again.
    """
    together(projections)
    with store.transaction():
        versions = _versions(store)
        fresh = [p for p in projections if versions.get(p.name) != p.version]
        for projection in fresh:
            _restart(store, projection)
        names = [CORE, *(projection.name for projection in projections)]
        return _take_over(store, stream, names), [projection.name for projection in fresh]


def _versions(store: Store) -> dict[str, int]:
    """The projections of the file and their versions; an empty file is made ready."""
    tables = {name for (name,) in store.execute("select table_name from duckdb_tables()")}
    if not tables:
        for statement in _TABLES:
            store.execute(statement)
    found: dict[str, int] = {}
    if "projections" in tables or not tables:
        found = dict(store.execute("select name, version from projections"))
    if found.pop(CORE, None) != _LAYOUT:
        raise ProjectorError(
            "file",
            f"{store.path} was made by another version of Stratum: "
            "remove it, and it is built anew from the log",
        )
    return found


def _restart(store: Store, projection: Projection) -> None:
    """Drop what an earlier version made, and begin at the first event."""
    name = projection.name
    for (tables,) in store.execute("select tables from projections where name = ?", [name]):
        for table in tables:
            store.execute(f"drop table if exists {table}")
    for place in (
        "projections where name",
        "checkpoint where projection",
        "quarantine where projection",
    ):
        store.execute(f"delete from {place} = ?", [name])
    for statement in projection.ddl():
        store.execute(statement)
    store.execute(
        "insert into projections values (?, ?, ?)",
        [name, projection.version, list(projection.tables)],
    )


def _take_over(store: Store, stream: str, names: Sequence[str]) -> Checkpoint:
    [(epoch,)] = store.execute("select coalesce(max(epoch), 0) + 1 from checkpoint")
    [(created,)] = store.execute(
        "select coalesce(max(created), '') from checkpoint where stream = ?", [stream]
    )
    for name in names:
        store.execute(
            "insert into checkpoint values (?, ?, ?, 0, ?, true) on conflict do nothing",
            [name, stream, epoch, created],
        )
    store.execute(
        "update checkpoint set epoch = ?, active = list_contains(?, projection)", [epoch, names]
    )
    positions = store.execute(
        "select projection, sequence from checkpoint where stream = ? and active", [stream]
    )
    return Checkpoint(store, stream, epoch, created, dict(positions))
