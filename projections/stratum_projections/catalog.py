"""What a file holds: its projections with their versions, and where the tables of each are.

The tables of a projection live in a schema of its own, `<name>_<n>`; `main` has a view of the name
of each. So a projection can be built a second time beside the one that is asked, in the next
schema, and one transaction turns the views to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from stratum_bus.errors import ProjectorError
from stratum_projections import ids
from stratum_projections.checkpoint import CORE, STREAM, Checkpoint
from stratum_projections.projection import BESIDE, Projection, quoted, together
from stratum_projections.store import Store

LAYOUT = 2
"""The version of the core's own tables."""

_TABLES = (
    """create table projections(
           name varchar primary key, version bigint, tables varchar[], home varchar,
           paused boolean)""",
    """create table checkpoint(
           projection varchar, stream varchar, epoch bigint, sequence bigint, created varchar,
           active boolean, primary key (projection, stream))""",
    """create table quarantine(
           stream varchar, seq bigint, subject varchar, projection varchar, reason varchar,
           detail varchar, payload blob, time timestamptz)""",
    ids.TABLE,
    f"insert into projections values ({quoted(CORE)}, {LAYOUT}, [], 'main', false)",
)


def install(
    store: Store,
    projections: Sequence[Projection],
    stream: str = STREAM,
    *,
    beside: bool = False,
) -> tuple[Checkpoint, list[str]]:
    """Make or renew the tables and take the file over; returns also what was (re)started, by name.

    A projection that is new, or whose version changed, begins with empty tables at sequence 0;
    with `beside` one that changed does so beside its older tables, under the name of
    `Projection.beside`. One that is no longer asked for keeps its tables and its position, and goes
    on when it is again.
    """
    together(projections)
    with store.transaction():
        known = _known(store)
        fresh: list[str] = []
        for projection in projections:
            version, other = known.get(projection.name), projection.beside()
            if known.get(other.name, projection.version) != projection.version:
                _forget(store, other.name)
                del known[other.name]
            if version is None or (version != projection.version and not beside):
                begin(store, projection)
                fresh.append(projection.name)
            elif version != projection.version and other.name not in known:
                begin(store, other)
                fresh.append(projection.name)
        return _take_over(store, stream, projections), fresh


def begin(store: Store, projection: Projection) -> None:
    """Give a projection empty tables, and let it begin at the first event. In a transaction."""
    _forget(store, projection.name)
    home = _next_home(store, projection.name.removesuffix(BESIDE))
    store.execute(f"create schema {home}")
    with store.within(home):
        for statement in projection.ddl():
            store.execute(statement)
    tables = list(projection.tables)
    store.execute(
        "insert into projections values (?, ?, ?, ?, false)",
        [projection.name, projection.version, tables, home],
    )
    if not projection.name.endswith(BESIDE):
        _show(store, home, tables)


def enrol(store: Store, checkpoint: Checkpoint, name: str) -> None:
    """Let a projection that `begin` made after `install` have its position. In a transaction."""
    [(home,)] = store.execute("select home from projections where name = ?", [name])
    store.execute(
        "insert into checkpoint values (?, ?, ?, 0, ?, false)",
        [name, checkpoint.stream, checkpoint.epoch, checkpoint.created],
    )
    checkpoint.positions[name] = 0
    checkpoint.homes[name] = home


def adopt(store: Store, checkpoint: Checkpoint, name: str) -> None:
    """Let a projection that has caught up take part, in place of the one beside which it was built.

    One transaction. The caller sees to it that nothing is folded meanwhile.
    """
    final = name.removesuffix(BESIDE)
    with store.transaction():
        if name != final:
            _forget(store, final)
            for place in ("projections set name", "checkpoint set projection"):
                column = place.rpartition(" ")[2]
                store.execute(f"update {place} = ? where {column} = ?", [final, name])
            store.execute(
                "update quarantine set projection = ? where projection = ?", [final, name]
            )
            [(home, tables)] = store.execute(
                "select home, tables from projections where name = ?", [final]
            )
            _show(store, home, tables)
        store.execute("update checkpoint set active = true where projection = ?", [final])
    checkpoint.positions[final] = checkpoint.positions.pop(name)
    checkpoint.homes[final] = checkpoint.homes.pop(name)
    checkpoint.active.add(final)


def set_paused(store: Store, checkpoint: Checkpoint, name: str, *, paused: bool) -> None:
    """Keep a projection from being folded, also over a restart; or let it be on its way again."""
    with store.transaction():
        store.execute("update projections set paused = ? where name = ?", [paused, name])
        checkpoint.leave(name)


def paused(store: Store) -> set[str]:
    """The names of the projections that are paused."""
    return {name for (name,) in store.execute("select name from projections where paused")}


def _known(store: Store) -> dict[str, int]:
    """The projections of the file and their versions; an empty file is made ready."""
    tables = {name for (name,) in store.execute("select table_name from duckdb_tables()")}
    if not tables:
        for statement in _TABLES:
            store.execute(statement)
    found: dict[str, int] = {}
    if "projections" in tables or not tables:
        found = dict(store.execute("select name, version from projections"))
    if found.pop(CORE, None) != LAYOUT:
        raise ProjectorError(
            "file",
            f"{store.path} was made by another version of Stratum: "
            "remove it, and it is built anew from the log",
        )
    return found


def _forget(store: Store, name: str) -> None:
    """Drop what a projection made, and what is known of it."""
    for home, tables in store.execute(
        "select home, tables from projections where name = ?", [name]
    ):
        if not name.endswith(BESIDE):
            for table in tables:
                store.execute(f"drop view if exists main.{table}")
        store.execute(f"drop schema if exists {home} cascade")
    for place in (
        "projections where name",
        "checkpoint where projection",
        "quarantine where projection",
    ):
        store.execute(f"delete from {place} = ?", [name])


def _show(store: Store, home: str, tables: Sequence[str]) -> None:
    for table in tables:
        store.execute(f"create or replace view main.{table} as from {home}.{table}")


def _next_home(store: Store, name: str) -> str:
    homes = store.execute("select schema_name from duckdb_schemas() where not internal")
    numbers = [
        int(home.removeprefix(f"{name}_"))
        for (home,) in homes
        if home.startswith(f"{name}_") and home.removeprefix(f"{name}_").isdecimal()
    ]
    return f"{name}_{max(numbers, default=0) + 1}"


def _take_over(store: Store, stream: str, projections: Sequence[Projection]) -> Checkpoint:
    [(epoch,)] = store.execute("select coalesce(max(epoch), 0) + 1 from checkpoint")
    [(created,)] = store.execute(
        "select coalesce(max(created), '') from checkpoint where stream = ?", [stream]
    )
    found = store.execute("select name, home, version from projections")
    homes = {name: home for name, home, _ in found}
    versions = {name: version for name, _, version in found}
    for name in homes:
        store.execute(
            "insert into checkpoint values (?, ?, ?, 0, ?, false) on conflict do nothing",
            [name, stream, epoch, created],
        )
    ours = {p.name for p in projections if versions[p.name] == p.version} - paused(store)
    active = {CORE, *ours}
    store.execute(
        "update checkpoint set epoch = ?, active = list_contains(?, projection)",
        [epoch, sorted(active)],
    )
    positions = store.execute(
        "select projection, sequence from checkpoint where stream = ?", [stream]
    )
    return Checkpoint(store, stream, epoch, created, dict(positions), homes, active)
