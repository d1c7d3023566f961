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

MEMORY_LIMIT_MB = 144
"""DuckDB's own limit; Python, Arrow and the batches on their way come on top, with some 200 MB."""

SQL_CHARACTERS = 65_536
"""Longer statements take seconds and gigabytes to be read, which cannot be interrupted."""

AGAIN_SECONDS = 0.2
"""How often a query that is to end is interrupted."""

JSON_FIELD: dict[bytes | str, bytes | str] = {b"stratum": b"json"}
"""The metadata of a column that is text in Arrow and JSON in DuckDB."""

Reader = duckdb.DuckDBPyConnection
"""A connection for `select`."""

Found = tuple[int, pa.Schema, Iterator[pa.RecordBatch]]
"""What a query finds: the sequence that it reflects, columns and rows."""

_READER_SETTINGS = {
    "TimeZone": "'UTC'",
    "python_enable_replacements": "false",
    "enable_progress_bar": "false",  # `python -m` looks interactive to DuckDB
    "operator_memory_limit": "'100MB'",
}
_READS = {"SELECT", "EXPLAIN"}
_WRITES = re.compile(r"read-only mode|base table|is not an table")
_ROWS_AT_ONCE = 8_192
_ACTS = re.compile(
    # Functions that a SELECT may call and that do something, or run SQL that was not looked at;
    # before the bracket may stand what separates words, and comments.
    r"\b(force_checkpoint|checkpoint|truncate_duckdb_logs|write_log|(?:en|dis)able_(?:logging|profiling)"
    r"|query|query_table|setseed)"
    r'"?(?:[^\w(),;"\'/-]|/\*.*?\*/|--[^\n]*\n)*\(',
    re.IGNORECASE | re.DOTALL,
)
_WORD = re.compile(r"[a-z0-9_]+")
_REFLECTED = "select sequence, active from main.checkpoint where stream = 'LOG'"
_BEHIND = """
    select min(sequence) from main.checkpoint join main.projections on projection = name
    where stream = 'LOG' and not active and not ends_with(name, '+') and list_has_any(tables, ?)
"""
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


def reader_beside(connection: duckdb.DuckDBPyConnection) -> Reader:
    """A reader of a file that is open here. Raises QueryError `failed`."""
    reader = connection.cursor()
    try:
        prepare(reader)
    except duckdb.Error as error:
        reader.close()
        raise _query_error(error) from error
    return reader


class Stop:
    """Ends a query of another thread. What it is doing may take a while to be interruptible, or may
    not have begun: whoever has said `set` says `again` until the query has ended.
    """

    def __init__(self) -> None:
        self.error: QueryError | None = None
        self._reader: Reader | None = None
        self._lock = threading.Lock()

    def set(self, error: QueryError) -> None:
        """End the query with this error, if it has none yet."""
        self.error = self.error or error
        self.again()

    def again(self) -> None:
        with self._lock:  # the reader may have another query as soon as this one has ended
            if self._reader is not None:
                self._reader.interrupt()

    def check(self) -> None:
        """Raise the error, anew each time: one that is kept would keep what its frames hold."""
        if self.error is not None:
            raise QueryError(self.error.reason, str(self.error))

    @contextmanager
    def over(self, reader: Reader) -> Iterator[None]:
        self._reader = reader
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._reader = None


