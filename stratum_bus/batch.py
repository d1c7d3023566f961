"""What is stored as a whole: one message, or an atomic batch, sent until its outcome is known.

An answer may be lost. What is sent again is known by its ids: the server takes no id twice within
its dedupe window, and where an expectation does not hold any more, the log tells whose fault it is.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from stratum_bus import subject
from stratum_bus.errors import BusError, PermissionDenied, Refused, StorageFull, WrongSequence
from stratum_bus.event import HEADER_ID
from stratum_bus.jetstream import Connection, Reply, api_answer
from stratum_bus.patience import patiently
from stratum_bus.read import find_by_ids, next_after, read

ANSWER_SECONDS = 5.0

_DUPLICATE, _INCOMPLETE = 10201, 10176
# Incomplete: the server restarted in the middle. The others: it asks to come back later.
_PASSING = (_INCOMPLETE, 10158, 10163, 10167, 10210, 10211)
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"


class PubAck(msgspec.Struct, frozen=True):
    """The server has stored it, synced as its settings say. `duplicate`: it already had it."""

    stream: str
    sequence: int
    duplicate: bool = False


class Wire(msgspec.Struct, frozen=True):
    """A message as it goes out, `expected` included in its headers."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    expected: int | None

    @property
    def id(self) -> str:
        return self.headers[HEADER_ID]


def to_wire(subject: str, payload: bytes, headers: dict[str, str], expected: int | None) -> Wire:
    if expected is not None:
        headers = {**headers, _EXPECTED: str(expected)}
    return Wire(subject, payload, headers, expected)


def ack_of(reply: Reply, wire: Wire) -> PubAck:
    """Raises what the server refused the message with."""
    answer = api_answer(reply, wire.subject, wire.expected)
    return PubAck(answer["stream"], answer["seq"], answer.get("duplicate", False))


class Sender:
    """Sends over one connection; batches are written one after the other."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._writing = asyncio.Lock()

    async def settle(self, wires: Sequence[Wire]) -> list[PubAck]:
        """Send until the outcome is known or the connection's patience is over."""
        return await patiently(self._connection, lambda: self._attempt(wires), passing=_PASSING)

    async def send(self, wires: Sequence[Wire]) -> list[PubAck]:
        """Send once, as one message or one atomic batch."""
        if len(wires) > 1:
            return await self._batch(wires)
        reply = await self._connection.request(
            wires[0].subject, wires[0].payload, wires[0].headers, timeout_seconds=ANSWER_SECONDS
        )
        return [ack_of(reply, wires[0])]

    async def _attempt(self, wires: Sequence[Wire]) -> list[PubAck]:
        try:
            return await self.send(wires)
        except WrongSequence:
            if acks := await self._already(wires):
                return acks
            raise
        except Refused as error:
            if error.code != _DUPLICATE:
                raise
            # An expectation says where to look; without one a part of the stream is searched.
            return await self._already(wires) or await self._without_stored(wires, error)

    async def _already(self, wires: Sequence[Wire]) -> list[PubAck]:
        """The acks of what an earlier attempt has stored, where an expectation says where to look.

        Raises WrongSequence where somebody else has written what was expected not to be there.
        """
        place: tuple[str, int] | None = None
        for at, wire in enumerate(wires):
            if wire.expected is None:
                continue
            stream = subject.stream_of(wire.subject)
            found = await next_after(self._connection, stream, wire.subject, wire.expected)
            if found is not None and found.id != wire.id:
                raise WrongSequence(wire.subject, wire.expected, found.sequence)
            if found is not None and place is None:
                place = stream, found.sequence - at
        if place is None:
            return []
        stream, first = place
        if len(wires) > 1 and not await self._stand_from(wires, stream, first):
            stored = await self._stored(wires)
            if len(stored) < len(wires):
                return []
            return [PubAck(stream, stored[wire.id], True) for wire in wires]
        return [PubAck(stream, first + i, True) for i in range(len(wires))]

    async def _stand_from(self, wires: Sequence[Wire], stream: str, first: int) -> bool:
        end = first + len(wires) - 1
        async with read(self._connection, stream, start=first, end=end) as reader:
            ids = [message.id async for message in reader]
        return ids == [wire.id for wire in wires]

    async def _without_stored(self, wires: Sequence[Wire], error: Refused) -> list[PubAck]:
        """A batch with an id that the stream has is refused whole: send what is new of it."""
        stored = await self._stored(wires)
        if not stored:
            raise error
        stream = subject.stream_of(wires[0].subject)
        new = [wire for wire in wires if wire.id not in stored]
        acks = (
            dict(zip((wire.id for wire in new), await self._attempt(new), strict=True))
            if new
            else {}
        )
        return [acks.get(wire.id) or PubAck(stream, stored[wire.id], True) for wire in wires]

    async def _stored(self, wires: Sequence[Wire]) -> dict[str, int]:
        """The sequences of those that were stored lately, by id."""
        stream = subject.stream_of(wires[0].subject)
        subjects = dict.fromkeys(wire.subject for wire in wires)
        return await find_by_ids(self._connection, stream, list(subjects), {w.id for w in wires})

    async def _batch(self, wires: Sequence[Wire]) -> list[PubAck]:
        """One atomic batch (ADR-50). Only the first and the last message are answered."""
        connection, batch = self._connection, uuid.uuid4().hex
        opened_to, opened = connection.expect(wires[0].subject)
        commit_to, committed = connection.expect(wires[-1].subject)
        subjects = {wire.subject.lower(): wire.subject for wire in wires}

        def fail(denied: PermissionDenied | None) -> None:
            if denied and denied.subject.lower() in subjects and not committed.done():
                asked = subjects[denied.subject.lower()]
                committed.set_exception(PermissionDenied(asked, denied.operation))

        stop_listening = connection.on_change(fail)
        try:
            async with self._writing:
                for number, wire in enumerate(wires, 1):
                    headers = {
                        **wire.headers,
                        "Nats-Batch-Id": batch,
                        "Nats-Batch-Sequence": str(number),
                    }
                    reply = opened_to if number == 1 else ""
                    if number == len(wires):
                        headers["Nats-Batch-Commit"] = "1"
                        reply = commit_to
                    await connection.send(wire.subject, wire.payload, headers, reply)
            answer = await self._batch_answer(wires, opened, committed)
        finally:
            stop_listening()
            connection.forget(opened_to)
            connection.forget(commit_to)
        first = answer["seq"] - len(wires) + 1
        return [PubAck(answer["stream"], first + i) for i in range(len(wires))]

    async def _batch_answer(
        self,
        wires: Sequence[Wire],
        opened: asyncio.Future[Reply],
        committed: asyncio.Future[Reply],
    ) -> dict[str, Any]:
        # An answer does not say which message it is about: an expectation is the likely one.
        guilty = next((wire for wire in wires if wire.expected is not None), wires[-1])
        reply = await self._connection.answer(committed, wires[-1].subject, ANSWER_SECONDS)
        try:
            return api_answer(reply, guilty.subject, guilty.expected)
        except StorageFull:
            raise
        except BusError:
            # Where the batch could not even be opened, the first answer has the cause.
            if opened.done() and (first := opened.result()).payload:
                api_answer(first, guilty.subject, guilty.expected)
            raise
