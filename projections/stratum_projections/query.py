"""SQL on the projections: answered by the projector over NATS, or from its file when none runs.

The request goes to `query.<projector>` with a reply subject: the SQL as it is, or JSON with `sql`,
`wait_for`, `timeout_seconds`, `max_rows`. The answer is an Arrow IPC stream (LZ4), cut into
messages of at most 700 kB; the last one says so in its headers, or says why there is no answer.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec
import pyarrow as pa
from anyio.abc import TaskStatus
from msgspec import Struct

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import BusError, QueryError
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.tasks import task_group
from stratum_projections.position import Position
from stratum_projections.select import open_read_only, select
from stratum_projections.store import Store

CHUNK_BYTES = 700_000
READERS = 8
"""Queries that run at the same time; further ones wait for their turn."""

TIMEOUT_SECONDS = 10.0
MAX_ROWS = 100_000

HEADER_LAST = "Stratum-Last"
HEADER_SEQUENCE = "Stratum-Sequence"
HEADER_ERROR = "Stratum-Error"
HEADER_ERROR_TEXT = "Stratum-Error-Text"

_GRACE_SECONDS = 2.0
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")


class Query(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What is asked. `wait_for` is a sequence that the answer must reflect."""

    sql: str
    wait_for: int | None = None
    timeout_seconds: float = TIMEOUT_SECONDS
    max_rows: int = MAX_ROWS


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
    within the time, the reasons of `select`; and ConnectionLost.
    """
    connection, inbox = bus.connection, bus.connection.new_inbox()
    send, receive = anyio.create_memory_object_stream[Reply](float("inf"))
    body = msgspec.json.encode(Query(sql, wait_for, timeout_seconds, max_rows))
    chunks: list[bytes] = []
    async with send, receive, connection.subscribe(inbox, send.send_nowait):
        await connection.send(_subject(projector), body, reply=inbox)
        with anyio.move_on_after(timeout_seconds + _GRACE_SECONDS):
            async for reply in receive:
                headers = reply.headers or {}
                if reply.status == "503":
                    text = f"no projector {projector!r} answers: `stratum up` starts one"
                    raise QueryError("no_projector", text)
                if HEADER_ERROR in headers:
                    raise QueryError(headers[HEADER_ERROR], headers[HEADER_ERROR_TEXT])
                chunks.append(reply.payload)
                if HEADER_LAST in headers:
                    with pa.ipc.open_stream(b"".join(chunks)) as stream:
                        return Answer(stream.read_all(), int(headers[HEADER_SEQUENCE]))
    raise QueryError("timeout", f"projector {projector!r} did not answer in {timeout_seconds:g} s")


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


async def serve(
    connection: Connection,
    store: Store,
    position: Position,
    projector: str,
    config: ProjectorConfig,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer queries until cancelled. `config` bounds the time and the rows of any query."""
    service = _Service(connection, store, position, config)
    async with task_group() as tasks:

        def take(request: Reply) -> None:
            tasks.start_soon(service.answer, request)

        async with connection.subscribe(_subject(projector), take, queue="projector"):
            task_status.started()
            await anyio.sleep_forever()


class _Service:
    def __init__(
        self, connection: Connection, store: Store, position: Position, config: ProjectorConfig
    ) -> None:
        self._connection = connection
        self._store = store
        self._position = position
        self._config = config
        self._limiter = anyio.CapacityLimiter(READERS)

    async def answer(self, request: Reply) -> None:
        """Answer one request, by rows or by an error."""
        try:
            query = self._decoded(request.payload)
            if query.wait_for is not None:
                await self._wait(query.wait_for, query.timeout_seconds)
            sequence = await anyio.to_thread.run_sync(
                self._run, query, request.reply, limiter=self._limiter
            )
            headers = {HEADER_LAST: "1", HEADER_SEQUENCE: str(sequence)}
        except QueryError as error:
            text = " ".join(str(error).split())
            headers = {HEADER_LAST: "1", HEADER_ERROR: error.reason, HEADER_ERROR_TEXT: text}
        except BusError:
            return  # nobody is left to tell
        await self._send(request.reply, b"", headers)

    def _decoded(self, payload: bytes) -> Query:
        try:
            if payload.lstrip().startswith(b"{"):
                query = msgspec.json.decode(payload, type=Query)
            else:
                query = Query(payload.decode())
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise QueryError("syntax", f"the request is not a query: {error}") from error
        return Query(
            query.sql,
            query.wait_for,
            min(query.timeout_seconds, self._config.query_seconds),
            min(query.max_rows, self._config.query_rows),
        )

    async def _wait(self, sequence: int, timeout_seconds: float) -> None:
        if not await self._position.reach(sequence, timeout_seconds):
            raise QueryError(
                "behind",
                f"the projections reflect sequence {self._position.sequence}, and did not reach "
                f"{sequence} within {timeout_seconds:g} s",
            )

    def _run(self, query: Query, reply: str) -> int:
        """In a thread: send the rows as they come, and return the sequence they reflect."""
        reader = self._store.reader()
        seconds, rows = query.timeout_seconds, query.max_rows
        try:
            with select(reader, query.sql, timeout_seconds=seconds, max_rows=rows) as found:
                sequence, schema, batches = found
                out = _Chunks(lambda chunk: anyio.from_thread.run(self._send, reply, chunk, None))
                with pa.ipc.new_stream(out, schema, options=_OPTIONS) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
                out.send()
                return sequence
        finally:
            reader.close()

    async def _send(self, reply: str, payload: bytes, headers: dict[str, str] | None) -> None:
        if reply:
            await self._connection.send(reply, payload, headers)


class _Chunks(io.RawIOBase):
    """A file that sends what is written to it in messages of at most CHUNK_BYTES."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._buffer += data
        while len(self._buffer) >= CHUNK_BYTES:
            self._send(bytes(self._buffer[:CHUNK_BYTES]))
            del self._buffer[:CHUNK_BYTES]
        return len(data)

    def send(self) -> None:
        """Send what is left."""
        if self._buffer:
            self._send(bytes(self._buffer))
            self._buffer.clear()


def _subject(projector: str) -> str:
    return f"query.{subject.token(projector, 'projector name')}"
