"""Consuming: an agent's durable consumer, and what happens to each message delivered to it.

One delivery goes decode → handle → settle. Delivery is at least once; the outcome is a closed set.
An exception means: try again later; when the attempts are used up, or the handler rejects the
event, or it cannot be read, a dead letter says so in the log before the message is settled.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Awaitable, Callable, Sequence

import anyio
import msgspec

from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import (
    BlobError,
    BusError,
    ConnectionLost,
    InvalidEvent,
    NoAnswer,
    NoStream,
    StorageFull,
)
from stratum_bus.event import RawEvent
from stratum_bus.hand import Hand
from stratum_bus.handover import Presence, reclaim
from stratum_bus.jetstream import Reply
from stratum_bus.message import Message, delivered, from_delivery
from stratum_bus.pull import NS, Pull
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.consume")

STREAM = "LOG"
LOST_SERVER = (ConnectionLost, NoAnswer, StorageFull)
"""Errors that say nothing about the event in hand: its handling waits and starts again."""


class Done(msgspec.Struct, frozen=True):
    """The event is handled."""


class RetryLater(msgspec.Struct, frozen=True):
    """Deliver it again, after `delay_seconds` or after the backoff of its attempt."""

    reason: str = ""
    delay_seconds: float | None = None


class Reject(msgspec.Struct, frozen=True):
    """It can never be handled: a dead letter at once."""

    reason: str


class Leave(msgspec.Struct, frozen=True):
    """Another worker has it: settle nothing."""


Outcome = Done | RetryLater | Reject | Leave


class Delivery(msgspec.Struct, frozen=True):
    """One message in hand. `attempt` counts its deliveries, this one included."""

    message: Message
    event: RawEvent
    attempt: int


Handler = Callable[[Delivery], Awaitable[Outcome | None]]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and when an event is tried again.

    The delay before attempt n + 1 is `first_seconds` * 2^(n-1), at most `max_seconds`, with up to
    half of it taken off at random. An event delivered `max_deliveries` times is not handed out
    again, whatever happened to it: it probably kills who takes it.
    """

    max_attempts: int = 5
    first_seconds: float = 1.0
    max_seconds: float = 300.0
    max_deliveries: int = 20

    def delay_seconds(self, attempt: int) -> float:
        full = min(self.first_seconds * 2 ** (attempt - 1), self.max_seconds)
        return float(full * random.uniform(0.5, 1.0))


async def ensure_consumer(
    bus: Bus,
    agent: str,
    filters: Sequence[str],
    *,
    stream: str = STREAM,
    ack_wait_seconds: float = 30.0,
) -> None:
    """Create or update the durable consumer of an agent on a stream, by the agent's name.

    A new consumer begins with the first message that its filters ever matched.
    """
    config = {
        "name": subject.token(agent, "agent name"),
        "durable_name": agent,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_seconds * NS),
        "max_deliver": -1,
        "max_ack_pending": 10_000,
        "filter_subjects": list(filters),
    }
    body = {"stream_name": stream, "config": config}
    await bus.connection.api(f"CONSUMER.CREATE.{stream}.{agent}", body)


