"""Handing over what an instance that is gone had in hand, without waiting for `ack_wait`.

The server gives a message out again only when its time to be acknowledged is over. But whoever
starts as the only instance of an agent knows that nobody works on what is pending, and gives it
back at once. To know, each instance answers on a subject of its own as long as it lives.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

from stratum_bus.bus import Bus
from stratum_bus.errors import BusError
from stratum_bus.event import uuid7
from stratum_bus.jetstream import Reply
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.handover")

ANSWER_SECONDS = 0.05
"""How long others have to say that they live; one that is stopped or blocked counts as gone from
here on only by `ack_wait`, since its subscription is still there."""

GIVE_BACK = b"-NAK"
"""Have it delivered again at once."""

_STARTING, _WORKING = b"starting", b"working"


class Presence:
    """One instance among those of a consumer: starting, until it is `working`."""

    def __init__(self, bus: Bus, stream: str, consumer: str) -> None:
        self._bus = bus
        self._subject = f"alive.{stream}.{consumer}"
        self._id = uuid7().encode()
        self._state = _STARTING

    @asynccontextmanager
    async def announced(self) -> AsyncIterator[Presence]:
        """Answer others as long as the context."""
        connection = self._bus.connection
        async with task_group() as tasks:

            def answer(asked: Reply) -> None:
                tasks.start_soon(self._answer, asked.reply)

            async with connection.subscribe(self._subject, answer):
                yield self
            tasks.cancel_scope.cancel()

    async def is_first(self) -> bool:
        """Whether no other instance works, and none that starts now was before this one."""
        connection = self._bus.connection
        answers: list[Reply] = []
        inbox = connection.new_inbox()
        async with connection.subscribe(inbox, answers.append):
            await connection.send(self._subject, reply=inbox)
            await anyio.sleep(ANSWER_SECONDS)
        others = [reply.payload.split() for reply in answers if len(reply.payload.split()) == 2]
        return not any(
            id != self._id and (state == _WORKING or id < self._id) for state, id in others
        )

    def working(self) -> None:
        self._state = _WORKING

    async def _answer(self, reply: str) -> None:
        if reply:
            with suppress(BusError):  # whoever asked has lost the server too, and asks again
                await self._bus.connection.send(reply, self._state + b" " + self._id)


async def reclaim(bus: Bus, stream: str, consumer: str, filters: Sequence[str]) -> int:
    """Have all that is delivered and not settled delivered again at once; returns how many.

    Only for the first instance: others would lose what they have in hand.
    """
    info = await bus.connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
    count: int = info["num_ack_pending"]
    if not count:
        return 0
    first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]
    async with bus.read(stream, filters=filters, start=first, end=last) as reader:
        async for message in reader:
            await _send(bus, stream, consumer, message.sequence, info, GIVE_BACK)
    log.info("%s: took back %d that were in hand when it ended", consumer, count)
    return count


async def settle(
    bus: Bus, stream: str, consumer: str, sequences: Collection[int], verdict: bytes = GIVE_BACK
) -> int:
    """Settle what is in the hand of somebody who cannot do it any more; returns how many of all
    that were delivered are not yet settled.

    What was settled before stays as it is. Raises NotFound where there is no such consumer.
    """
    info = await bus.connection.api(f"CONSUMER.INFO.{stream}.{consumer}")
    for sequence in sequences:
        await _send(bus, stream, consumer, sequence, info, verdict)
    count: int = info["num_ack_pending"]
    return count


async def _send(
    bus: Bus, stream: str, consumer: str, sequence: int, info: dict[str, Any], verdict: bytes
) -> None:
    # The server looks at the stream sequence, and that the other lies behind the floor.
    place = f"1.{sequence}.{info['ack_floor']['consumer_seq'] + 1}.0.0"
    await bus.connection.send(f"$JS.ACK.{stream}.{consumer}.{place}", verdict)
