"""Consuming: an agent's durable consumer, and what happens to each message delivered to it.

One delivery goes decode → handle → settle. Delivery is at least once; the outcome is a closed set.
An exception means: try again later; when the attempts are used up, or the handler rejects the
event, or it cannot be read, a dead letter says so in the log before the message is settled.
"""

from __future__ import annotations

import asyncio
import logging
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
    PermissionDenied,
    Refused,
    StorageFull,
)
from stratum_bus.event import RawEvent
from stratum_bus.hand import Hand
from stratum_bus.handler import (
    Delivery,
    Done,
    Handler,
    Leave,
    Outcome,
    Reject,
    Retry,
    RetryLater,
)
from stratum_bus.handover import Presence, reclaim
from stratum_bus.jetstream import Reply
from stratum_bus.message import Delivered, Message, delivered, from_delivery
from stratum_bus.pull import NS, Pull
from stratum_bus.tasks import task_group

__all__ = (
    "LOST_SERVER",
    "Delivery",
    "Done",
    "Handler",
    "Leave",
    "Outcome",
    "Reject",
    "Retry",
    "RetryLater",
    "consume",
    "ensure_consumer",
)

log = logging.getLogger("stratum.consume")

STREAM = "LOG"
LOST_SERVER = (ConnectionLost, NoAnswer, StorageFull)
"""Errors that say nothing about the event in hand: its handling waits and starts again."""

PAUSE_SECONDS, PAUSE_MAX_SECONDS = 0.2, 5.0
GIVE_BACK_SECONDS = 2.0
_BEING_DELETED, _TRIES = 10149, 10
"""The server's error for an update of what somebody deletes at that moment: soon it can be made."""

DELAY_MAX_SECONDS = 366 * 86_400


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
    for left in reversed(range(_TRIES)):
        try:
            await bus.connection.api(f"CONSUMER.CREATE.{stream}.{agent}", body)
            return
        except Refused as error:
            if error.code != _BEING_DELETED or not left:
                raise
        await anyio.sleep(PAUSE_SECONDS)


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
    if concurrency < 1:
        raise ValueError(f"{agent}: concurrency must be at least 1, not {concurrency}")
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
            await anyio.sleep(PAUSE_SECONDS)


