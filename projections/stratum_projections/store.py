"""The DuckDB file of a projector, the writer's side: one writer, any number of readers beside it.

Statements, a transaction that cannot commit behind an error, and the file's lock. The readers' side
is `select.py`; no other module imports `duckdb`. Its errors end here: a statement that an event's
data made fail is StatementFailed, a file that fails is ProjectorError.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from stratum_bus.errors import ProjectorError
from stratum_projections.given import Given
from stratum_projections.select import (
    MEMORY_LIMIT_MB,
    SQL_ERRORS,
    Reader,
    connect,
    prepare,
    reader_beside,
    reflected,
    sentence,
)

_FILE_ERRORS = (
    duckdb.OperationalError,
    duckdb.FatalException,
    duckdb.InternalError,
    duckdb.InterruptException,
    duckdb.PermissionException,
)
"""All others, and a lack of memory, are taken to be the fault of the data."""

_SHORTAGE = re.compile(r"failed to (?:pin|allocate)|could not allocate")
"""How other errors say that memory was lacking, as that of a commit does."""

_PATIENCE_SECONDS = 10.0
"""How long a snapshot waits for a moment in which nobody else writes."""


class StatementFailed(Exception):
    """A statement failed at its data. `memory` says that a smaller batch might not."""

    def __init__(self, message: str, *, memory: bool = False) -> None:
        self.memory = memory
        super().__init__(message)


class _Busy(ProjectorError):
    """Others write, each for a moment, and what needs the file for itself found none between."""


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
        self._schema = self._searched = "main"
        self._given = Given(connection)
        self._statements: dict[str, duckdb.Statement] = {}
        self._file = _identity(path)
        self.on_shortage: Callable[[], None] = lambda: None
        """Called when a statement failed for lack of memory, before it is known to have."""

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
            connection = connect(path, directories, memory_limit_mb)
            prepare(connection, writer=True)
        except duckdb.Error as error:
            os.close(lock)
            raise _cannot_open(path, error) from error
        return cls(path, connection, lock)

    def beside(self) -> Store:
        """A second writer of the same open file, to be closed before it."""
        cursor = self._connection.cursor()
        prepare(cursor, writer=True)
        store = Store(self.path, cursor, turn=self._turn)
        store.on_shortage = self.on_shortage
        return store

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows; time stamps only go through `arrow`.

        Raises StatementFailed where the data is at fault, ProjectorError where SQL or file is.
        """
        return self._run(sql, parameters)

    def repeat(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """As `execute`, for what is run with each batch: it is parsed once, which takes a third of
        the time that a long statement takes with a small batch.
        """
        return self._run(self._parsed(sql), parameters)

    def check(self, sql: str) -> None:
        """Make sure that a statement can be run as the tables are, without running it."""
        self._parsed(sql)
        self._run(f"explain {sql}")

    def repeat_planned(self, sql: str, reads: str) -> None:
        """As `repeat`, and planned once, for what reads one registered table and no other."""
        try:
            self._search()
            statement = self._given.plan(reads, sql, self._schema)
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error
        self._run(statement)

    def arrow(self, sql: str) -> pa.Table:
        """The rows of a query as Arrow; raises as `execute` does."""
        try:
            self._search()
            table: pa.Table = self._connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error
        return table

    def _run(
        self, sql: str | duckdb.Statement, parameters: Sequence[object] = ()
    ) -> list[tuple[Any, ...]]:
        try:
            self._search()
            return self._connection.execute(sql, list(parameters)).fetchall()
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error

    def _parsed(self, sql: str) -> duckdb.Statement:
        if sql not in self._statements:
            try:
                found = self._connection.extract_statements(sql)
            except duckdb.Error as error:
                raise self._translated(error) from error
            if len(found) != 1:
                text = f"the SQL of a projection is wrong: {len(found)} statements in one text"
                raise ProjectorError("projection", f"{text}, give each its own")
            self._statements[sql] = found[0]
        return self._statements[sql]

    def register(self, name: str, table: pa.Table) -> None:
        """Make an Arrow table readable under a name, in place of what had it before."""
        try:
            self._given.put(name, table)
        except duckdb.Error as error:
            self._failed = True
            raise self._translated(error) from error

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

    @contextmanager
    def within(self, schema: str) -> Iterator[None]:
        """Let names without a schema mean tables of this one, and then those of `main` again."""
        outer, self._schema = self._schema, schema
        try:
            yield
        finally:
            self._schema = outer

    def _search(self) -> None:
        """Only before a statement that needs it: each change takes as long as a small one does."""
        if self._searched != self._schema:
            self._connection.execute(f"set search_path = '{self._schema}'")
            self._searched = self._schema

    def flush(self) -> None:
        """Move what the write-ahead log holds into the file, unless somebody writes just then."""
        with self._turn, contextlib.suppress(_Busy):
            self._checkpoint()

    def snapshot(self, target: Path) -> int:
        """Copy the file to `target`; returns the sequence that the copy reflects.

        Writers wait meanwhile. Raises ProjectorError `file`, and leaves nothing at `target` then.
        """
        with self._turn:
            self._checkpoint(_PATIENCE_SECONDS)
            sequence = reflected(self._connection)
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
        """A connection for `select`; whoever asked for it closes it. Raises QueryError `failed`."""
        return reader_beside(self._connection)

    def check_is_there(self) -> None:
        """Raises ProjectorError `file` where the file was removed or replaced since it was opened:
        what is written goes nowhere then.
        """
        if _identity(self.path) != self._file:
            text = f"{self.path} was removed while it was open: a new one is built from the log"
            raise ProjectorError("file", f"{text} at the next start")

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

    def _checkpoint(self, patience_seconds: float = 0.0) -> None:
        """Raises _Busy where for so long there was a statement of another writer at each try."""
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                self._connection.execute("checkpoint").fetchall()
                return
            except duckdb.TransactionException as error:
                if time.monotonic() >= deadline:
                    raise _Busy("file", f"cannot write {self.path}: {sentence(error)}") from error
                time.sleep(0.01)
            except duckdb.Error as error:
                raise self._translated(error) from error

    def _roll_back(self) -> None:
        # Where no transaction is left, the error that ended it is already on its way.
        with contextlib.suppress(duckdb.Error):
            self._connection.execute("rollback")
        self._given.forget()

    def _translated(self, error: duckdb.Error) -> Exception:
        text = sentence(error)
        if isinstance(error, duckdb.OutOfMemoryException) or _SHORTAGE.search(text):
            self.on_shortage()
            return StatementFailed(text, memory=True)
        if isinstance(error, SQL_ERRORS):
            return ProjectorError("projection", f"the SQL of a projection is wrong: {text}")
        if isinstance(error, _FILE_ERRORS):
            return ProjectorError("file", f"cannot write {self.path}: {text}")
        return StatementFailed(text)


def _identity(path: Path) -> tuple[int, int]:
    """Which file is at a path now; zeros for none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_dev, found.st_ino


def _make(path: Path) -> None:
    """Make an empty file, whole or not at all: DuckDB cannot open one that was cut short."""
    new = path.with_name(f"{path.name}.new")
    for old in (new, path.with_name(f"{path.name}.wal")):  # or its log of writes is taken for ours
        old.unlink(missing_ok=True)
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
    said = any(words in str(error) for words in ("not a valid DuckDB", "replaying WAL"))
    damaged = said or isinstance(error, duckdb.SerializationException)
    return ProjectorError(
        "file", f"cannot open {path}: {sentence(error)}{advice if damaged else ''}"
    )
