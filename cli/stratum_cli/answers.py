"""SQL answers as rows for the output. Imports Arrow: only for commands that need it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import pyarrow as pa

from stratum_bus.errors import ConnectionLost, QueryError
from stratum_cli.context import Cli
from stratum_cli.failure import NoServer
from stratum_projections.query import Answer, ask, query_file


async def answer(
    cli: Cli,
    sql: str,
    *,
    projector: str,
    wait_for: int | None,
    timeout_seconds: float,
    max_rows: int,
) -> tuple[Answer, str]:
    """The projector's answer, else that of its file where none runs; and which of them it was.

    Raises QueryError, and NoServer or ConnectionLost where there is no file either.
    """
    limits: dict[str, Any] = {"timeout_seconds": timeout_seconds, "max_rows": max_rows}
    try:
        async with cli.bus() as bus:
            found = await ask(bus, sql, projector=projector, wait_for=wait_for, **limits)
            return found, f"projector {projector}"
    except (NoServer, ConnectionLost) as error:
        silent: Exception = error
    except QueryError as error:
        if error.reason != "no_projector":
            raise
        silent = error
    path = Path(cli.config.projector.path)
    if lake := cli.config.lake.path:
        limits["directories"] = [Path(lake)]
    found = await anyio.to_thread.run_sync(lambda: _ask_file(path, sql, silent, **limits))
    if wait_for is not None and found.sequence < wait_for:
        raise QueryError(
            "behind",
            f"no projector runs, and {path} reflects sequence {found.sequence}, not {wait_for}: "
            "start the projector with `stratum up`",
        )
    return found, str(path)


def _ask_file(path: Path, sql: str, silent: Exception, **limits: Any) -> Answer:
    if not path.exists():
        raise silent
    try:
        return query_file(path, sql, **limits)
    except QueryError as error:
        if error.reason == "locked":  # its projector starts just now, or serves another bus
            raise QueryError("no_projector", f"{silent}; {error}") from None
        raise


def objects(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows by the names of their columns; a name that recurs gets a number."""
    names: list[str] = []
    for name in table.column_names:
        n = sum(name == each or each.startswith(f"{name}_") for each in names)
        names.append(f"{name}_{n + 1}" if name in names else name)
    for values in _values(table):
        yield dict(zip(names, values, strict=True))


def as_csv(table: pa.Table) -> str:
    """The rows with a line of names first, as RFC 4180 has it; NULL is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)
    for values in _values(table):
        writer.writerow([_csv_cell(value) for value in values])
    return out.getvalue()


def _values(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    columns = []
    for column in table.columns:
        values = column.to_pylist()
        if pa.types.is_interval(column.type):
            values = [value and value._asdict() for value in values]
        columns.append(values)
    return zip(*columns, strict=True) if columns else iter(())


def _csv_cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    text = msgspec.json.encode(value).decode()
    return text[1:-1] if text.startswith('"') else text
