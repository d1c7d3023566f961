"""The readers' side of a projector's DuckDB file: `select`, one statement that only reads.

This module and `store.py`, the writer's side, are the only ones that import `duckdb`. A connection
is made here, with settings that lock it in: no files, no extensions, bounded memory and disk.
DuckDB's errors end here as QueryError, of one sentence.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from stratum_bus.errors import QueryError

MEMORY_LIMIT_MB = 256
"""DuckDB's own limit; Python and Arrow come on top of it, with some 100 MB."""

Reader = duckdb.DuckDBPyConnection
"""A connection for `select`."""

_READER_SETTINGS = {
    "TimeZone": "'UTC'",
    "python_enable_replacements": "false",
    "enable_progress_bar": "false",  # `python -m` looks interactive to DuckDB
    "operator_memory_limit": "'128MB'",
}
_READS = {"SELECT", "EXPLAIN"}
_WRITES = re.compile(r"read-only mode|[Cc]an only (?:insert|update|delete|merge)")
_ROWS_AT_ONCE = 65_536
SQL_ERRORS = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)


@contextmanager
def open_read_only(path: Path | str, directories: Sequence[Path] = ()) -> Iterator[Reader]:
    """A connection to the file of a projector that does not run, for `select`.

    Queries can read files in `directories` too.

    Raises QueryError: `no_file`, `locked` where a projector has it, `failed` for no DuckDB file.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise QueryError(
            "no_file", f"there is no projection at {path}: `stratum up` starts the projector"
        )
    try:
        connection = connect(path, directories, read_only=True)
    except duckdb.Error as error:
        if held := re.search(r"lock is held.*\(PID (\d+)\)", str(error)):
            text = f"{path} is in use by process {held[1]}: ask its projector instead"
            raise QueryError("locked", text) from error
        raise QueryError("failed", f"cannot read {path}: {sentence(error)}") from error
    try:
        prepare(connection)
        yield connection
    finally:
        connection.close()


@contextmanager
def select(
    reader: Reader, sql: str, *, timeout_seconds: float, max_rows: int
) -> Iterator[tuple[int, pa.Schema, Iterator[pa.RecordBatch]]]:
    """Run one statement that only reads, in one snapshot: its sequence, columns and rows.

    A reader is for one call. Raises QueryError, also while the rows are read: `not_read_only`, `syntax`, `timeout`,
    `too_many_rows`, `failed`.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        reader.interrupt()

    timer = threading.Timer(timeout_seconds, expire)
    timer.start()
    try:
        _must_only_read(reader, sql)
        # The statement's type is not enough: a SELECT may hold an INSERT in its WITH.
        reader.execute("begin transaction read only").fetchall()
        sequence = reflected(reader)
        rows = reader.sql(sql).to_arrow_reader(_ROWS_AT_ONCE)
        yield sequence, rows.schema, _limited(rows, max_rows, expired)
    except (duckdb.Error, pa.ArrowException, OSError, _Expired) as error:
        # While rows are read, Arrow is who raises DuckDB's errors.
        if expired.is_set():
            text = f"the query took more than {timeout_seconds:g} s: narrow it, or allow more"
            raise QueryError("timeout", text) from error
        raise _query_error(error) from error
    finally:
        timer.cancel()


def _must_only_read(reader: Reader, sql: str) -> None:
    statements = reader.extract_statements(sql)
    kinds = [statement.type.name for statement in statements]
    if len(kinds) != 1:
        raise QueryError("not_read_only", f"send one statement, not {len(kinds)}")
    if kinds[0] not in _READS:
        raise QueryError(
            "not_read_only", f"only SELECT and EXPLAIN are answered, this is {kinds[0]}"
        )


def reflected(reader: Reader) -> int:
    """The last sequence of the log that all tables reflect."""
    rows = reader.execute("select sequence from reflected").fetchall()
    return int(rows[0][0]) if rows else 0


class _Expired(Exception):
    """The time ran out between two reads, where nothing is interrupted."""


def _limited(
    rows: pa.RecordBatchReader, max_rows: int, expired: threading.Event
) -> Iterator[pa.RecordBatch]:
    count = 0
    for batch in rows:
        if expired.is_set():
            raise _Expired
        count += batch.num_rows
        if count > max_rows:
            text = f"the answer has more than {max_rows:,} rows: add a LIMIT, or allow more"
            raise QueryError("too_many_rows", text)
        yield batch


def _query_error(error: Exception) -> QueryError:
    text = sentence(error)
    if isinstance(error, duckdb.PermissionException) or _WRITES.search(text):
        return QueryError("not_read_only", f"only reading the projections is allowed: {text}")
    return QueryError("syntax" if isinstance(error, SQL_ERRORS) else "failed", text)


def connect(
    path: Path,
    directories: Sequence[Path],
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    *,
    read_only: bool = False,
) -> duckdb.DuckDBPyConnection:
    """Open the file, locked in: its SQL can read files in `directories` and nothing else."""
    config = _config(path, memory_limit_mb)
    if not directories:
        return duckdb.connect(str(path), read_only=read_only, config=config)
    # Once files are forbidden and settings locked, no folder can be excepted.
    last = {name: config.pop(name) for name in ("enable_external_access", "lock_configuration")}
    connection = duckdb.connect(str(path), read_only=read_only, config=config)
    allowed = ", ".join("'" + str(each).replace("'", "''") + "'" for each in directories)
    for name, value in {"allowed_directories": f"[{allowed}]", **last}.items():
        connection.execute(f"set {name} = {value}")
    return connection


def _config(path: Path, memory_limit_mb: int) -> dict[str, Any]:
    """Settings of the whole instance, locked: no files, no extensions, bounded memory and disk."""
    return {
        "allowed_configs": [*_READER_SETTINGS, "search_path"],
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "checkpoint_threshold": "64MB",
        "enable_external_access": "false",
        "lock_configuration": "true",
        "max_temp_directory_size": "4GB",
        "memory_limit": f"{memory_limit_mb}MB",
        "temp_directory": f"{path}.tmp",
        "threads": min(4, os.cpu_count() or 1),
    }


def prepare(connection: Reader, *, writer: bool = False) -> None:
    """The settings that a connection does not inherit."""
    for name, value in _READER_SETTINGS.items():
        if not (writer and name == "operator_memory_limit"):
            connection.execute(f"set {name} = {value}")


def sentence(error: Exception) -> str:
    """DuckDB's message on one line, without its kind and the quoted statement."""
    text = str(error).split("\n\nLINE ")[0].strip()
    text = re.sub(r"^[A-Z][A-Za-z ]{2,40} Error: ", "", text)
    return re.sub(r"\s+", " ", text).replace('""', '"')[:500]
