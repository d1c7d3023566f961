"""The DuckDB file of a projector: one writer, any number of readers in the same process.

The only module that imports `duckdb`. The writer's side is `Store`: statements, a transaction that
cannot commit behind an error, and the file's lock. The readers' side is `select`: one statement
that only reads, with a time and a row limit. DuckDB's errors end here: a statement that an event's
data made fail is StatementFailed, a file that fails is ProjectorError, a query is QueryError.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from stratum_bus.errors import ProjectorError, QueryError

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
_ROWS_AT_ONCE = 65_536
_SQL_ERRORS = (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException)
_FILE_ERRORS = (
    duckdb.OperationalError,
    duckdb.FatalException,
    duckdb.InternalError,
    duckdb.InterruptException,
    duckdb.PermissionException,
)
"""All others, and a lack of memory, are taken to be the fault of the data."""


class StatementFailed(Exception):
    """A statement failed at its data. `memory` says that a smaller batch might not."""

    def __init__(self, message: str, *, memory: bool = False) -> None:
        self.memory = memory
        super().__init__(message)


class Store:
    """An open file. Made by `Store.open`; its writing methods are for one thread at a time.

    `beside` is for a second thread: transactions and `snapshot` of both take turns.
    """

    def __init__(
        self,
        path: Path,
        connection: duckdb.DuckDBPyConnection,
        lock: int | None = None,
        turn: threading.RLock | None = None,
    ) -> None:
        self.path = path
        self._connection = connection
        self._lock = lock
        self._turn = turn or threading.RLock()
        self._failed = False

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        memory_limit_mb: int = MEMORY_LIMIT_MB,
        directories: Sequence[Path] = (),
    ) -> Store:
        """Open the file, or make it, as its one writer. Its SQL can read files in `directories`.

        Raises ProjectorError: `locked` where another process has it, else `file`.
        """
        path = Path(path).absolute()
        lock = _take_lock(path)
        try:
            if not path.exists():
                _make(path)
            connection = _connect(path, directories, memory_limit_mb)
            _prepare(connection, writer=True)
        except duckdb.Error as error:
            os.close(lock)
            raise _cannot_open(path, error) from error
        return cls(path, connection, lock)

    def beside(self) -> Store:
        """A second writer of the same open file, to be closed before it."""
        cursor = self._connection.cursor()
        _prepare(cursor, writer=True)
        return Store(self.path, cursor, turn=self._turn)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; time stamps only go through `arrow`.

        Raises StatementFailed where the data is at fault, ProjectorError where SQL or file is.
        """
        try:
            return self._connection.execute(sql, list(parameters)).fetchall()
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error

    def arrow(self, sql: str) -> pa.Table:
        """The rows of a query as Arrow; raises as `execute` does."""
        try:
            table: pa.Table = self._connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error
        return table

    def register(self, name: str, table: pa.Table) -> None:
        """Make an Arrow table readable under a name, in place of what had it before."""
        self._connection.register(name, table)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing. A failed statement that the body ignored is an error at the end."""
        with self._turn:
            self.execute("begin transaction")
            self._failed = False
            try:
                yield
                if self._failed:
                    # DuckDB would answer this commit with success, and store nothing
                    raise RuntimeError("a failed statement was ignored inside a transaction")
                self.execute("commit")
            except BaseException:
                self._roll_back()
                raise

    def flush(self) -> None:
        """Move what the write-ahead log holds into the file."""
        with self._turn:
            self.execute("checkpoint")

    def snapshot(self, target: Path) -> int:
        """Copy the file to `target`; returns the sequence that the copy reflects.

        Writers wait meanwhile. Raises ProjectorError `file`, and leaves nothing at `target` then.
        """
        with self._turn:
            self.execute("checkpoint")
            sequence = _sequence(self._connection)
            # Not by opening it: that drops DuckDB's lock on the file, for this whole process.
            copied = subprocess.run(
                ["cp", "--", str(self.path), str(target)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        if copied.returncode:
            target.unlink(missing_ok=True)
            raise ProjectorError("file", f"cannot copy {self.path}: {copied.stderr.strip()}")
        return sequence

    def reader(self) -> Reader:
        """A connection for `select`; whoever asked for it closes it."""
        cursor = self._connection.cursor()
        _prepare(cursor)
        return cursor

    def close(self) -> None:
        """Close the file and give up the lock; takes a second or so where much is to be flushed."""
        try:
            self._connection.close()
        except duckdb.Error as error:
            raise self._translated(error) from error
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _roll_back(self) -> None:
        try:
            self._connection.execute("rollback")
        except duckdb.Error:
            pass  # no transaction is left: the error that ended it is already on its way

    def _translated(self, error: duckdb.Error) -> Exception:
        text = _sentence(error)
        if isinstance(error, duckdb.OutOfMemoryException):
            return StatementFailed(text, memory=True)
        if isinstance(error, _SQL_ERRORS):
            return ProjectorError("projection", f"the SQL of a projection is wrong: {text}")
        if isinstance(error, _FILE_ERRORS):
            return ProjectorError("file", f"cannot write {self.path}: {text}")
        return StatementFailed(text)


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
        connection = _connect(path, directories, read_only=True)
    except duckdb.Error as error:
        if held := re.search(r"lock is held.*\(PID (\d+)\)", str(error)):
            text = f"{path} is in use by process {held[1]}: ask its projector instead"
            raise QueryError("locked", text) from error
        raise QueryError("failed", f"cannot read {path}: {_sentence(error)}") from error
    try:
        _prepare(connection)
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
        sequence = _sequence(reader)
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


def _sequence(reader: Reader) -> int:
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
    text = _sentence(error)
    if isinstance(error, duckdb.PermissionException) or "read-only mode" in text:
        return QueryError("not_read_only", f"only reading the projections is allowed: {text}")
    return QueryError("syntax" if isinstance(error, _SQL_ERRORS) else "failed", text)


def _connect(
    path: Path,
    directories: Sequence[Path],
    memory_limit_mb: int = MEMORY_LIMIT_MB,
    *,
    read_only: bool = False,
) -> duckdb.DuckDBPyConnection:
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
        "allowed_configs": list(_READER_SETTINGS),
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


def _prepare(connection: Reader, *, writer: bool = False) -> None:
    for name, value in _READER_SETTINGS.items():
        if not (writer and name == "operator_memory_limit"):
            connection.execute(f"set {name} = {value}")


def _make(path: Path) -> None:
    """Make an empty file, whole or not at all: DuckDB cannot open one that was cut short."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    duckdb.connect(str(new)).close()
    new.replace(path)