class _Held(msgspec.Struct, frozen=True, gc=False):
    """A message in hand, and what the server said of its delivery."""

    reply: Reply
    at: Delivered


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
        self._held: dict[int, _Held] = {}
        self._queue: asyncio.Queue[int | None] = asyncio.Queue()
        self._changes = 0
        self._pull = Pull(bus.connection, self._arrive)

    async def run(
        self,
        stop: anyio.Event,
        ensure: Callable[[], Awaitable[None]],
        grace_seconds: float,
    ) -> None:
        stop_listening = self._bus.connection.on_change(self._on_change)
        try:
            async with task_group() as handlers:
                async with self._pull.subscribed(), task_group() as fetching:
                    for _ in range(self._concurrency):
                        handlers.start_soon(self._work)
                    fetching.start_soon(self._fetch, ensure)
                    await stop.wait()
                    fetching.cancel_scope.cancel()
                # What arrived while the subscription was drained is given back at once.
                while (sequence := _next(self._queue)) is not None:
                    await self._give_back(sequence)
                for _ in range(self._concurrency):
                    self._queue.put_nowait(None)
                handlers.cancel_scope.deadline = anyio.current_time() + grace_seconds
        finally:
            stop_listening()
            with anyio.move_on_after(GIVE_BACK_SECONDS, shield=True):
                for sequence, held in list(self._held.items()):
                    log.warning("%s: gave back unfinished %s", self._agent, held.reply.subject)
                    await self._give_back(sequence)

    def _on_change(self, denied: PermissionDenied | None) -> None:
        self._changes += denied is None

    def _arrive(self, reply: Reply) -> None:
        at = delivered(reply.reply)
        known = at.stream_sequence in self._held
        self._held[at.stream_sequence] = _Held(reply, at)
        if known:
            return  # the server took it for lost; an instance handles it once at a time
        self._hand.take(at.stream, at.stream_sequence, reply.subject, at.deliveries, at.pending)
        self._queue.put_nowait(at.stream_sequence)

    async def _fetch(self, ensure: Callable[[], Awaitable[None]]) -> None:
        connection = self._bus.connection
        while True:
            try:
                if self._pull.broken:
                    await connection.wait_connected(60)
                    await ensure()
                    self._pull.open()
                if self._is_low():
                    await self._pull.ask(self._stream, self._agent, self._free())
                await self._pull.wait(1.0)
            except (*LOST_SERVER, NoStream) as error:
                if connection.closed:
                    raise
                log.debug("%s waits for the server: %s", self._agent, error)
                self._pull.invalidate()
                await anyio.sleep(PAUSE_SECONDS)

    def _free(self) -> int:
        return 2 * self._concurrency - len(self._held) - self._pull.outstanding

    def _is_low(self) -> bool:
        return self._free() >= max(1, self._concurrency // 2)

    async def say_in_progress(self, every_seconds: float) -> None:
        while True:
            await anyio.sleep(every_seconds)
            for held in list(self._held.values()):
                await self._tell(held.reply, b"+WPI")

    async def _work(self) -> None:
        while (sequence := await self._queue.get()) is not None:
            await self._deliver(sequence)
            if self._is_low():
                self._pull.changed.set()

    async def _deliver(self, sequence: int) -> None:
        """Decode, handle, settle. The message stays in hand where the server is lost."""
        held = self._held[sequence]
        attempt = held.at.deliveries
        message = from_delivery(held.reply, held.at)
        pause = PAUSE_SECONDS
        while True:
            try:
                outcome = await self._outcome(message, attempt)
                await self._settle(sequence, await self._verdict(message, attempt, outcome))
                return
            except LOST_SERVER as error:
                log.info("%s: %s waits: %s", self._agent, message.subject, error)
                await self._wait_for_server(pause)
                pause = min(2 * pause, PAUSE_MAX_SECONDS)

    async def _outcome(self, message: Message, attempt: int) -> Outcome | dead.Cause:
        if attempt > self._retry.max_deliveries:
            return dead.Cause("undeliverable", f"delivered {attempt - 1} times, never settled")
        try:
            event = await self._bus.event(message)
        except (InvalidEvent, BlobError) as error:
            return dead.Cause("unreadable", str(error))
        changes = self._changes
        try:
            outcome = await self._handler(Delivery(message, event, attempt)) or Done()
        except InvalidEvent as error:
            return dead.Cause("unreadable", str(error))
        except LOST_SERVER as error:
            if await self._server_was_lost(error, changes):
                raise
            return self._failed(event, attempt, error)
        except anyio.get_cancelled_exc_class() as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise
            return self._failed(event, attempt, error)  # something that the handler waited for
        except Exception as error:  # noqa: BLE001 - whatever the handler raises means: retry
            return self._failed(event, attempt, error)
        return self._checked(outcome, attempt)

    def _failed(
        self, event: RawEvent, attempt: int, error: BaseException
    ) -> RetryLater | dead.Cause:
        said = _said(error)
        log.warning("%s: attempt %d at %s: %s", self._agent, attempt, event.id, said)
        if attempt < self._retry.max_attempts:
            return RetryLater(said)
        return dead.Cause("failed", said, traceback.format_exc(limit=-8))

    def _checked(self, outcome: Outcome, attempt: int) -> Outcome | dead.Cause:
        match outcome:
            case Reject(reason=reason):
                return dead.Cause("rejected", str(reason))
            case RetryLater(reason=reason) if attempt >= self._retry.max_attempts:
                return dead.Cause("failed", reason or "asked for more attempts than allowed")
            case RetryLater(delay_seconds=None) | Done() | Leave():
                return outcome
            case RetryLater(delay_seconds=float() | int() as seconds) if (
                0 <= seconds <= DELAY_MAX_SECONDS
            ):
                return outcome
        return dead.Cause("failed", f"the handler returned {outcome!r}, which is no outcome")

    async def _verdict(
        self, message: Message, attempt: int, outcome: Outcome | dead.Cause
    ) -> bytes:
        """What to tell the server; a dead letter is in the log before its message is settled."""
        match outcome:
            case dead.Cause():
                await dead.bury(self._bus, self._agent, message, attempt, outcome)
                return b"+TERM " + dead.shown(f"{outcome.reason}: {outcome.detail}", 200).encode()
            case RetryLater(delay_seconds=seconds):
                delay = self._retry.delay_seconds(attempt) if seconds is None else seconds
                return b"-NAK " + msgspec.json.encode({"delay": int(delay * NS)})
            case Leave():
                return b""
            case _:
                return b"+ACK"

    async def _give_back(self, sequence: int) -> None:
        await self._settle(sequence, b"-NAK")

    async def _settle(self, sequence: int, verdict: bytes) -> None:
        """Out of hand; `verdict` is what the server is told, "" for nothing."""
        held = self._held.pop(sequence)
        self._hand.drop(held.at.stream, sequence, settled=verdict[:1] == b"+")
        if verdict:
            await self._tell(held.reply, verdict)

    async def _tell(self, reply: Reply, verdict: bytes) -> None:
        try:
            await self._bus.connection.send(reply.reply, verdict)
        except BusError as error:
            # It will be delivered again, which every handler must bear anyhow.
            log.debug("%s: not settled: %s", self._agent, error)

    async def _server_was_lost(self, error: BusError, changes: int) -> bool:
        """Whether an error of a handler is about our server, and not about another that it asked.

        `changes` counts the connection's before the handler began.
        """
        if isinstance(error, StorageFull) or self._changes != changes:
            return True
        try:
            await self._bus.connection.api(f"STREAM.INFO.{self._stream}")
        except (*LOST_SERVER, NoStream):
            return True
        return False

    async def _wait_for_server(self, pause: float) -> None:
        while True:
            await anyio.sleep(pause)
            try:
                await self._bus.connection.wait_connected(60)
                await self._bus.connection.api(f"STREAM.INFO.{self._stream}")
                return
            except (*LOST_SERVER, NoStream) as error:
                if self._bus.connection.closed:
                    raise
                log.debug("%s still waits: %s", self._agent, error)


def _next(queue: asyncio.Queue[int | None]) -> int | None:
    return None if queue.empty() else queue.get_nowait()


def _said(error: BaseException) -> str:
    try:
        return dead.shown(repr(error), dead.DETAIL_MAX)
    except Exception:  # noqa: BLE001 - of somebody else's class
        return f"{type(error).__name__}, which cannot be shown"
