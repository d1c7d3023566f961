"""What `stratum projection` shows and asks for: of the running projector, else of its file."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import msgspec

from stratum_bus.bus import Bus
from stratum_bus.errors import ConnectionLost, NotFound, QueryError
from stratum_cli.context import Cli
from stratum_cli.failure import NoServer
from stratum_projections import manage
from stratum_projections.checkpoint import CORE, STREAM
from stratum_projections.projection import BESIDE, quoted
from stratum_projections.query import ask, query_file

AT_REST = "not running"
"""The status of a projection of a file that no projector has."""

T = TypeVar("T")
Row = dict[str, Any]

_OF_FILE = f"""
    select p.name, p.version, p.tables, c.sequence, coalesce(q.events, 0) as quarantined,
        case when p.paused then 'paused' else {quoted(AT_REST)} end as status
    from projections p
    join checkpoint c on c.projection = p.name and c.stream = {quoted(STREAM)}
    left join (select projection, count(*) as events from quarantine group by projection) q
        on q.projection = p.name
    where p.name <> {quoted(CORE)} and not ends_with(p.name, {quoted(BESIDE)})
"""
_COLUMNS = """
    select table_name, list(column_name || ' ' || lower(data_type) order by ordinal_position)
    from information_schema.columns
    where table_schema = 'main' and list_contains([{names}], table_name)
    group by table_name order by table_name
"""


async def rows(cli: Cli, projector: str) -> list[Row]:
    """One for each projection, by name."""
    states = await by_projector_or_file(cli, lambda bus: _running(bus, projector), _of_file)
    if any("lag_events" not in row for row in states):
        cli.out.talk(f"no projector runs; this is what {cli.config.projector.path} holds")
    return sorted(states, key=lambda row: str(row["name"]))


async def by_projector_or_file(
    cli: Cli, ask: Callable[[Bus], Awaitable[T]], read: Callable[[Path], T]
) -> T:
    """What the projector answers; what its file says where none runs.

    `read` is blocking. Raises what the projector's absence is, where there is no file either.
    """
    try:
        async with cli.bus() as bus:
            return await ask(bus)
    except (NoServer, ConnectionLost) as error:
        silent: Exception = error
    except QueryError as error:
        if error.reason != "no_projector":
            raise
        silent = error
    path = Path(cli.config.projector.path)
    found = await anyio.to_thread.run_sync(_read, read, path, silent)
    return found


def _read(read: Callable[[Path], T], path: Path, silent: Exception) -> T:
    if not path.exists():
        raise silent
    try:
        return read(path)
    except QueryError as error:
        if error.reason == "locked":  # its projector starts just now, or serves another bus
            raise QueryError("no_projector", f"{silent}; {error}") from None
        raise


def known(states: Iterable[Any], names: Sequence[str]) -> None:
    """Raise NotFound for the first name that is none of these projections'."""
    there = sorted(msgspec.to_builtins(state)["name"] for state in states)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            raise NotFound("projection", f"{name}: {meant}there are {', '.join(there)}")


async def columns(cli: Cli, projector: str, tables: Sequence[str]) -> dict[str, list[str]]:
    """The columns of tables, each with its type."""
    sql = _COLUMNS.format(names=", ".join(f"'{table}'" for table in tables))
    answer = await by_projector_or_file(
        cli, lambda bus: ask(bus, sql, projector=projector), lambda path: query_file(path, sql)
    )
    return dict(zip(*(column.to_pylist() for column in answer.table.columns), strict=True))


def status(row: Mapping[str, Any]) -> str:
    """Its status, with how far it is while it is built anew."""
    if not (building := row.get("building")):
        return str(row["status"])
    percent = 100 * building["sequence"] // max(1, building["end"])
    return f"building {percent} %"


def brief(row: Mapping[str, Any]) -> Row:
    """A projection as a person wants it."""
    shown = {**row, "status": status(row)}
    shown.pop("building", None)
    if "seconds" in shown:
        shown["seconds"] = round(shown["seconds"], 3)
    return shown


async def _running(bus: Bus, projector: str) -> list[Row]:
    return [msgspec.to_builtins(state) for state in await manage.states(bus, projector)]


def _of_file(path: Path) -> list[Row]:
    return query_file(path, _OF_FILE).table.to_pylist()
