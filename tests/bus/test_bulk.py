"""Reading in bulk: the same messages as in every other reading, each once and in order."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pyarrow as pa
import pytest

from stratum_bus.bulk import AHEAD_BYTES, SCHEMA, Columns, columns, message, read_columns
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import ConnectionLost, NotFound, PermissionDenied
from stratum_bus.event import Event, new
from stratum_bus.frames import Frames, cut, delivered_to
from stratum_bus.message import Message, delivered
from stratum_bus.publish import Append
from stratum_bus.testing import eventually, fresh, server

TASK = "inbox.bob.alice.task"


def task(number: int) -> Event[int]:
    return new("task", number, source="/tests", id=f"task-{number}")


async def fill(bus: Bus, count: int, first: int = 1) -> None:
    """Messages of several subjects and sizes."""
    await bus.publish_many(
        Append(f"inbox.bob.agent-{n % 7}.task", task(n)) for n in range(first, first + count)
    )


async def tables(reading: Columns, size: int = 1000) -> list[pa.Table]:
    """All that is left of a bounded reading."""
    found = []
    with anyio.fail_after(30):
        while not reading.ended:
            table = await reading.batch(size, 5)
            assert table.schema.equals(SCHEMA)
            assert table.num_rows <= size
            found.append(table)
    return found


def sequences(found: Sequence[pa.Table]) -> list[int]:
    numbers: list[Any] = [number for table in found for number in table["seq"].to_pylist()]
    return numbers


async def read_sequences(bus: Bus, size: int = 1000, **how: Any) -> list[int]:
    async with read_columns(bus, **how) as reading:
        return sequences(await tables(reading, size))


def messages(table: pa.Table, stream: str = "LOG", end: int = 0) -> list[Message]:
    return [message(table, row, stream, end) for row in range(table.num_rows)]


async def consumers(bus: Bus, stream: str = "LOG") -> Sequence[str]:
    answer = await bus.connection.api(f"CONSUMER.NAMES.{stream}")
    return answer.get("consumers") or []


async def as_read(bus: Bus) -> list[Message]:
    """The whole log, by the reading of single messages."""
    async with bus.read() as reader:
        return [each async for each in reader]


# From where to where


@pytest.mark.parametrize("window", [3, 100, 40_000])
async def test_all_of_a_stream_is_read_in_order_and_as_it_stands(bus: Bus, window: int) -> None:
    await fill(bus, 3000)
    async with read_columns(bus, start=1, window=window) as reading:
        assert (reading.stored, reading.pending) == (3000, 3000)
        found = [each for t in await tables(reading, 700) for each in messages(t, end=3000)]
        assert reading.pending == 0
    assert found == await as_read(bus)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"start": 8}, [8, 9, 10]),
        ({"start": 10}, [10]),
        ({"start": 11}, []),
        ({"start": 1000}, []),
        ({"start": 0, "end": 2}, [1, 2]),
        ({"start": 1, "end": 3}, [1, 2, 3]),
        ({"start": 3, "end": 3}, [3]),
        ({"start": 4, "end": 3}, []),
        ({"start": 1, "end": 0}, []),
        ({"start": 1, "end": 1000}, list(range(1, 11))),
        ({"start": 2, "end": 4, "follow": True}, [2, 3, 4]),
    ],
)
async def test_a_reading_begins_and_ends_where_it_is_told(
    bus: Bus, how: dict[str, Any], expected: list[int]
) -> None:
    await fill(bus, 10)
    assert await read_sequences(bus, **how) == expected


async def test_an_empty_stream_is_read_at_once(bus: Bus) -> None:
    assert await read_sequences(bus, start=1) == []


async def test_a_stream_that_is_not_there_is_named(bus: Bus) -> None:
    with pytest.raises(NotFound, match="there is no stream NOPE"):
        await read_sequences(bus, stream="NOPE", start=1)


async def test_a_bounded_reading_ends_although_writers_go_on(bus: Bus) -> None:
    await fill(bus, 100)
    stop = anyio.Event()

    async def write() -> None:
        number = 1000
        while not stop.is_set():
            number += 1
            await bus.publish(TASK, task(number))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(3):
            async with read_columns(bus, start=1) as reading:
                assert sequences(await tables(reading)) == list(range(1, reading.stored + 1))
        stop.set()


async def test_sequences_that_the_stream_holds_no_more_are_left_out(bus: Bus) -> None:
    for number in range(1, 10):
        await bus.connection.request("health.bob.1", b"%d" % number)
    for number in (2, 3, 7):
        await bus.connection.api("STREAM.MSG.DELETE.HEALTH", {"seq": number})
    assert await read_sequences(bus, stream="HEALTH", start=2) == [4, 5, 6, 8, 9]


# Batches


async def test_a_batch_holds_what_is_there_and_waits_no_longer_than_told(bus: Bus) -> None:
    await fill(bus, 10)
    async with read_columns(bus, start=1, follow=True) as reading:
        assert sequences([await reading.batch(1, 20)]) == [1]
        await eventually(lambda: reading._held() == 9, within_seconds=20)
        assert sequences([await reading.batch(4, 20)]) == [2, 3, 4, 5]
        assert reading.pending == 5
        assert sequences([await reading.batch(100, 20)]) == list(range(6, 11))
        assert reading.pending == 0
        with anyio.fail_after(20):
            nothing = await reading.batch(100, 0.05)
        assert (nothing.num_rows, nothing.schema) == (0, SCHEMA)
        assert not reading.ended
        await fill(bus, 2, first=11)
        found: list[int] = []
        while len(found) < 2:
            found += sequences([await reading.batch(100, None)])
        assert found == [11, 12]


async def test_the_tables_of_a_large_backlog_are_full(bus: Bus) -> None:
    await fill(bus, 5000)
    async with read_columns(bus, start=1) as reading:
        assert (await reading.batch(1, 20)).num_rows == 1
        await eventually(lambda: reading._held() == 4999, within_seconds=20)
        assert [(await reading.batch(2000, 20)).num_rows for _ in range(3)] == [2000, 2000, 999]


async def test_no_more_is_read_ahead_than_the_window(bus: Bus) -> None:
    await fill(bus, 3000)
    async with read_columns(bus, start=1, window=200) as reading:
        read = 0
        while not reading.ended:
            read += (await reading.batch(50, 5)).num_rows
            assert reading._held() + reading._pull.outstanding <= 200
    assert read == 3000


async def test_no_more_is_read_ahead_than_fits_the_memory(bus: Bus) -> None:
    payload = b"x" * 1_000_000
    for _ in range(90):
        await bus.connection.request("inbox.bob.alice.bulk", payload)
    async with read_columns(bus, start=1) as reading:
        read = most = 0
        while not reading.ended:
            found = await reading.batch(1, 5)
            assert found["payload"].to_pylist() == [payload] * found.num_rows
            read += found.num_rows
            most = max(most, reading._bytes + reading._pull.outstanding_bytes)
            await anyio.wait_all_tasks_blocked()
    assert read == 90
    assert AHEAD_BYTES // 4 <= most <= AHEAD_BYTES


# Survival


class Following:
    """A reading that goes on in the background and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.reading: Columns | None = None

    async def run(self, bus: Bus, **how: Any) -> None:
        async with read_columns(bus, start=1, follow=True, **how) as self.reading:
            while True:
                self.seen += sequences([await self.reading.batch(1000, None)])


