"""SQL on the projections, the answering side: the service of a projector; see `query` for what goes
over the wire.

Queries run in threads of their own, READERS at a time, each on one snapshot of all tables. One ends
when its rows are sent, its time is over, whoever asked has gone or has cancelled it, or the
projector stops.
"""

from __future__ import annotations

import asyncio
import io
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import msgspec
import pyarrow as pa
from anyio.abc import TaskStatus

from stratum_bus.config import ProjectorConfig
from stratum_bus.errors import BusError, QueryError
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.tasks import task_group
from stratum_projections.position import Position
from stratum_projections.query import (
    CANCEL,
    HEADER_ERROR,
    HEADER_ERROR_TEXT,
    HEADER_LAST,
    HEADER_SEQUENCE,
    NEXT,
    Query,
    subject_of,
)
from stratum_projections.rows import json_lines
from stratum_projections.select import (
    AGAIN_SECONDS,
    Reader,
    Stop,
    renew,
    select_until,
    took_too_long,
)
from stratum_projections.store import Store

log = logging.getLogger("stratum.projector")

CHUNK_BYTES = 700_000
READERS = 4
"""Queries that run at the same time; further ones wait for their turn."""

READERS_NICE = 10
"""What lets the writer go first: readers take what it leaves of the processors."""

WAITING = 100
"""Queries that may wait for their turn; further ones are refused."""

MAX_BYTES = 512_000_000
"""What an answer may have, as it is sent."""

PROBE_SECONDS = 0.5
_CLOSE_SECONDS = 2.0
_STOPS = "the projector stops: ask again when it runs"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
"""Its threads cost a small answer more than all the rest of it."""


