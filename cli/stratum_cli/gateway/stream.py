"""Server-Sent Events: the log as a browser reads it, in order, from where it was left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import combinations

import anyio
import msgspec
from msgspec import Raw
from starlette.requests import Request
from starlette.types import Message as Sent
from starlette.types import Receive, Scope, Send

from stratum_bus import event as events
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent, StratumError
from stratum_bus.message import Message
from stratum_bus.read import Reader
from stratum_bus.subject import covers
from stratum_bus.tasks import task_group
from stratum_cli import position
from stratum_cli.gateway.problem import Problem

log = logging.getLogger("stratum.gateway")

HEARTBEAT_SECONDS = 15.0
STALL_SECONDS = 30.0
"""A reader that takes nothing for so long is sent away; it may come again."""

WINDOW_MESSAGES = 64
RETRY_MILLISECONDS = 1000
FILTERS_MAX = 32

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
_as_object = msgspec.json.Decoder(dict[str, Raw]).decode


def filters(asked: Sequence[str]) -> list[str]:
    """What the server takes as filters. Raises InvalidName, and Problem for what overlaps."""
    if len(asked) > FILTERS_MAX:
        raise Problem(400, f"{len(asked)} subjects: at most {FILTERS_MAX} are read at once")
    each = list(dict.fromkeys(subject.pattern(one) for one in asked))
    left = [one for one in each if not any(o != one and covers(o, one) for o in each)]
    for one, other in combinations(left, 2):
        if subject.overlap(one, other):
            raise Problem(400, f"{one} and {other} overlap: ask for each by itself")
    return left


def start(request: Request) -> int | datetime | None:
    """Where to begin: behind `Last-Event-ID`, else at `from`, else with what comes from now on.

    Raises Problem, Usage.
    """
    last = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    if last:
        if not (last.isascii() and last.isdigit() and len(last) < 19):
            raise Problem(400, f"Last-Event-ID {last[:40]!r} is no sequence")
        return int(last) + 1
    begin = request.query_params.get("from", "now")
    return None if begin == "now" else position.parse(begin, "from")


class EventStream:
    """An answer that goes on until whoever asked goes, or the gateway stops.

    `count` is called with how many events were sent. `begun`: it has been answered with 200.
    """

    def __init__(
        self,
        bus: Bus,
        wanted: Sequence[str],
        start: int | datetime | None,
        stop: anyio.Event,
        count: Callable[[int], None],
    ) -> None:
        self._bus = bus
        self._wanted = wanted
        self._start = start
        self._stop = stop
        self._count = count
        self.begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises what opening a reading raises; nothing was answered then."""
        reading = self._bus.read(
            "LOG", filters=self._wanted, start=self._start, follow=True, window=WINDOW_MESSAGES
        )
        stalled = False
        async with reading as reader:
            if isinstance(self._start, int) and self._start > reader.stored + 1:
                text = f"{self._start - 1} is behind the log's last sequence, {reader.stored}"
                raise Problem(400, text)
            self.begun = True
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            async with task_group() as tasks:

                async def end_with(wait: Callable[[], object]) -> None:
                    await wait()  # type: ignore[misc]
                    tasks.cancel_scope.cancel()

                tasks.start_soon(end_with, self._stop.wait)
                tasks.start_soon(end_with, lambda: _gone(receive))
                try:
                    await self._send_all(reader, send)
                except TimeoutError:
                    log.info("a reader took nothing for %g s: sent away", STALL_SECONDS)
                    stalled = True
                except StratumError as error:
                    log.warning("a stream ended: %s", error)
                tasks.cancel_scope.cancel()
        if stalled:
            return
        with anyio.move_on_after(1.0):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, reader: Reader, send: Send) -> None:
        await _push(send, b"retry: %d\n\n" % RETRY_MILLISECONDS)
        while not reader.ended:
            messages = await reader.batch(WINDOW_MESSAGES, HEARTBEAT_SECONDS, gather=False)
            if not messages:
                await _push(send, b": still here\n\n")
                continue
            for message in messages:
                await _push(send, await self._shown(message))
            self._count(len(messages))

    async def _shown(self, message: Message) -> bytes:
        """One event of the stream. What cannot be read is said, under a name of its own."""
        try:
            kind, data = b"", await self._envelope(message)
        except (InvalidEvent, BlobError) as error:
            place = {"sequence": message.sequence, "subject": message.subject}
            kind, data = (
                b"event: unreadable\n",
                msgspec.json.encode({**place, "reason": str(error)}),
            )
        return b"id: %d\n%sdata: %s\n\n" % (message.sequence, kind, data)

    async def _envelope(self, message: Message) -> bytes:
        """The event as one line of JSON: completed, with large data brought in, else as stored."""
        found = message.event()
        payload = message.payload
        if b"\n" in payload or b"\r" in payload:
            payload = msgspec.json.format(payload, indent=-1)
        stored = _members(payload)
        if "specversion" not in stored:
            return events.encode(found)
        if found.dataref or "time" not in stored:
            added = _as_object(events.encode(await self._bus.with_data(found)))
            whole = {**added, **stored}
            if "data" in whole:
                whole.pop("dataref", None)
            return msgspec.json.encode(whole)
        return payload


def _members(payload: bytes) -> dict[str, Raw]:
    try:
        return _as_object(payload)
    except msgspec.MsgspecError:  # binary mode, or data that is no object
        return {}


async def _push(send: Send, body: bytes) -> None:
    """Raises TimeoutError where nobody takes it."""
    with anyio.fail_after(STALL_SECONDS):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _gone(receive: Receive) -> None:
    sent: Sent = {"type": ""}
    while sent["type"] != "http.disconnect":
        sent = await receive()