async def test_following_survives_kills_of_the_server_without_gap_or_double() -> None:
    with server() as own:
        await fresh(own.url)
        async with (
            connect(own.url, patience_seconds=30) as writer,
            connect(own.url) as bus,
            anyio.create_task_group() as tasks,
        ):
            following = Following()
            tasks.start_soon(following.run, bus)
            written = 0

            async def write() -> None:
                nonlocal written
                while True:
                    written += 1
                    await writer.publish(TASK, task(written))

            with anyio.CancelScope() as writing:
                tasks.start_soon(write)
                for kills in range(4):
                    goal = written + 50
                    await eventually(lambda: written > goal, within_seconds=20)  # noqa: B023
                    if kills < 3:
                        own.kill()
                        await eventually(lambda: not bus.connection.connected, within_seconds=20)
                        own.restart()
                writing.cancel()
            end = (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"]
            await eventually(lambda: len(following.seen) >= end, within_seconds=20)
            tasks.cancel_scope.cancel()
        assert following.seen[:end] == list(range(1, end + 1))
        assert end > 200


async def test_a_bounded_reading_survives_a_kill_too() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url) as bus:
            await fill(bus, 3000)
            async with read_columns(bus, start=1, window=100) as reading:
                read = sequences([await reading.batch(50, 5)])
                own.kill()
                own.restart()
                read += sequences(await tables(reading))
    assert read == list(range(1, 3001))