async def consume(
    bus: Bus,
    agent: str,
    handler: Handler,
    *,
    stop: anyio.Event,
    follows: tuple[str, ...] = (),
    filters: Sequence[str] | None = None,
    stream: str = STREAM,
    concurrency: int = 16,
    ack_wait_seconds: float = 30.0,
    retry: Retry | None = None,
    grace_seconds: float = 10.0,
    hand: Hand | None = None,
) -> None:
    """Handle what the agent receives (or what `filters` say), up to `concurrency` events at
    once, until `stop` is set.

    Then no more is fetched, what is in hand may finish for `grace_seconds`, the rest is cancelled
    and given back. Events in hand are held by telling the server every third of
    `ack_wait_seconds` that they are worked on; a process that dies or blocks stops saying so.
    What an instance that is gone had in hand is taken over at the start, where this is the only
    one, else when `ack_wait_seconds` are over. `hand` is told what is in hand. A lost server is
    waited for. Raises NotFound or PermissionDenied where the stream is not there for this user.
    """
    wanted = subject.inbox_filters(agent, follows) if filters is None else list(filters)

    async def ensure() -> None:
        await ensure_consumer(bus, agent, wanted, stream=stream, ack_wait_seconds=ack_wait_seconds)

    async def take_over() -> None:
        if await presence.is_first():
            await reclaim(bus, stream, agent, wanted)

    await _waiting_for_server(bus, ensure)
    worker = _Worker(bus, agent, handler, retry or Retry(), concurrency, stream, hand or Hand())
    async with Presence(bus, stream, agent).announced() as presence, task_group() as tasks:
        await _waiting_for_server(bus, take_over)
        presence.working()
        tasks.start_soon(worker.say_in_progress, ack_wait_seconds / 3)
        await worker.run(stop, ensure, grace_seconds)
        tasks.cancel_scope.cancel()


async def _waiting_for_server(bus: Bus, step: Callable[[], Awaitable[None]]) -> None:
    """Take a step of starting, again as long as the server is lost."""
    while True:
        try:
            await step()
            return
        except LOST_SERVER as error:
            if bus.connection.closed:
                raise
            log.debug("starting waits for the server: %s", error)
            await anyio.sleep(0.2)