def _take_lock(path: Path) -> int:
    """The descriptor of the lock beside the file, as long as it is open.

    DuckDB has a lock of its own, but loses it when anything else in this process opens and closes
    the file; two writers would then destroy it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProjectorError("file", f"cannot write {path}: {reason}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode(errors="replace").strip()
        os.close(lock)
        raise _locked(path, holder) from None
    os.truncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _locked(path: Path, holder: str) -> ProjectorError:
    who = f"process {holder}" if holder else "another process"
    text = f"{path} is in use by {who}: one file has one projector, give this one another path"
    return ProjectorError("locked", text)


def _cannot_open(path: Path, error: duckdb.Error) -> ProjectorError:
    if held := re.search(r"lock is held.*\(PID (\d+)\)", str(error)):
        return _locked(path, held[1])
    advice = "; it holds nothing that is not in the log: remove it, and it is built anew"
    damaged = "not a valid DuckDB" in str(error) or isinstance(error, duckdb.SerializationException)
    return ProjectorError(
        "file", f"cannot open {path}: {_sentence(error)}{advice if damaged else ''}"
    )


def _sentence(error: Exception) -> str:
    """DuckDB's message on one line, without its kind and the quoted statement."""
    text = str(error).split("\n\nLINE ")[0].strip()
    text = re.sub(r"^[A-Z][A-Za-z ]{2,40} Error: ", "", text)
    return re.sub(r"\s+", " ", text).replace('""', '"')[:500]
