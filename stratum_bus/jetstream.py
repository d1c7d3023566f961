"""The connection to a NATS server: requests, core publishes and subscriptions.

Where the client library's errors end (only this module and `wire.py` import it): what leaves here
is of `errors.py`. Requests are answered through one inbox of our own, because the library's request call
turns a permission violation or a lost connection into a time-out; here both fail what waits at once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
import nats
import nats.errors
from nats.aio.msg import Msg

from stratum_bus import errors
from stratum_bus.errors import ConnectionLost, NoAnswer, NoStream, PermissionDenied, TooLarge
from stratum_bus.frames import Frames
from stratum_bus.refusal import refusal
from stratum_bus.wire import BulkClient, SturdyClient

log = logging.getLogger("stratum.connection")

REQUEST_SECONDS = 5.0
CLOSE_SECONDS = 2.0
HEADERS_MAX = 64 * 1024
SUBJECT_MAX = 4000
"""Characters of a subject and its reply subject together; the server takes lines of 4096."""

_STORED = "Nats-Time-Stamp"
_VIOLATION = re.compile(
    r'permissions violation for (publish|subscription) to "?([^"\s]+)"?', re.IGNORECASE
)
_RULE = "a header's name has letters, digits and signs that are no space, colon or line break"
_USER = re.compile(r"(?<=://)[^@/,]*@")


Listener = Callable[[PermissionDenied | None], None]


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A message as it came over the wire. `status` is the server's status code, "" for none."""

    subject: str
    reply: str
    payload: bytes
    headers: dict[str, str] | None

    @property
    def status(self) -> str:
        return self.headers.get("Status", "") if self.headers else ""


