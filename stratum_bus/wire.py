"""The client library's protocol side, hardened: no message that anybody stored can stop a reader.

A server hands out whatever bytes a client sent it as subject and headers. The library ends its
reading loop at some of them, and stays "connected" without hearing anything; in a log, which keeps
them for ever, that would be the end of every reader.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.protocol import parser
from nats.protocol.command import hpub_cmd

from stratum_bus.frames import Frames, cut, delivered_to, unit

log = logging.getLogger("stratum.connection")

# A subject may hold a form feed or a vertical tab, which `\s` takes for the end of it.
_WORD = rb"([^ \t\r\n]+)"
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+%b[ \t]+%b[ \t]+(%b[ \t]+)?(\d+)\r\n" % ((_WORD,) * 3))
parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+%b[ \t]+%b[ \t]+(%b[ \t]+)?(\d+)[ \t]+(\d+)\r\n" % ((_WORD,) * 3)
)

_KEY = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class SturdyClient(Client):
    """Headers that cannot be parsed are none, bytes of a subject that are not UTF-8 become �."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            return await super()._process_headers(headers)
        except Exception as error:  # noqa: BLE001 - whatever a writer brought it to
            log.debug("headers %r cannot be read: %r", headers[:200], error)
            return None

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """As the library's, but a name is looked at once and not at each of its uses: this is in
        the way of every message.
        """
        found: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon and (key := _name(name) if len(name) <= _SHORT else _read_name(name)):
                found[key] = value.strip().decode("utf-8", "replace")
        return found

    async def _send_publish(
        self,
        subject: str,
        reply: str,
        payload: bytes,
        payload_size: int,
        headers: dict[str, Any] | None,
    ) -> None:
        """As the library's, but headers that need no mending are written without looking at each
        character several times: this is in the way of every append.
        """
        block = _plain_block(headers) if headers else b""
        if not block:
            return await super()._send_publish(subject, reply, payload, payload_size, headers)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        await self._send_command(hpub_cmd(subject, reply, block, payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        return Msg(
            _client=self,
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _sid=sid,
        )

    async def _process_pong(self) -> None:
        # Of a flush that was given up the library keeps the future, and fails at setting it.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected:
            log.error("reading from the server ended unexpectedly: connecting again")
            await self._process_op_err(nats.errors.ProtocolError())


class BulkClient(SturdyClient):
    """Hands over what comes for one subscription in bulk and as it stands, past the library, which
    spends 15 us on a message; all else on the connection stays the library's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frames = FrameParser(self)
        self._ps = self._frames

    def take(self, sid: int, on_frames: Callable[[Frames], None]) -> None:
        """From now on call `on_frames` with the messages that a consumer delivers to `sid`."""
        self._frames.on_frames, self._frames.line = on_frames, delivered_to(sid)

    async def _read_loop(self) -> None:
        transport: Any = self._transport
        read = type(transport).read
        transport.read = lambda _: read(transport, _READ_BYTES)
        await super()._read_loop()


class FrameParser(parser.Parser):
    """Finds where each thing in the stream of bytes ends, takes delivered messages out in bulk, and
    gives the library's parser the rest, one whole thing after the other.
    """

    def __init__(self, client: Client) -> None:
        self.line: re.Pattern[bytes] | None = None
        self.on_frames: Callable[[Frames], None] = lambda _: None
        super().__init__(client)

    def reset(self) -> None:
        """Forget what has come: another connection begins."""
        super().reset()
        self._parts: list[bytes] = []
        self._size = self._needed = 0

    async def parse(self, data: bytes = b"") -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._needed:  # a large message is put together once and not with each read
            return
        parts, data = self._parts, b"".join(self._parts)
        self._needed = at = 0
        try:
            while at < len(data):
                if self.line:
                    marks, at = cut(data, at, self.line)
                    if marks:
                        self.on_frames(Frames(data, marks))
                end = unit(data, at)
                if not 0 < end <= len(data):
                    self._needed = end - at
                    break
                await super().parse(data[at:end])
                if parts is not self._parts:  # reset meanwhile
                    return
                if self.buf:
                    raise nats.errors.ProtocolError()
                at = end
        except ValueError as error:
            raise nats.errors.ProtocolError() from error
        self._parts = [data[at:]] if at < len(data) else []
        self._size = len(data) - at


_READ_BYTES = 1 << 20


def _plain_block(headers: dict[str, Any]) -> bytes:
    """The headers as they are sent; nothing where one of them has to be mended or refused."""
    lines = ["NATS/1.0\r\n"]
    for key, value in headers.items():
        if not _is_key(key) or value != value.strip() or "\n" in value or "\r" in value:
            return b""
        lines.append(f"{key}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode()


def _read_name(name: bytes) -> str:
    """A header's name; nothing for one that is none."""
    try:
        key = name.strip().decode("ascii")
    except UnicodeDecodeError:
        return ""
    return "" if any(character.isspace() for character in key) else key


def read_headers(block: bytes) -> dict[str, str] | None:
    """A raw block of headers as the messages of a subscription have it; None for none."""
    client: Any = _HEADERS
    try:
        client._process_headers(block).send(None)
    except StopIteration as done:
        found: dict[str, str] | None = done.value
        return found
    raise AssertionError("the library waits while it reads headers")


_HEADERS = SturdyClient()


_SHORT = 64
_name = functools.lru_cache(maxsize=256)(_read_name)


@functools.lru_cache(maxsize=256)
def _is_key(key: str) -> bool:
    return _KEY.fullmatch(key) is not None