async def test_a_reading_goes_on_where_its_connection_was_cut(bus: Bus) -> None:
    await fill(bus, 3000)
    async with read_columns(bus, start=1, window=100) as reading:
        read = sequences([await reading.batch(50, 5)])
        transport: Any = reading._connection._client._transport
        transport._io_writer.transport.abort()
        read += sequences(await tables(reading))
    assert read == list(range(1, 3001))


async def test_a_reading_goes_on_where_its_consumer_was_removed(bus: Bus) -> None:
    """As the server does with one that was not asked for a minute."""
    await fill(bus, 500)
    async with read_columns(bus, start=1, window=100) as reading:
        read = sequences([await reading.batch(50, 5)])
        for name in await consumers(bus):
            await bus.connection.api(f"CONSUMER.DELETE.LOG.{name}")
        read += sequences(await tables(reading))
    assert read == list(range(1, 501))


async def test_what_is_lost_on_the_way_is_noticed_and_read_again(bus: Bus) -> None:
    await fill(bus, 2000)
    lost: list[int] = []
    async with read_columns(bus, start=1, window=300) as reading:
        client: Any = reading._connection._client
        hand_over: Callable[[Frames], None] = client._frames.on_frames

        def lose(frames: Frames) -> None:
            if len(lost) < 5 and len(frames) > 2:
                middle = len(frames) // 2
                lost.append(middle)
                hand_over(without(frames, middle))
            else:
                hand_over(frames)

        client._frames.on_frames = lose
        read = sequences(await tables(reading))
    assert read == list(range(1, 2001))
    assert len(lost) == 5


def without(frames: Frames, number: int) -> Frames:
    """The frames but for one, as if that had not been sent."""
    found = Frames(frames.buffer, frames.marks[:])
    del found.marks[number * 4 : number * 4 + 4]
    return found


async def test_a_stream_that_is_deleted_while_it_is_followed_is_named(bus: Bus) -> None:
    with pytest.raises(NotFound, match="there is no stream HEALTH"):
        async with read_columns(bus, "HEALTH", start=1, follow=True) as reading:
            await bus.connection.api("STREAM.DELETE.HEALTH")
            with anyio.fail_after(20):
                await reading.batch(1, None)


async def test_a_bus_that_is_closed_begins_no_reading(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        pass
    with anyio.fail_after(20), pytest.raises(ConnectionLost, match="has ended for good"):
        await read_sequences(bus, start=1)


# What is left behind


async def test_a_reading_leaves_nothing_on_the_server(bus: Bus) -> None:
    await fill(bus, 10)
    async with read_columns(bus, start=1, follow=True):
        assert len(await consumers(bus)) == 1
    assert await consumers(bus) == []
    with pytest.raises(ZeroDivisionError):
        async with read_columns(bus, start=1) as reading:
            await reading.batch(1, 5)
            raise ZeroDivisionError
    assert await consumers(bus) == []


async def test_a_reading_that_is_cancelled_leaves_nothing_on_the_server(bus: Bus) -> None:
    following = Following()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.run, bus)
        await eventually(lambda: following.reading is not None, within_seconds=20)
        tasks.cancel_scope.cancel()
    assert await consumers(bus) == []


def test_agents_start_without_it() -> None:
    program = "import stratum_agents, sys; assert 'pyarrow' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


# Whatever was stored


def store_raw(url: str, commands: bytes) -> None:
    """As any client can, with bytes that ours would not send."""
    host, _, port = url.removeprefix("nats://").partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as raw,
        raw.makefile("rb") as answers,
    ):
        raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + commands + b"PING\r\n")
        assert b"PONG\r\n" in iter(answers.readline, b"")


def pub(payload: bytes, headers: bytes | None = None, subject: bytes = b"inbox.bob.eve.t") -> bytes:
    if headers is None:
        return b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload)
    total = len(headers) + len(payload)
    return b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, len(headers), total, headers, payload)