@contextmanager
def stopping_after(seconds: float) -> Iterator[Stop]:
    """A Stop that is set after so many seconds."""
    stop, ended = Stop(), threading.Event()

    def watch() -> None:
        if not ended.wait(seconds):
            stop.set(took_too_long(seconds))
        while not ended.wait(AGAIN_SECONDS):
            stop.again()

    thread = threading.Thread(target=watch, name="query-limit", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        ended.set()
        thread.join()


def took_too_long(seconds: float) -> QueryError:
    text = f"the query took more than {seconds:g} s: narrow it, or allow more"
    return QueryError("timeout", text)


@contextmanager
def select(reader: Reader, sql: str, *, timeout_seconds: float, max_rows: int) -> Iterator[Found]:
    """As `select_until`, stopped after a time: QueryError `timeout`."""
    with (
        stopping_after(timeout_seconds) as stop,
        select_until(reader, sql, stop=stop, max_rows=max_rows) as found,
    ):
        yield found


@contextmanager
def select_until(reader: Reader, sql: str, *, stop: Stop, max_rows: int) -> Iterator[Found]:
    """Run one statement that only reads, in one snapshot: its sequence, columns and rows.

    Columns of JSON are text, and say so in their field's metadata (JSON_FIELD). A reader is for one
    query, or see `renew`. Raises QueryError, also while the rows are read: `not_read_only`,
    `syntax`, `too_many_rows`, `failed`, and the error of `stop`.
    """
    try:
        with stop.over(reader):
            statement = _must_only_read(reader, sql)
            # The statement's type is not enough: a SELECT may hold an INSERT in its WITH.
            reader.execute("begin transaction read only").fetchall()
            sequence = reflected(reader, sql)
            stop.check()
            relation = reader.sql(statement)
            types = [str(each) for each in relation.types]
            rows = relation.to_arrow_reader(_ROWS_AT_ONCE)
            schema = _told(rows.schema, types)
            yield sequence, schema, _limited(rows, schema, max_rows, stop)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        # While rows are read, Arrow is who raises DuckDB's errors.
        stop.check()
        raise _query_error(error) from error


def renew(reader: Reader) -> None:
    """Make a reader whose rows were all read ready for another query. Raises QueryError `failed`."""
    try:
        reader.execute("rollback").fetchall()
    except duckdb.Error as error:
        raise _query_error(error) from error


def _must_only_read(reader: Reader, sql: str) -> duckdb.Statement:
    if len(sql) > SQL_CHARACTERS:
        text = f"the query has {len(sql):,} characters, at most {SQL_CHARACTERS:,} are read"
        raise QueryError("syntax", text)
    statements = reader.extract_statements(sql)
    if len(statements) != 1:
        raise QueryError("not_read_only", f"send one statement, not {len(statements)}")
    try:
        kind = statements[0].type.name
    except ValueError:  # the library has no name for the newest ones
        kind = "another kind of statement"
    if kind not in _READS:
        raise QueryError("not_read_only", f"only SELECT and EXPLAIN are answered, this is {kind}")
    if found := _ACTS.search(sql):
        text = f"only reading is allowed, and {found[1].lower()}() is a function that does more"
        raise QueryError("not_read_only", text)
    return statements[0]


def reflected(reader: Reader, sql: str = "") -> int:
    """The last sequence of the log that all tables reflect which a query may read.

    A projection that is paused, or whose new version is not built yet, stands where it stands; it
    counts where a word of the query is the name of one of its tables.
    """
    positions = reader.execute(_REFLECTED).fetchall()
    sequence = min((at for at, active in positions if active), default=0)
    if not all(active for _, active in positions):
        words = sorted(set(_WORD.findall(sql.lower())))
        [(behind,)] = reader.execute(_BEHIND, [words]).fetchall()
        sequence = sequence if behind is None else min(sequence, behind)
    return int(sequence)


def _told(schema: pa.Schema, types: Sequence[str]) -> pa.Schema:
    """The schema with what Arrow's types do not say."""
    if "JSON" not in types:
        return schema
    fields = [
        field.with_metadata(JSON_FIELD) if kind == "JSON" else field
        for field, kind in zip(schema, types, strict=True)
    ]
    return pa.schema(fields)


def _limited(
    rows: pa.RecordBatchReader, schema: pa.Schema, max_rows: int, stop: Stop
) -> Iterator[pa.RecordBatch]:
    count = 0
    for batch in rows:
        stop.check()
        count += batch.num_rows
        if count > max_rows:
            text = f"the answer has more than {max_rows:,} rows: add a LIMIT, or allow more"
            raise QueryError("too_many_rows", text)
        yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)


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
        # One processor is left to others: to the server, and to the writer while queries run.
        "threads": max(1, min(4, (os.cpu_count() or 1) - 1)),
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
