"""Writing to the log: awaited appends, atomic commits, and the group commit that they share.

Under `sync_interval: always` an append is an fsync and an atomic batch is two, whatever its size.
So what waits at the same time goes out as one atomic batch, where it is enough to be worth it:
each message keeps its own id and its own expected sequence. A group that is refused says nothing
about its members: they are then sent one by one, so that only the guilty one fails. A commit of
several events always stays whole.

Bulk publishing uses the same batches: with fsync they store 65-75k events/s where the server's
fast-ingest batches, which sync each message, store 6k; without fsync both store about 70k.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from itertools import islice
from typing import Any

import anyio
import msgspec

from stratum_bus import event, subject
from stratum_bus.batch import ANSWER_SECONDS, PubAck, Sender, Wire, ack_of, to_wire
from stratum_bus.errors import BusError, ConnectionLost, StratumError, TooLarge
from stratum_bus.event import Event
from stratum_bus.group_cost import GroupCost
from stratum_bus.jetstream import Connection, Reply, size_of
from stratum_bus.patience import patiently
from stratum_bus.tasks import task_group

BATCH_MAX = 1000
BATCH_MAX_BYTES = 8 << 20
BULK_BATCH = 1000
BULK_IN_FLIGHT = 8

INLINE_MAX = 16 * 1024
"""Data that is larger, in bytes of JSON, goes to BLOBS and is referred to by `dataref`."""

_GROUPED = "LOG"
_BATCH_HEADERS = 200
"""More than the headers take that make a message part of a batch, in bytes."""


class Append(msgspec.Struct, frozen=True):
    """One event for one subject.

    With `expected_sequence` it is stored only if the subject's last sequence is that (0: none).
    """

    subject: str
    event: Event[Any]
    expected_sequence: int | None = None


Offload = Callable[[Append], Awaitable[Append]]
"""Takes data that is too large for the log out of an append."""


class _Unit(msgspec.Struct):
    """What is stored as a whole or not at all, and who waits for it."""

    wires: list[Wire]
    done: asyncio.Future[list[PubAck]]
    size: int


class Publisher:
    """Writes for one connection; `run` must be running. Safe to use from any number of tasks."""

    def __init__(self, connection: Connection, offload: Offload) -> None:
        self._connection = connection
        self._offload = offload
        self._sender = Sender(connection)
        self._closed = False
        self._waiting: deque[_Unit] = deque()
        self._work = asyncio.Event()
        self._turn = asyncio.Lock()
        self._cost = GroupCost()

    async def publish(self, append: Append) -> PubAck:
        """Store one event. Raises what `commit` raises."""
        if subject.stream_of(append.subject) != _GROUPED:
            return (await self._sender.settle([await self._wire(append)]))[0]
        return (await self._store([await self._wire(append)]))[0]

    async def commit(self, appends: Sequence[Append]) -> list[PubAck]:
        """Store several events of LOG, all or nothing, one behind the other.

        An event that the server already has by its id is not stored again (`duplicate`). Raises
        WrongSequence where an expectation did not hold, PermissionDenied, NoStream, TooLarge,
        StorageFull, ValueError for more than 1,000 events or another stream's subject; and
        ConnectionLost or NoAnswer, after the connection's patience, with the outcome unknown.
        """
        if not appends:
            return []
        if len(appends) > BATCH_MAX:
            raise ValueError(f"a commit has {len(appends)} events, at most {BATCH_MAX} fit")
        for append in appends:
            if subject.stream_of(append.subject) != _GROUPED:
                raise ValueError(f"{append.subject} is not of stream {_GROUPED}: no atomic commit")
        wires = [await self._wire(append) for append in appends]
        if len({wire.id for wire in wires}) < len(wires):
            raise ValueError("two events of a commit have the same id; make an event for each")
        return await self._store(wires)

    async def publish_many(self, appends: Iterable[Append] | AsyncIterable[Append]) -> int:
        """Store many events of LOG, each on its own, and return how many were taken.

        They are stored in order as long as nothing has to be sent again. Events that the server
        already has by their id are not stored twice. Raises what `commit` raises; what was sent
        before stays.
        """
        taken = 0
        slots = asyncio.Semaphore(BULK_IN_FLIGHT)

        async def store(wires: list[Wire]) -> None:
            try:
                await self._bulk(wires)
            finally:
                slots.release()

        async with task_group() as tasks:
            async for chunk in _chunks(_each(appends)):
                wires = [await self._wire(append) for append in chunk]
                await slots.acquire()
                tasks.start_soon(store, wires)
                taken += len(wires)
        return taken

    async def run(self) -> None:
        """Send what waits, one group after the other, until cancelled."""
        try:
            while True:
                await self._work.wait()
                async with self._turn:
                    # Whoever can run now may still join the group; and who was in the last one
                    # comes back with the next: alone, the first of them would cost all an fsync.
                    await asyncio.sleep(0)
                    while group := self._take():
                        await self._send_group(group)
                        await asyncio.sleep(0)
                self._work.clear()
        finally:
            self._closed = True
            _fail(self._waiting)

    async def _wire(self, append: Append) -> Wire:
        to = subject.writable(append.subject)
        payload = event.encode(append.event)
        if len(payload) > INLINE_MAX:
            append = await self._offload(append)
            payload = event.encode(append.event)
        headers = event.headers_of(append.event)
        # Before anything is sent: half a batch would stay open at the server for a while.
        size, limit = len(payload) + _BATCH_HEADERS, self._connection.max_payload
        if size > limit // 2 and (size := size + size_of(headers)) > limit:
            raise TooLarge(to, size, limit)
        return to_wire(to, payload, headers, append.expected_sequence)

    async def _store(self, wires: list[Wire]) -> list[PubAck]:
        if not self._closed and (self._turn.locked() or self._waiting):
            return await self._enqueue(wires)
        # Nobody is there to share with: the way through the queue would only cost time.
        async with self._turn:
            return await self._sender.settle(wires)

    async def _enqueue(self, wires: list[Wire]) -> list[PubAck]:
        future: asyncio.Future[list[PubAck]] = asyncio.get_running_loop().create_future()
        unit = _Unit(wires, future, sum(len(wire.payload) + 200 for wire in wires))
        self._waiting.append(unit)
        self._work.set()
        # Not to be un-sent: a caller who gives up leaves the outcome to the server.
        return await future

    def _take(self) -> list[_Unit]:
        """The next group: no subject twice where one has an expectation, no id twice."""
        group: list[_Unit] = []
        later: list[_Unit] = []
        ids: set[str] = set()
        plain: set[str] = set()
        fenced: set[str] = set()
        count = size = 0
        while self._waiting:
            unit = self._waiting.popleft()
            own = {wire.id for wire in unit.wires}
            clash = bool(own & ids) or any(
                wire.subject in fenced or (wire.expected is not None and wire.subject in plain)
                for wire in unit.wires
            )
            full = count + len(unit.wires) > BATCH_MAX or size + unit.size > BATCH_MAX_BYTES
            if group and (clash or full):
                later.append(unit)
                if full:
                    break
                continue
            group.append(unit)
            count, size = count + len(unit.wires), size + unit.size
            ids |= own
            for wire in unit.wires:
                (plain if wire.expected is None else fenced).add(wire.subject)
        self._waiting.extendleft(reversed(later))
        return group

    async def _send_group(self, group: list[_Unit]) -> None:
        try:
            if not await self._send_together(group):
                left = await self._send_apart(group)
                async with task_group() as tasks:
                    for unit in left:
                        tasks.start_soon(self._send_unit, unit)
        except asyncio.CancelledError:
            _fail(group)
            raise

    async def _send_together(self, group: list[_Unit]) -> bool:
        """One batch for all; False where its members are to be sent one by one."""
        wires = [wire for unit in group for wire in unit.wires]
        if len(group) == 1 or (
            # a commit has to pay for a batch in any case
            len(wires) == len(group) and not self._cost.favours_batch(len(wires))
        ):
            return False
        start = anyio.current_time()
        try:
            acks = await self._sender.send(wires)
        except BusError:
            return False
        self._cost.batch_took(anyio.current_time() - start, len(wires))
        each = iter(acks)
        for unit in group:
            _settle(unit, list(islice(each, len(unit.wires))))
        return True

    async def _send_apart(self, group: list[_Unit]) -> list[_Unit]:
        """All single appends at once; returns what that did not settle."""
        connection = self._connection
        left = [unit for unit in group if len(unit.wires) > 1]
        sent: list[tuple[_Unit, str, asyncio.Future[Reply]]] = []
        start = anyio.current_time()
        try:
            for unit in group:
                if len(unit.wires) == 1:
                    wire = unit.wires[0]
                    reply, answer = connection.expect(wire.subject)
                    sent.append((unit, reply, answer))
                    await connection.send(wire.subject, wire.payload, wire.headers, reply)
            for unit, _, answer in sent:
                wire = unit.wires[0]
                message = await connection.answer(answer, wire.subject, ANSWER_SECONDS)
                _settle(unit, [ack_of(message, wire)])
            if sent:
                self._cost.appends_took(anyio.current_time() - start, len(sent))
        except BusError:
            left = [unit for unit in group if not unit.done.done()]
        finally:
            for _, reply, _ in sent:
                connection.forget(reply)
        return left

    async def _send_unit(self, unit: _Unit) -> None:
        try:
            acks = await self._sender.settle(unit.wires)
        except StratumError as error:
            if not unit.done.done():
                unit.done.set_exception(error)
                unit.done.exception()  # the waiter may have been cancelled
        else:
            _settle(unit, acks)

    async def _bulk(self, wires: list[Wire]) -> None:
        try:
            if len(wires) > 1:
                await patiently(self._connection, lambda: self._sender.send(wires))
                return
        except BusError:
            pass  # one of them is a duplicate or refused: each for itself
        for start in range(0, len(wires), BULK_BATCH // 10):
            async with task_group() as tasks:
                for wire in wires[start : start + BULK_BATCH // 10]:
                    tasks.start_soon(self._sender.settle, [wire])


def _settle(unit: _Unit, acks: list[PubAck]) -> None:
    if not unit.done.done():  # else whoever waited gave up
        unit.done.set_result(acks)


def _fail(units: Iterable[_Unit]) -> None:
    for unit in units:
        if not unit.done.done():
            unit.done.set_exception(ConnectionLost("the connection was closed"))
            unit.done.exception()


async def _each(appends: Iterable[Append] | AsyncIterable[Append]) -> AsyncIterator[Append]:
    if isinstance(appends, AsyncIterable):
        async for append in appends:
            yield append
    else:
        for append in appends:
            yield append


async def _chunks(appends: AsyncIterable[Append]) -> AsyncIterator[list[Append]]:
    chunk: list[Append] = []
    async for append in appends:
        if subject.stream_of(append.subject) != _GROUPED:
            raise ValueError(f"{append.subject} is not of stream {_GROUPED}: no bulk publishing")
        chunk.append(append)
        if len(chunk) == BULK_BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
