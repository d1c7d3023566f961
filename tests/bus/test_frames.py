"""Frames taken out in bulk are those that the client library's parser finds, however bytes arrive."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from typing import Any

import pytest
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from stratum_bus.frames import PARTS, Frames, delivered_to
from stratum_bus.wire import FrameParser

OURS = 2
Seen = list[tuple[Any, ...]]


class Heard:
    """What a parser says to its client, in order; and the frames as if they had been said so."""

    def __init__(self) -> None:
        self.seen: Seen = []
        self.in_bulk = 0

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        self.seen.append(("message", sid, bytes(subject), bytes(reply), data, headers or b""))

    async def _process_ping(self) -> None:
        self.seen.append(("ping",))

    async def _process_pong(self) -> None:
        self.seen.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.seen.append(("error", error))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.seen.append(("info", info))

    def frames(self, frames: Frames) -> None:
        marks = [*frames.marks, frames.marks[-1]]
        self.in_bulk += len(frames)
        for at in range(0, len(frames) * PARTS, PARTS):
            line, headers, payload = (
                frames.buffer[marks[at + n] : marks[at + n + 1]] for n in range(3)
            )
            _, subject, sid, reply, *_ = line.split(b" ")
            self.seen.append(("message", int(sid), subject, reply, payload, headers))


def frame(
    subject: bytes, sid: int, reply: bytes, payload: bytes, headers: bytes | None = None
) -> bytes:
    words = [subject, b"%d" % sid, *([reply] if reply else [])]
    if headers is None:
        return b"MSG %b %d\r\n%b\r\n" % (b" ".join(words), len(payload), payload)
    sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
    return b"HMSG %b %b\r\n%b%b\r\n" % (b" ".join(words), sizes, headers, payload)


BLOCK = b"NATS/1.0\r\nA: 1\r\n\r\n"
PAYLOADS = (
    b"",
    b"{}",
    b"\r\n",
    b"\r",
    b"\n\xff\x00",
    b"HMSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 18 20\r\n" + BLOCK + b"{}\r\n",
    b"MSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 4\r\nPING\r\n",
    b"PING\r\nPONG\r\n",
    b"x" * 300,
)


def of_ours(number: int, payload: bytes, headers: bytes | None) -> bytes:
    reply = b"$JS.ACK.LOG.read-1.1.%d.%d.1795244099254998877.%d" % (number, number, 99 - number)
    return frame(b"inbox.b.a.caf\xc3\xa9.\xff", OURS, reply, payload, headers)


OTHER = (
    b"PING\r\n",
    b"PONG\r\n",
    b"+OK\r\n",
    b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n",
    b'INFO {"server_id":"x","connect_urls":[]}\r\n',
    frame(b"_INBOX.1", OURS, b"", b"", b"NATS/1.0 100 Idle Heartbeat\r\n\r\n"),
    frame(b"_INBOX.1", OURS, b"", b"", b"NATS/1.0 408 Request Timeout\r\n\r\n"),
    frame(b"_INBOX.1", OURS, b"other.reply", b"1"),
    frame(b"_INBOX.2", 1, b"", b"PING\r\n"),
    frame(b"_INBOX.2", 12, b"$JS.ACK.LOG.c.1.1.1.1.0", b"{}", BLOCK),
    frame(b"_INBOX.2", 22, b"$JS.ACK.LOG.c.1.1.1.1.0", b"{}"),
    b"MSG\t_INBOX.2  1 2\r\nab\r\n",
)


def some_bytes(chance: random.Random, things: int) -> bytes:
    found = []
    for number in range(1, things + 1):
        if chance.random() < 0.7:
            headers = BLOCK if chance.random() < 0.7 else None
            found.append(of_ours(number, chance.choice(PAYLOADS), headers))
        else:
            found.append(chance.choice(OTHER))
    return b"".join(found)


async def by_the_library(data: bytes) -> Seen:
    heard = Heard()
    await Parser(heard).parse(data)
    return heard.seen


async def in_bulk(pieces: Iterable[bytes]) -> Heard:
    heard = Heard()
    client: Any = heard
    parser = FrameParser(client)
    parser.line, parser.on_frames = delivered_to(OURS), heard.frames
    for piece in pieces:
        await parser.parse(piece)
    return heard


@pytest.mark.parametrize("seed", range(20))
async def test_any_bytes_in_any_pieces_mean_what_they_mean_to_the_library(seed: int) -> None:
    chance = random.Random(seed)
    data = some_bytes(chance, 60)
    expected = await by_the_library(data)
    for _ in range(20):
        count = chance.choice((1, 3, 30, len(data) // 2))
        cuts = [0, *sorted(chance.choices(range(len(data)), k=count)), len(data)]
        pieces = [data[a:b] for a, b in itertools.pairwise(cuts)]
        assert (await in_bulk(pieces)).seen == expected


async def test_frames_may_be_split_at_every_position() -> None:
    ours = [of_ours(n, payload, BLOCK if n % 2 else None) for n, payload in enumerate(PAYLOADS)]
    data = b"".join(ours) + b"".join(OTHER)
    expected = await by_the_library(data)
    for at in range(len(data) + 1):
        heard = await in_bulk([data[:at], data[at:]])
        assert heard.seen == expected
        assert heard.in_bulk == len(PAYLOADS)
    assert (await in_bulk(bytes([byte]) for byte in data)).seen == expected


async def test_a_message_larger_than_what_is_read_at_once_is_whole() -> None:
    payload = random.Random(1).randbytes(3_000_000)
    data = of_ours(1, payload, BLOCK) + of_ours(2, b"{}", None)
    pieces = [data[at : at + 32_768] for at in range(0, len(data), 32_768)]
    assert (await in_bulk(pieces)).seen == await by_the_library(data)


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n",
        b"MSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 x\r\n",
        b"HMSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 5\r\n12345\r\n",
        b"HMSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 9 5\r\n12345\r\n",
        b"HMSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 -9 5\r\n12345\r\n",
        b"HMSG a 2 $JS.ACK.LOG.c.1.1.1.1.0 0 -9\r\n12345\r\n",
        b"MSG a 3 -90\r\n12345\r\n",
    ],
)
async def test_what_is_no_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        await in_bulk([PING, data])
    with pytest.raises(ProtocolError):
        await in_bulk([PING, data, PING, PING])


async def test_a_new_connection_begins_anew() -> None:
    heard = Heard()
    client: Any = heard
    parser = FrameParser(client)
    parser.line, parser.on_frames = delivered_to(OURS), heard.frames
    whole = of_ours(1, b"{}", BLOCK)
    for cut in range(len(whole)):
        await parser.parse(whole[:cut])
        parser.reset()
    await parser.parse(whole)
    assert heard.in_bulk == 1


async def test_what_came_behind_the_end_of_a_connection_is_forgotten() -> None:
    """Some errors make the client connect again while it hears of them."""
    ended: list[str] = []

    class Ending(Heard):
        async def _process_err(self, error: str) -> None:
            ended.append(error)
            parser.reset()

    heard = Ending()
    client: Any = heard
    parser = FrameParser(client)
    parser.line, parser.on_frames = delivered_to(OURS), heard.frames
    await parser.parse(of_ours(1, b"{}", None) + b"-ERR 'Stale Connection'\r\n" + PING + PING)
    assert ended == ["'stale connection'"]
    assert len(heard.seen) == 1
    await parser.parse(of_ours(2, b"{}", None))
    assert len(heard.seen) == heard.in_bulk == 2


PING = b"PING\r\n"
