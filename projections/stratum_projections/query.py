"""SQL on the projections, the asking side: of a running projector over NATS, or of its file.

The request goes to `query.<projector>` with a reply subject. It is the SQL as it is, or a JSON
object with `sql` and, if wanted, `wait_for` (a sequence of the log that the answer must reflect),
`timeout_seconds`, `max_rows`, `format` (`arrow` or `json`) and `window`.

The answer is one or more messages whose payloads, one after the other, are an Arrow IPC stream
(LZ4), or with `json` an object a line; each has at most 700 kB. All that have a payload say in
`Stratum-Sequence` what sequence of the log the rows reflect. The last message has `Stratum-Last`;
it has `Stratum-Error`, a word (see `QueryError`), and `Stratum-Error-Text`, a sentence, if the
answer is none or breaks off. Nobody there: the server's status 503.

Who unsubscribes from the reply subject, or goes away, ends the query: while it runs, an empty
message comes each half a second to find that out. All but the last message have a reply subject:
`cancel` sent there ends the query too. Who named a `window` is sent no more than so many messages
with a payload, until it has said `next` there for the first of them.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pyarrow as pa
from msgspec import Meta, Struct

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import ConnectionLost, PermissionDenied, QueryError, StratumError
from stratum_bus.jetstream import Connection, Reply
from stratum_projections.select import open_read_only, select

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
MAX_ROWS = 100_000
WINDOW = 8
"""How many messages a projector may be ahead of who reads a stream of rows."""

HEADER_LAST = "Stratum-Last"
HEADER_SEQUENCE = "Stratum-Sequence"
HEADER_ERROR = "Stratum-Error"
HEADER_ERROR_TEXT = "Stratum-Error-Text"
CANCEL, NEXT = b"cancel", b"next"

_GRACE_SECONDS = 2.0
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)


class Query(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is asked."""

    sql: str
    wait_for: Annotated[int, Meta(ge=0)] | None = None
    timeout_seconds: Annotated[float, Meta(gt=0)] = TIMEOUT_SECONDS
    max_rows: Annotated[int, Meta(ge=0)] = MAX_ROWS
    format: Literal["arrow", "json"] = "arrow"
    window: Annotated[int, Meta(ge=1)] | None = None


class Answer(Struct, frozen=True):
    """The rows, and the sequence of the log that they reflect."""

    table: pa.Table
    sequence: int


async def ask(
    bus: Bus,
    sql: str,
    *,
    projector: str = "main",
    wait_for: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
) -> Answer:
    """Ask a running projector.

    Raises QueryError: `no_projector` where none runs, `behind` where `wait_for` was not reached
    within the time, `busy` where too many ask, `too_large`, the reasons of `select`; also
    PermissionDenied where the server does not let this user ask, and ConnectionLost.
    """
    asked = Query(sql, wait_for, timeout_seconds, max_rows)
    async with _asking(bus.connection, projector, asked) as answering:
        chunks = []
        while chunk := await answering.next():
            chunks.append(chunk)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    with pa.ipc.open_stream(body, options=_READ_OPTIONS) as stream:
        return Answer(stream.read_all(), answering.sequence)


class Rows:
    """An answer as it comes in: `async for batch in rows`, once. Made by `stream`."""

    def __init__(self, source: _Source, sequence: int) -> None:
        self.schema: pa.Schema = source.schema
        self.sequence = sequence
        self._source = source

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        while (batch := await self._source.batch()) is not None:
            yield batch


@asynccontextmanager
async def stream(
    bus: Bus,
    sql: str,
    *,
    projector: str = "main",
    wait_for: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
) -> AsyncIterator[Rows]:
    """As `ask`, for answers that memory need not hold: their rows are yielded as they come.

    The projector waits for who reads them. Leaving ends the query. Raises as `ask` does, also while
    rows are read.
    """
    asked = Query(sql, wait_for, timeout_seconds, max_rows, window=WINDOW)
    async with _asking(bus.connection, projector, asked) as answering:
        source = _Source(answering)
        try:
            await source.open()
            yield Rows(source, answering.sequence)
        finally:
            source.let_go()


def query_file(
    path: Path | str,
    sql: str,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
    directories: Sequence[Path] = (),
) -> Answer:
    """Ask the file of a projector that does not run; queries can read `directories`. Blocking.

    Raises QueryError: `no_file`, `locked` where a projector has it, the reasons of `select`.
    """
    with (
        open_read_only(path, directories) as reader,
        select(reader, sql, timeout_seconds=timeout_seconds, max_rows=max_rows) as found,
    ):
        sequence, schema, batches = found
        return Answer(pa.Table.from_batches(batches, schema), sequence)