class _Worker:
    def __init__(
        self,
        bus: Bus,
        agent: str,
        handler: Handler,
        retry: Retry,
        concurrency: int,
        stream: str,
        hand: Hand,
    ) -> None:
        self._bus = bus
        self._agent = agent
        self._handler = handler
        self._retry = retry
        self._concurrency = concurrency
        self._stream = stream
        self._hand = hand
        self._waiting = 0
        self._in_hand: dict[str, Reply] = {}
        self._arrivals, self._queue = anyio.create_memory_object_stream[Reply](float("inf"))
        self._pull = Pull(bus.connection, self._arrive)

    async def run(
        self,
        stop: anyio.Event,
        ensure: Callable[[], Awaitable[None]],
        grace_seconds: float,
    ) -> None:
        async with task_group() as handlers:
            async with self._pull.subscribed(), task_group() as fetching:
                for _ in range(self._concurrency):
                    handlers.start_soon(self._work)
                fetching.start_soon(self._fetch, ensure)
                await stop.wait()
                fetching.cancel_scope.cancel()
            # What arrived while the subscription was drained is given back at once.
            while self._waiting:
                await self._give_back(self._queue_nowait())
            await self._arrivals.aclose()
            handlers.cancel_scope.deadline = anyio.current_time() + grace_seconds
        self._queue.close()
        for reply in list(self._in_hand.values()):
            log.warning("%s: gave back %s, its time to finish was over", self._agent, reply.subject)
            with anyio.CancelScope(shield=True):
                await self._give_back(reply)

    async def _give_back(self, reply: Reply) -> None:
        await self._settle(reply, b"-NAK")
        at = delivered(reply.reply)
        self._hand.drop(at.stream, at.stream_sequence, settled=False)

    def _arrive(self, reply: Reply) -> None:
        at = delivered(reply.reply)
        self._hand.take(at.stream, at.stream_sequence, reply.subject, at.deliveries, at.pending)
        self._waiting += 1
        self._arrivals.send_nowait(reply)

    def _queue_nowait(self) -> Reply:
        self._waiting -= 1
        return self._queue.receive_nowait()

    async def _fetch(self, ensure: Callable[[], Awaitable[None]]) -> None:
        connection = self._bus.connection
        while True:
            try:
                if self._pull.broken:
                    await connection.wait_connected(60)
                    await ensure()
                    self._pull.open()
                busy = self._waiting + len(self._in_hand) + self._pull.outstanding
                free = 2 * self._concurrency - busy
                if free >= max(1, self._concurrency // 2):
                    await self._pull.ask(self._stream, self._agent, free)
                await self._pull.wait(1.0)
            except (*LOST_SERVER, NoStream) as error:
                log.debug("%s waits for the server: %s", self._agent, error)
                self._pull.invalidate()
                await anyio.sleep(0.2)

    async def say_in_progress(self, every_seconds: float) -> None:
        while True:
            await anyio.sleep(every_seconds)
            for reply in list(self._in_hand.values()):
                await self._settle(reply, b"+WPI")

    async def _work(self) -> None:
        async for reply in self._queue:
            self._waiting -= 1
            self._in_hand[reply.reply] = reply
            await self._deliver(reply)
            del self._in_hand[reply.reply]
            self._pull.changed.set()

    async def _deliver(self, reply: Reply) -> None:
        """Decode, handle, settle. The message stays in hand where the server is lost."""
        while True:
            try:
                at = delivered(reply.reply)
                message = from_delivery(reply, at)
                outcome = await self._outcome(message, at.deliveries)
                verdict = await self._verdict(message, at.deliveries, outcome)
                await self._settle(reply, verdict)
                self._hand.drop(at.stream, at.stream_sequence, settled=verdict[:1] == b"+")
                return
            except LOST_SERVER as error:
                log.info("%s: %s waits: %s", self._agent, reply.subject, error)
                await self._wait_for_server()

    async def _outcome(self, message: Message, attempt: int) -> Outcome | dead.Cause:
        if attempt > self._retry.max_deliveries:
            return dead.Cause("undeliverable", f"delivered {attempt - 1} times, never settled")
        try:
            event = await self._bus.event(message)
        except (InvalidEvent, BlobError) as error:
            return dead.Cause("unreadable", str(error))
        try:
            outcome = await self._handler(Delivery(message, event, attempt)) or Done()
        except LOST_SERVER:
            raise
        except InvalidEvent as error:
            return dead.Cause("unreadable", str(error))
        except Exception as error:  # noqa: BLE001 - whatever the handler raises means: retry
            log.warning("%s: attempt %d at %s: %r", self._agent, attempt, event.id, error)
            if attempt < self._retry.max_attempts:
                return RetryLater(repr(error))
            return dead.Cause("failed", repr(error), traceback.format_exc(limit=-8))
        if isinstance(outcome, Reject):
            return dead.Cause("rejected", outcome.reason)
        if isinstance(outcome, RetryLater) and attempt >= self._retry.max_attempts:
            return dead.Cause("failed", outcome.reason or "asked for more attempts than allowed")
        if not isinstance(outcome, Done | RetryLater | Leave):
            return dead.Cause("failed", f"the handler returned {outcome!r}, which is no outcome")
        return outcome

    async def _verdict(
        self, message: Message, attempt: int, outcome: Outcome | dead.Cause
    ) -> bytes:
        """What to tell the server; a dead letter is in the log before its message is settled."""
        match outcome:
            case dead.Cause():
                await dead.bury(self._bus, self._agent, message, attempt, outcome)
                return f"+TERM {outcome.reason}: {outcome.detail[:200]}".encode()
            case RetryLater(delay_seconds=seconds):
                delay = self._retry.delay_seconds(attempt) if seconds is None else seconds
                return b"-NAK " + msgspec.json.encode({"delay": int(delay * NS)})
            case Leave():
                return b""
            case _:
                return b"+ACK"

    async def _settle(self, reply: Reply, verdict: bytes) -> None:
        if not verdict:
            return
        try:
            await self._bus.connection.send(reply.reply, verdict)
        except BusError as error:
            # It will be delivered again, which every handler must bear anyhow.
            log.debug("%s: not settled: %s", self._agent, error)

    async def _wait_for_server(self) -> None:
        while True:
            await anyio.sleep(0.2)
            try:
                await self._bus.connection.wait_connected(60)
                await self._bus.connection.api(f"STREAM.INFO.{STREAM}")
                return
            except (*LOST_SERVER, NoStream) as error:
                log.debug("%s still waits: %s", self._agent, error)