class Connection:
    """A connection that reconnects by itself for ever; made by `connect`.

    `patience_seconds` is how long a writer on this connection waits for a lost server before
    ConnectionLost is raised (0: at once). `options` is what the client library was given.
    """

    def __init__(
        self, url: str, name: str, patience_seconds: float, options: Mapping[str, Any], bulk: bool
    ) -> None:
        self.url = url
        self.name = name
        self.patience_seconds = patience_seconds
        self.options = options
        self._client: SturdyClient = BulkClient() if bulk else SturdyClient()
        self._tokens = itertools.count()
        self._waiting: dict[str, tuple[str, asyncio.Future[Reply]]] = {}
        self._listeners: set[Listener] = set()
        self._is_back = asyncio.Event()
        self._inbox = ""
        self._inbox_denied = False
        self._last_error: Exception | None = None
        self.back_since: float | None = None
        """When the connection came back, by the loop's clock: `inf` until that is known, None where it
        never broke."""

    @property
    def connected(self) -> bool:
        return self._client.is_connected

    @property
    def closed(self) -> bool:
        """Whether the connection has ended for good."""
        return self._client.is_closed

    @property
    def max_payload(self) -> int:
        """The server's limit of one message, in bytes."""
        return self._client.max_payload

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    def on_change(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` when the connection breaks or is back (with None), and when the server
        denies something (with the error); returns how to stop that."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    async def wait_connected(self, timeout_seconds: float) -> None:
        """Return when connected; raise ConnectionLost after the time or when closed for good."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.connected:
                    if self.closed:
                        break
                    self._is_back.clear()
                    await self._is_back.wait()
        except TimeoutError:
            pass
        if not self.connected:
            raise self._lost()

    async def send(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        reply: str = "",
    ) -> None:
        """Publish without an answer: it may be lost.

        Raises ConnectionLost, TooLarge, InvalidName for a subject or header that cannot be sent.
        """
        if not self.connected:
            raise self._lost(subject)
        # More than it takes, and the server ends the connection for good.
        size = len(payload)
        if size > self.max_payload - HEADERS_MAX:
            size += size_of(headers)
        if size > self.max_payload:
            raise TooLarge(subject, size, self.max_payload)
        if len(subject) + len(reply) > SUBJECT_MAX:
            raise errors.InvalidName("subject", subject, f"at most {SUBJECT_MAX} characters fit")
        try:
            await self._client.publish(subject, payload, reply, dict(headers) if headers else None)
        except nats.errors.BadSubjectError as error:
            rule = "it has a space, a line break or is empty"
            raise errors.InvalidName("subject", subject, rule) from error
        except UnicodeEncodeError as error:
            rule = "it, or a header, has a character that UTF-8 does not have"
            raise errors.InvalidName("subject", subject, rule) from error
        except nats.errors.BadHeaderError as error:
            raise errors.InvalidName("header", str(error).rpartition(": ")[2], _RULE) from error
        except (nats.errors.Error, OSError) as error:
            raise ConnectionLost(f"{self.url}: {error}", subject=subject) from error

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        timeout_seconds: float = REQUEST_SECONDS,
    ) -> Reply:
        """Publish and wait for one answer.

        Raises NoStream where nobody listens, PermissionDenied, TooLarge, ConnectionLost (the
        connection broke: the outcome is unknown) and NoAnswer (time over: unknown too).
        """
        reply, answer = self.expect(subject)
        try:
            await self.send(subject, payload, headers, reply)
            return await self.answer(answer, subject, timeout_seconds)
        finally:
            self.forget(reply)

    def expect(self, subject: str) -> tuple[str, asyncio.Future[Reply]]:
        """A reply subject and the future of its answer; `forget` it when done."""
        token = str(next(self._tokens))
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (subject, answer)
        return f"{self._inbox}.{token}", answer

    def forget(self, reply: str) -> None:
        _, answer = self._waiting.pop(reply.rpartition(".")[2], (None, None))
        if answer is not None and answer.done() and not answer.cancelled():
            answer.exception()  # an answer that nobody waits for any more is no warning

    async def answer(
        self, answer: asyncio.Future[Reply], subject: str, timeout_seconds: float
    ) -> Reply:
        """Wait for an expected answer."""
        try:
            if answer.done():  # as most are, where many were sent together
                message = answer.result()
            else:
                async with asyncio.timeout(timeout_seconds):
                    message = await answer
        except TimeoutError:
            text = f"{shown(self.url)} did not answer {subject} within {timeout_seconds:g} s"
            raise NoAnswer(text, subject=subject) from None
        # A stored message that is handed out may have a header `Status` of its own.
        if message.status == "503" and _STORED not in (message.headers or {}):
            raise NoStream(subject)
        return message

    async def api(
        self, subject: str, body: object | None = None, *, timeout_seconds: float = REQUEST_SECONDS
    ) -> dict[str, Any]:
        """A JetStream management request (`$JS.API.` is put before `subject`), in raw JSON.

        Raises NotFound, Refused with the server's code, and what `request` raises; NoStream
        means that JetStream is not enabled.
        """
        try:
            payload = msgspec.json.encode(body) if body is not None else b""
        except UnicodeEncodeError as error:
            kind = "request with a character that UTF-8 does not have"
            raise errors.EncodeError(subject, kind) from error
        reply = await self.request(f"$JS.API.{subject}", payload, timeout_seconds=timeout_seconds)
        answer: dict[str, Any] = msgspec.json.decode(reply.payload)
        if "error" in answer:
            raise refusal(subject, answer["error"])
        return answer

    @asynccontextmanager
    async def subscribe(
        self,
        subject: str,
        callback: Callable[[Reply], None],
        queue: str = "",
        on_frames: Callable[[Frames], None] | None = None,
        *,
        drain: bool = True,
    ) -> AsyncIterator[None]:
        """Call `callback` for each message, in order, until left.

        Leaving first hands over what the server had already sent, without `drain` it does not.
        `on_frames`, of which a connection made for it (`bulk`) takes one, is called with what a
        consumer delivers.
        """

        async def deliver(message: Msg) -> None:
            callback(Reply(message.subject, message.reply, message.data, message.headers))

        try:
            subscription = await self._client.subscribe(
                subject, queue, cb=deliver, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except nats.errors.BadSubjectError as error:
            rule = "it has a space, an empty token or a misplaced wildcard"
            raise errors.InvalidName("subject", subject, rule) from error
        except (nats.errors.Error, OSError) as error:
            raise self._lost(subject) from error
        if on_frames is not None:
            assert isinstance(self._client, BulkClient), "the connection was not made for it"
            self._client.take(subscription._id, on_frames)
        try:
            yield
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                try:
                    if self.connected and drain:
                        # What the server sends until it knows is not to be dropped, so it is told
                        # before the library's drain, which does not wait for that.
                        await self._client._send_unsubscribe(subscription._id)
                        await self._flush()
                        await subscription.drain()  # type: ignore[no-untyped-call]
                    elif not self.closed:
                        await subscription.unsubscribe()
                except nats.errors.Error as error:
                    log.debug("subscription %s ended badly: %r", subject, error)

    async def open(self) -> None:
        """Connect; raises ConnectionLost within about a second where there is no server, and
        PermissionDenied where this user may not receive answers."""
        try:
            await self._client.connect(
                self.url,
                name=self.name,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_connected,
                closed_cb=self._on_disconnected,
                connect_timeout=2,
                max_reconnect_attempts=2,
                reconnect_time_wait=0.1,  # type: ignore[arg-type]
                **self.options,
            )
            # Failing fast is for the first connect only.
            self._client.options["max_reconnect_attempts"] = -1
            self._inbox = self.new_inbox()
            answers = f"{self._inbox}.*"
            await self._client.subscribe(
                answers, cb=self._on_answer, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
            await self._flush()
        except (nats.errors.Error, OSError, ValueError) as error:
            reason = _plain(error, self._last_error)
            raise ConnectionLost(f"cannot connect to {shown(self.url)}: {reason}") from error
        if self._inbox_denied:
            raise PermissionDenied(answers, "subscribe to")

    async def close(self) -> None:
        """Send what is buffered and close; takes at most some seconds, cancelled or not."""
        with anyio.move_on_after(2 * CLOSE_SECONDS, shield=True):
            try:
                if self.connected:
                    async with asyncio.timeout(CLOSE_SECONDS):
                        await self._flush()
            except (nats.errors.Error, TimeoutError, OSError) as error:
                log.debug("closing %s: %r", shown(self.url), error)
            try:
                if "reconnect_time_wait" in self._client.options:  # else it was never begun
                    await self._client.close()
            except (nats.errors.Error, OSError) as error:
                log.debug("closing %s: %r", shown(self.url), error)

    async def _flush(self) -> None:
        """Return when the server has taken in all that was sent before."""
        await self._client.flush()  # its PING overtakes what is buffered, which is then written
        await self._client.flush()

    def _lost(self, subject: str = "") -> ConnectionLost:
        text = f"no connection to {shown(self.url)}: is the server running?"
        if self.closed:
            reason = self._last_error or "it was closed"
            text = f"the connection to {shown(self.url)} has ended for good: {reason}"
        elif _is_refusal(self._last_error):
            text = f"no connection to {shown(self.url)}: the server refuses the credentials now"
        return ConnectionLost(text, subject=subject)

    async def _on_answer(self, message: Msg) -> None:
        _, answer = self._waiting.get(message.subject.rpartition(".")[2], (None, None))
        if answer is not None and not answer.done():
            reply = Reply(message.subject, message.reply, message.data, message.headers)
            answer.set_result(reply)

    async def _on_error(self, error: Exception) -> None:
        found = _VIOLATION.search(str(error))
        if found is None:
            self._note(error)
            log.debug("%s: %r", shown(self.url), error)
            return
        operation, subject = found.groups()
        operation = "publish to" if operation.lower() == "publish" else "subscribe to"
        log.warning("the server forbids to %s %s", operation, subject)
        for asked, answer in list(self._waiting.values()):
            # the library lowers the case of the server's message
            if asked.lower() == subject.lower() and not answer.done():
                answer.set_exception(PermissionDenied(asked, operation))
        if subject.lower() == f"{self._inbox}.*".lower():
            self._inbox_denied = True
        self._tell(PermissionDenied(subject, operation))

    async def _on_disconnected(self) -> None:
        self.back_since = math.inf  # requests may pass before the library says that it is back
        self._note(self._client.last_error)
        for subject, answer in list(self._waiting.values()):
            if not answer.done():
                text = f"the connection to {shown(self.url)} broke before {subject} was answered"
                answer.set_exception(ConnectionLost(text, subject=subject))
        self._tell()

    def _note(self, error: Exception | None) -> None:
        # The connection that a server has refused then also breaks, which says less.
        if error is not None and not _is_refusal(self._last_error):
            self._last_error = error

    async def _on_connected(self) -> None:
        self._last_error = None
        self.back_since = asyncio.get_running_loop().time()
        self._tell()

    def _tell(self, denied: PermissionDenied | None = None) -> None:
        self._is_back.set()
        for listener in list(self._listeners):
            listener(denied)


@asynccontextmanager
async def connect(
    url: str,
    *,
    name: str = "stratum",
    patience_seconds: float = 0.0,
    options: Mapping[str, Any] | None = None,
    bulk: bool = False,
) -> AsyncIterator[Connection]:
    """A connection to `url`, open as long as the context.

    `options` goes to the client library's connect as it is (credentials, TLS, inbox prefix).
    With `bulk` one subscription can take whole frames. Raises ConnectionLost where no server
    answers.
    """
    connection = Connection(url, name, patience_seconds, options or {}, bulk)
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


def api_answer(reply: Reply, subject: str, expected: int | None = None) -> dict[str, Any]:
    """The body of a JetStream answer to a publish; raises what the server refused it with."""
    try:
        answer: Any = msgspec.json.decode(reply.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = None
    if isinstance(answer, dict):
        if isinstance(error := answer.get("error"), dict):
            raise refusal(subject, error, expected)
        if isinstance(answer.get("stream"), str) and isinstance(answer.get("seq"), int):
            return answer
    raise errors.Refused(subject, 0, "a subscriber that is no stream answered first")


def shown(url: str) -> str:
    """A server's address without the user, password or token that may stand in it."""
    return _USER.sub("", url)


def _plain(error: Exception, before: Exception | None) -> str:
    """`before` is what was tried last, where the library only says that all was tried."""
    if isinstance(error, nats.errors.NoServersError):
        if _is_refusal(before):
            return "the server refused the credentials"
        return "no server answers there; start one with `stratum up`, or check the address"
    return str(error)


def _is_refusal(error: Exception | None) -> bool:
    return error is not None and "authorization" in str(error).lower()


def size_of(headers: Mapping[str, str] | None) -> int:
    """What headers take on the wire, in bytes."""
    if not headers:
        return 0
    lines = sum(len(key.encode()) + len(value.encode()) + 4 for key, value in headers.items())
    return len("NATS/1.0\r\n\r\n") + lines