def of_stopped(
    path: Path,
    sql: str,
    silent: StratumError,
    *,
    wait_for: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    max_rows: int = MAX_ROWS,
    directories: Sequence[Path] = (),
) -> Answer:
    """As `query_file`, where no projector answers, as `silent` says. Blocking.

    Raises that where there is no file, and QueryError as `query_file` does, `no_projector` where a
    projector that cannot be asked has it, `behind`.
    """
    if not path.exists():
        raise silent
    try:
        found = query_file(
            path, sql, timeout_seconds=timeout_seconds, max_rows=max_rows, directories=directories
        )
    except QueryError as error:
        if error.reason == "locked":  # its projector starts just now, or serves another bus
            raise QueryError("no_projector", f"{silent}; {error}") from None
        raise
    if wait_for is not None and found.sequence < wait_for:
        raise QueryError(
            "behind",
            f"no projector runs, and {path} reflects sequence {found.sequence}, not {wait_for}: "
            "start the projector with `stratum up`",
        )
    return found


@asynccontextmanager
async def _asking(
    connection: Connection, projector: str, asked: Query
) -> AsyncIterator[_Answering]:
    inbox, to = connection.new_inbox(), subject_of(projector)
    answering = _Answering(connection, projector, asked, inbox)
    forget = connection.on_change(answering.trouble)
    try:
        async with connection.subscribe(inbox, answering.take, drain=False):
            await connection.send(to, msgspec.json.encode(asked), reply=inbox)
            yield answering
    finally:
        forget()


class _Answering:
    """The messages of one answer."""

    def __init__(self, connection: Connection, projector: str, asked: Query, inbox: str) -> None:
        self.sequence = 0
        self._connection = connection
        self._projector = projector
        self._asked = asked
        self._subjects = (subject_of(projector), inbox)
        self._used = ""
        self._ended = False
        self._deadline = anyio.current_time() + asked.timeout_seconds + _GRACE_SECONDS
        self._came: asyncio.Queue[Reply | StratumError] = asyncio.Queue()

    def take(self, reply: Reply) -> None:
        self._came.put_nowait(reply)

    def trouble(self, denied: PermissionDenied | None) -> None:
        """The connection's state has changed, or the server has forbidden something."""
        if denied is not None:
            # the library lowers the case of the server's message
            for each in self._subjects:
                if each.lower() == denied.subject.lower():
                    self._came.put_nowait(PermissionDenied(each, denied.operation))
        elif not self._connection.connected:
            text = f"the connection broke before {self._subjects[0]} was answered"
            self._came.put_nowait(ConnectionLost(text, subject=self._subjects[0]))

    async def next(self) -> bytes:
        """The next part of the answer; nothing after the last one."""
        if self._used:
            await self._connection.send(self._used, NEXT)
            self._used = ""
        while not self._ended:
            reply = await self._reply()
            headers = reply.headers or {}
            if HEADER_ERROR in headers:
                raise QueryError(headers[HEADER_ERROR], headers.get(HEADER_ERROR_TEXT, ""))
            self._ended = HEADER_LAST in headers
            if reply.payload:
                self.sequence = int(headers.get(HEADER_SEQUENCE, 0))
                self._used = reply.reply if self._asked.window and not self._ended else ""
                return reply.payload
        return b""

    async def _reply(self) -> Reply:
        with anyio.CancelScope(deadline=self._deadline):
            found = await self._came.get()
            if isinstance(found, StratumError):
                raise found
            if found.status == "503":
                text = f"no projector {self._projector!r} answers: `stratum up` starts one"
                raise QueryError("no_projector", text)
            return found
        seconds = self._asked.timeout_seconds
        text = f"projector {self._projector!r} did not answer in {seconds:g} s"
        raise QueryError("timeout", text)


class _Source(io.RawIOBase):
    """An answer as a file that Arrow reads in a thread, and what it reads there.

    An error is the file's end for Arrow, and raised outside of the thread: neither would let go of
    it.
    """

    def __init__(self, answering: _Answering) -> None:
        self._answering = answering
        self._buffer = bytearray()
        self._error: BaseException | None = None
        self._reader: pa.RecordBatchStreamReader | None = None

    async def open(self) -> None:
        reader = await self._do(lambda: pa.ipc.open_stream(self, options=_READ_OPTIONS))
        self._reader, self.schema = reader, reader.schema

    def let_go(self) -> None:
        """To be said at the end: Arrow's reader and this have each other, unseen by Python."""
        self._reader = self._error = None

    async def batch(self) -> pa.RecordBatch | None:
        """The next rows; None after the last."""
        reader = self._reader
        return await self._do(lambda: next(reader, None)) if reader is not None else None

    async def _do(self, what: Callable[[], T]) -> T:
        found = await anyio.to_thread.run_sync(self._attempt, what)
        if self._error is not None:
            raise self._error
        return cast("T", found)

    def _attempt(self, what: Callable[[], T]) -> T | None:
        try:
            return what()
        except (pa.ArrowException, OSError) as error:
            self._error = self._error or error.with_traceback(None)
            return None

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._buffer) < size:
            try:
                chunk = anyio.from_thread.run(self._answering.next)
            except BaseException as error:  # noqa: BLE001 - it is raised in `_do`
                self._error = error.with_traceback(None)
                break
            if not chunk:
                break
            self._buffer += chunk
        found = bytes(self._buffer if size < 0 else self._buffer[:size])
        del self._buffer[: len(found)]
        return found

    def readable(self) -> bool:
        return True


def subject_of(projector: str) -> str:
    """Where a projector is asked; raises InvalidName."""
    return f"query.{subject.token(projector, 'projector name')}"