async def serve(
    connection: Connection,
    store: Store,
    position: Position,
    projector: str,
    config: ProjectorConfig,
    *,
    readers: int = READERS,
    waiting: int = WAITING,
    max_bytes: int = MAX_BYTES,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer queries until cancelled. `config` bounds the time and the rows of any query."""
    threads = ThreadPoolExecutor(readers, thread_name_prefix="query", initializer=_stand_back)
    service = _Service(connection, store, position, config, threads)
    service.most, service.max_bytes = readers + waiting, max_bytes
    store.on_shortage = service.give_way
    async with task_group() as tasks:

        def take(request: Reply) -> None:
            if request.reply:
                tasks.start_soon(service.answer, request)

        async with (
            connection.subscribe(f"{service.inbox}.*", service.control),
            connection.subscribe(subject_of(projector), take, queue="projector"),
        ):
            tasks.start_soon(service.watch)
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                await service.close()


class _Asked:
    """A query from when it came to its last message."""

    def __init__(self, query: Query, reply: str, control: str) -> None:
        self.query = query
        self.reply = reply
        self.control = control
        self.stop = Stop()
        self.probed = anyio.current_time()
        self.scope = anyio.CancelScope(deadline=self.probed + query.timeout_seconds)
        self.running = False
        self.sent = self.used = self.bytes = 0
        self.moved = asyncio.Event()

    def end(self, error: QueryError) -> None:
        self.stop.set(error)
        self.moved.set()
        self.scope.cancel()


class _Service:
    most = READERS + WAITING
    max_bytes = MAX_BYTES

    def __init__(
        self,
        connection: Connection,
        store: Store,
        position: Position,
        config: ProjectorConfig,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.inbox = connection.new_inbox()
        self._connection = connection
        self._store = store
        self._position = position
        self._config = config
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._asked: dict[str, _Asked] = {}
        self._running: set[_Asked] = set()
        self._free: list[Reader] = []
        self._count = 0
        self._closing = False

    async def answer(self, request: Reply) -> None:
        """Answer one request, by rows or by an error."""
        self._count += 1
        token = str(self._count)
        payload, headers = b"", _refusal("cancelled", _STOPS)
        try:
            query = self._decoded(request.payload)
            asked = _Asked(query, request.reply, f"{self.inbox}.{token}")
            self._asked[token] = asked
            payload, sequence = await self._answered(asked)
            headers = {HEADER_LAST: "1", HEADER_SEQUENCE: str(sequence)}
        except QueryError as error:
            headers = _refusal(error.reason, str(error))
        except Exception as error:  # no query is to end the projector
            log.exception("a query failed")
            headers = _refusal("failed", f"{type(error).__name__}: {error}"[:500])
        finally:
            self._asked.pop(token, None)
            # Also where the projector stops, which is what has been said then.
            with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
                try:
                    await self._connection.send(request.reply, payload, headers)
                except BusError as error:
                    log.debug("an answer was not sent: %s", error)

    def _decoded(self, payload: bytes) -> Query:
        if self._closing:
            raise QueryError("cancelled", _STOPS)
        if len(self._asked) >= self.most:
            text = f"{len(self._asked)} queries run or wait already: ask again a little later"
            raise QueryError("busy", text)
        try:
            if payload.lstrip().startswith(b"{"):
                query = msgspec.json.decode(payload, type=Query)
            else:
                query = Query(payload.decode())
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise QueryError("syntax", f"the request is not a query: {error}") from error
        return msgspec.structs.replace(
            query,
            timeout_seconds=min(query.timeout_seconds, self._config.query_seconds),
            max_rows=min(query.max_rows, self._config.query_rows),
        )

    async def _answered(self, asked: _Asked) -> tuple[bytes, int]:
        """What is left to be sent when the query has run, and the sequence it reflects."""
        with asked.scope:
            if asked.query.wait_for is not None:
                await self._position.reach(asked.query.wait_for, math.inf)
            return await self._loop.run_in_executor(self._threads, self._run, asked)
        asked.end(self._too_late(asked))
        asked.stop.check()
        raise AssertionError("a query was ended without a reason")

    def _too_late(self, asked: _Asked) -> QueryError:
        seconds, sequence = asked.query.timeout_seconds, asked.query.wait_for
        if asked.running:
            return took_too_long(seconds)
        if sequence is not None and self._position.sequence < sequence:
            return QueryError(
                "behind",
                f"the projections reflect sequence {self._position.sequence}, and did not reach "
                f"{sequence} within {seconds:g} s",
            )
        others = f"{len(self._running)} other queries run"
        text = f"{others}, and this one had no turn within {seconds:g} s: ask again later"
        return QueryError("busy", text)

    def _run(self, asked: _Asked) -> tuple[bytes, int]:
        """In a thread: send the rows as they come, and return the last of them."""
        asked.stop.check()
        asked.running = True
        self._running.add(asked)
        reader = self._free.pop() if self._free else self._store.reader()
        try:
            query = asked.query
            with select_until(reader, query.sql, stop=asked.stop, max_rows=query.max_rows) as found:
                sequence, schema, batches = found
                if query.wait_for is not None and sequence < query.wait_for:
                    text = (
                        f"a table of the query reflects sequence {sequence}, not {query.wait_for}: "
                        "its projection is paused, or not built yet; see `stratum projection list`"
                    )
                    raise QueryError("behind", text)
                chunks = _Chunks(lambda chunk: self._do(self._chunk(asked, chunk, sequence)))
                if query.format == "json":
                    for batch in batches:
                        chunks.write(json_lines(batch))
                else:
                    with pa.ipc.new_stream(chunks, schema, options=_OPTIONS) as writer:
                        for batch in batches:
                            writer.write_batch(batch)
            # After an error a reader may still be busy: it is closed, another one takes its place.
            renew(reader)
            self._free.append(reader)
            return bytes(chunks.buffer), sequence
        except BaseException:
            reader.close()
            raise
        finally:
            self._running.discard(asked)

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    async def _chunk(self, asked: _Asked, chunk: bytes, sequence: int) -> None:
        """Send a part, and wait until the next one may be sent."""
        asked.stop.check()
        asked.bytes += len(chunk)
        if asked.bytes > self.max_bytes:
            text = f"the answer has more than {self.max_bytes:,} bytes: select less of it"
            raise QueryError("too_large", text)
        headers = {HEADER_SEQUENCE: str(sequence)}
        try:
            await self._connection.send(asked.reply, chunk, headers, asked.control)
        except BusError as error:
            raise QueryError("cancelled", f"the answer cannot be sent: {error}") from error
        asked.sent += 1
        while asked.query.window and asked.sent - asked.used >= asked.query.window:
            asked.moved.clear()
            await asked.moved.wait()
            asked.stop.check()

    def control(self, message: Reply) -> None:
        """Whoever asked says something, or the server that it is not there any more."""
        asked = self._asked.get(message.subject.rpartition(".")[2])
        if asked is None:
            return
        if message.status == "503":
            asked.end(QueryError("cancelled", "whoever asked has gone"))
        elif message.payload == CANCEL:
            asked.end(QueryError("cancelled", "the query was cancelled"))
        elif message.payload == NEXT:
            asked.used += 1
            asked.moved.set()

    async def watch(self) -> None:
        """Look whether those who asked are there, and interrupt what has not ended, for ever."""
        while True:
            await anyio.sleep(AGAIN_SECONDS)
            for asked in list(self._running):
                if asked.stop.error is not None:
                    asked.stop.again()
            now = anyio.current_time()
            for asked in list(self._asked.values()):
                if now >= asked.probed + PROBE_SECONDS:
                    asked.probed = now
                    await self._probe(asked)

    def give_way(self) -> None:
        """In any thread: the writer lacks memory, which is shared. End the queries that run."""
        error = QueryError("failed", "the projector needed the memory: ask for less at once")
        for asked in list(self._running):
            asked.stop.set(error)
            self._loop.call_soon_threadsafe(asked.end, error)

    async def _probe(self, asked: _Asked) -> None:
        try:
            await self._connection.send(asked.reply, reply=asked.control)
        except BusError as error:
            log.debug("cannot ask whether anybody waits for an answer: %s", error)

    async def close(self) -> None:
        """End all queries; returns when their threads have, or after a while."""
        self._closing = True
        for asked in list(self._asked.values()):
            asked.end(QueryError("cancelled", _STOPS))
        self._threads.shutdown(wait=False, cancel_futures=True)
        with anyio.move_on_after(_CLOSE_SECONDS, shield=True):
            while self._running:
                for asked in list(self._running):
                    asked.stop.again()
                await anyio.sleep(0.01)
        for reader in self._free:
            reader.close()


def _stand_back() -> None:
    """Run the thread below all others, where the system knows a priority for each."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = os.getpriority(os.PRIO_PROCESS, thread) + READERS_NICE
        os.setpriority(os.PRIO_PROCESS, thread, min(nice, 19))


def _refusal(reason: str, text: str) -> dict[str, str]:
    return {HEADER_LAST: "1", HEADER_ERROR: reason, HEADER_ERROR_TEXT: " ".join(text.split())}


class _Chunks(io.RawIOBase):
    """A file that sends what is written to it in messages of CHUNK_BYTES; `buffer` is the rest."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self.buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.buffer += data
        while len(self.buffer) > CHUNK_BYTES:
            self._send(bytes(self.buffer[:CHUNK_BYTES]))
            del self.buffer[:CHUNK_BYTES]
        return len(data)