PLAIN = b"NATS/1.0\r\nA: 1\r\n\r\n"
PAYLOADS = (
    b"",
    b"\r\n",
    b"\r\n\r\n\xff\x00\r\n",
    b"MSG inbox.x 2 $JS.ACK.LOG.c.1.1.1.1.0 5\r\nhello\r\n",
    b"HMSG inbox.x 2 $JS.ACK.LOG.c.1.1.1.1.0 12 17\r\nNATS/1.0\r\n\r\nhello\r\n",
    b"PING\r\n-ERR 'x'\r\nINFO {}\r\n",
    b"a" * 1_000_000,
)
BLOCKS = (
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\nA: 1\r\nA: 2\r\na: 3\r\n\r\n",
    b"NATS/1.0\r\nStatus: 409\r\nDescription: Consumer Deleted\r\n\r\n",
    b"NATS/1.0\r\nNats-Sequence: 99\r\nNats-Pending-Messages: 7\r\nStatus: 408\r\n\r\n",
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\nA: 1\r\n\r\n",
    b"NATS/1.0\r\nA: \xff\r\n\xff: b\r\nno colon\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\nZ: caf\xc3\xa9 \xe2\x82\xac\r\n\r\n",
    b"NATS/1.0",
    b"X\r\n\r\n",
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
)
SUBJECTS = (
    "inbox.bob.eve.größe".encode(),
    b"inbox.bob.eve.\xff",
    b"inbox.bob.eve.\xfe",
    b"inbox.bob.eve.a\x0cb\x0bc",
    b"inbox.bob.eve.$JS.ACK.LOG.c.1.2.3.4.5",
    b"inbox.bob.MSG.HMSG",
    b"inbox.bob.eve." + b"long" * 500,
)


async def test_no_bytes_that_a_client_stored_change_or_stop_a_reading(bus: Bus) -> None:
    stored = [pub(payload, headers) for payload in PAYLOADS for headers in (None, PLAIN)]
    stored += [pub(b'{"q": 1}', block) for block in BLOCKS]
    stored += [pub(b"2", headers, subject) for subject in SUBJECTS for headers in (None, PLAIN)]
    for command in stored:
        store_raw(bus.connection.url, command)

    async def is_stored() -> bool:
        info = await bus.connection.api("STREAM.INFO.LOG")
        return bool(info["state"]["last_seq"] == len(stored))

    await eventually(is_stored, within_seconds=20)
    expected = await as_read(bus)
    for size in (1, 7, 1000):
        async with read_columns(bus, start=1) as reading:
            found = await tables(reading, size)
        read = [each for table in found for each in messages(table, end=len(stored))]
        assert read == expected
    headers = pa.concat_tables(found)["headers"].to_pylist()
    assert headers[0] is None
    assert headers[1] == PLAIN
    # the server takes an inline status out of what it stores
    blocks = zip(BLOCKS, headers[len(PAYLOADS) * 2 :], strict=False)
    assert all(sent == kept for sent, kept in blocks if not sent.startswith(b"NATS/1.0 "))


@pytest.mark.parametrize(
    "reply",
    [
        b"$JS.ACK.LOG.read-1.1.7.1.1795244099254998877.9",
        b"$JS.ACK.hub.hash.LOG.read-1.1.7.1.1795244099254998877.9",
        b"$JS.ACK.hub.hash.LOG.read-1.1.7.1.1795244099254998877.9.random",
    ],
)
def test_a_message_stands_where_each_form_of_its_reply_subject_says(reply: bytes) -> None:
    buffer = b"MSG inbox.bob.alice.task 2 %b 2\r\n{}\r\n" % reply
    marks, _ = cut(buffer, 0, delivered_to(2))
    found = message(columns([Frames(buffer, marks)]), 0, end=16)
    at = delivered(reply.decode())
    assert (found.sequence, found.time_ns, found.pending) == (7, 1795244099254998877, 9)
    assert (at.stream_sequence, at.time_ns, at.pending) == (7, 1795244099254998877, 9)


# Permissions


@pytest.mark.parametrize("user", ["half", "none"])
async def test_a_forbidden_reading_is_named_at_once(
    own_server: Callable[[str], Any], user: str
) -> None:
    """`half` may create consumers but not ask them, `none` neither."""
    own = own_server(
        "authorization { users: [{user: admin, password: admin},"
        '{user: half, password: half, permissions: {publish: {deny: ["$JS.API.CONSUMER.MSG.NEXT.>"]}}},'
        '{user: none, password: none, permissions: {publish: {deny: ["$JS.API.CONSUMER.>"]}}}] }'
    )
    await fresh(own.url("admin"))
    async with connect(own.url("admin")) as bus:
        await fill(bus, 1)
    async with connect(own.url(user)) as bus:
        with anyio.fail_after(20), pytest.raises(PermissionDenied):
            await read_sequences(bus, start=1)


async def test_the_own_connection_has_the_options_of_the_bus(
    own_server: Callable[[str], Any],
) -> None:
    own = own_server("authorization { users: [{user: admin, password: admin}] }")
    options = {"user": "admin", "password": "admin"}
    await fresh(own.url("admin"))
    async with connect(own.plain_url, options=options) as bus:
        await fill(bus, 3)
        assert await read_sequences(bus, start=1) == [1, 2, 3]
