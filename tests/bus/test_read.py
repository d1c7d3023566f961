"""Reading: in order, each message once, from where and to where one asks, and nothing left behind."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

from stratum_bus import jetstream
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import (
    ConnectionLost,
    InvalidEvent,
    NotFound,
    PermissionDenied,
    Refused,
)
from stratum_bus.event import Event, new, typed
from stratum_bus.message import Message
from stratum_bus.publish import Append
from stratum_bus.testing import eventually, fresh, server

TASK = "inbox.bob.alice.task"
NOTE = "memory.bob.note"


def task(number: int) -> Event[int]:
    return new("task", number, source="/tests", id=f"task-{number}")


async def fill(bus: Bus, count: int, subject: str = TASK, first: int = 1) -> None:
    await bus.publish_many(Append(subject, task(n)) for n in range(first, first + count))


def number_of(message: Message) -> int:
    return typed(message.event(), int).data


async def numbers(bus: Bus, **how: Any) -> list[int]:
    async with bus.read(**how) as reader:
        return [number_of(message) async for message in reader]


async def consumers(bus: Bus, stream: str = "LOG") -> Sequence[str]:
    answer = await bus.connection.api(f"CONSUMER.NAMES.{stream}")
    return answer.get("consumers") or []


# From where to where


async def test_all_of_a_stream_is_read_in_order(bus: Bus) -> None:
    await fill(bus, 5000)  # more than the window
    async with bus.read() as reader:
        messages = [message async for message in reader]
    assert [message.sequence for message in messages] == list(range(1, 5001))
    assert [number_of(message) for message in messages] == list(range(1, 5001))
    assert (reader.stored, reader.position, reader.ended) == (5000, 5000, True)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"start": 8}, [8, 9, 10]),
        ({"start": 10}, [10]),
        ({"start": 11}, []),
        ({"start": 1000}, []),
        ({"start": 0, "end": 2}, [1, 2]),
        ({"end": 3}, [1, 2, 3]),
        ({"start": 3, "end": 3}, [3]),
        ({"start": 4, "end": 3}, []),
        ({"end": 0}, []),
        ({"end": 1000}, list(range(1, 11))),
        ({"start": None}, []),
        ({"start": 2, "end": 4, "follow": True}, [2, 3, 4]),
    ],
)
async def test_a_reading_begins_and_ends_where_it_is_told(
    bus: Bus, how: dict[str, Any], expected: list[int]
) -> None:
    await fill(bus, 10)
    with anyio.fail_after(5):
        assert await numbers(bus, **how) == expected


async def test_a_reading_may_begin_at_a_time(bus: Bus) -> None:
    await fill(bus, 3)
    between = (await bus.get("LOG", 3)).time + timedelta(microseconds=1)
    await fill(bus, 2, first=4)
    assert await numbers(bus, start=between) == [4, 5]
    assert await numbers(bus, start=between.astimezone(None)) == [4, 5]
    assert await numbers(bus, start=datetime.now(UTC) + timedelta(hours=1)) == []
    assert await numbers(bus, start=datetime(1990, 1, 1, tzinfo=UTC)) == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="no time zone"):
        await numbers(bus, start=datetime(2026, 1, 1))


async def test_filters_choose_and_the_end_may_lie_behind_the_last_of_them(bus: Bus) -> None:
    await fill(bus, 3)
    await fill(bus, 3, NOTE, first=4)
    await fill(bus, 3, "topic.alice.task", first=7)
    assert await numbers(bus, filters=[NOTE]) == [4, 5, 6]
    assert await numbers(bus, filters=["inbox.>", "topic.*.task"]) == [1, 2, 3, 7, 8, 9]
    assert await numbers(bus, filters=["inbox.>"], end=8) == [1, 2, 3]
    assert await numbers(bus, filters=["inbox.>"], start=4) == []
    assert await numbers(bus, filters=["run.>"]) == []
    with pytest.raises(Refused, match="overlap"):
        await numbers(bus, filters=["inbox.>", "inbox.bob.>"])


async def test_an_empty_stream_is_read_at_once(bus: Bus) -> None:
    with anyio.fail_after(2):
        assert await numbers(bus) == []
        assert await numbers(bus, start=None) == []
        assert await numbers(bus, start=datetime.now(UTC)) == []


async def test_a_stream_that_is_not_there_is_named(bus: Bus) -> None:
    with pytest.raises(NotFound, match="there is no stream NOPE"):
        await numbers(bus, stream="NOPE")


async def test_a_bounded_reading_ends_although_writers_go_on(bus: Bus) -> None:
    await fill(bus, 100)
    stop = anyio.Event()

    async def write() -> None:
        number = 1000
        while not stop.is_set():
            number += 1
            await bus.publish(TASK if number % 2 else NOTE, task(number))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for filters in ([], [TASK], [NOTE, TASK]):
            async with bus.read(filters=filters) as reader:
                with anyio.fail_after(10):
                    read = [message.sequence async for message in reader]
            assert read[:100] == list(range(1, 101))
            assert max(read) <= reader.stored
        stop.set()


async def test_large_messages_are_read_though_all_would_not_fit_the_window(bus: Bus) -> None:
    text = "x" * 900_000
    for number in range(25):  # 22 MB, the window has 16 MiB
        await bus.connection.request("inbox.bob.alice.bulk", msgspec.json.encode([number, text]))
    gc.collect()
    async with bus.read() as reader:
        read = [msgspec.json.decode(message.payload)[0] async for message in reader]
    assert read == list(range(25))


# Batches


async def test_a_batch_holds_what_is_there_and_waits_no_longer_than_told(bus: Bus) -> None:
    await fill(bus, 10)
    async with bus.read(follow=True) as reader:
        assert [number_of(m) for m in await reader.batch(4, 5)] == [1, 2, 3, 4]
        assert [number_of(m) for m in await reader.batch(100, 5, gather=False)] == list(
            range(5, 11)
        )
        assert await reader.batch(100, 0.05) == []
        assert not reader.ended
        await fill(bus, 2, first=11)
        assert [number_of(m) for m in await reader.batch(2, 5)] == [11, 12]


async def test_the_batches_of_a_bounded_reading_end_with_an_empty_one(bus: Bus) -> None:
    await fill(bus, 5)
    async with bus.read() as reader:
        sizes = [len(await reader.batch(3, 5)) for _ in range(3)]
        assert sizes == [3, 2, 0]
        assert reader.ended


# Following


class Following:
    """A reading that goes on in the background and keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.open = anyio.Event()

    async def run(self, bus: Bus, **how: Any) -> None:
        async with bus.read(follow=True, **how) as reader:
            self.open.set()
            async for message in reader:
                self.seen.append(message)


async def test_following_goes_on_with_what_comes(bus: Bus) -> None:
    await fill(bus, 3)
    all_of_it, only_new = Following(), Following()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_of_it.run, bus)
        tasks.start_soon(partial(only_new.run, bus, start=None))
        await all_of_it.open.wait()
        await only_new.open.wait()
        await fill(bus, 3, first=4)
        await eventually(lambda: len(all_of_it.seen) == 6 and len(only_new.seen) == 3)
        tasks.cancel_scope.cancel()
    assert [number_of(m) for m in all_of_it.seen] == [1, 2, 3, 4, 5, 6]
    assert [number_of(m) for m in only_new.seen] == [4, 5, 6]


async def test_following_survives_kills_of_the_server_without_gap_or_double() -> None:
    with server() as own:
        await fresh(own.url)
        async with (
            connect(own.url, patience_seconds=30) as writer,
            connect(own.url) as bus,
            anyio.create_task_group() as tasks,
        ):
            everything, tasks_only = Following(), Following()
            tasks.start_soon(everything.run, bus)
            tasks.start_soon(partial(tasks_only.run, bus, filters=[TASK]))
            written = 0

            async def write() -> None:
                nonlocal written
                while True:
                    written += 1
                    await writer.publish(TASK if written % 3 else NOTE, task(written))

            with anyio.CancelScope() as writing:
                tasks.start_soon(write)
                for kills in range(4):
                    goal = written + 50
                    await eventually(lambda: written > goal, within_seconds=20)  # noqa: B023
                    if kills < 3:
                        own.kill()
                        await eventually(lambda: not bus.connection.connected)
                        own.restart()
                writing.cancel()
            end = written - 1
            await eventually(lambda: len(everything.seen) >= end, within_seconds=20)
            tasks.cancel_scope.cancel()
        seen = [number_of(message) for message in everything.seen]
        assert seen[:end] == list(range(1, end + 1))
        of_tasks = [number_of(message) for message in tasks_only.seen]
        assert of_tasks == [number for number in seen if number % 3][: len(of_tasks)]
        assert len(of_tasks) > 100


async def test_a_bounded_reading_survives_a_kill_too() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url) as bus:
            await fill(bus, 3000)
            async with bus.read(window=100) as reader:
                read = [number_of(m) for m in await reader.batch(50, 5)]
                own.kill()
                own.restart()
                read += [number_of(m) async for m in reader]
    assert read == list(range(1, 3001))


async def test_a_reading_goes_on_where_its_consumer_was_removed(bus: Bus) -> None:
    """As the server does with one that was not asked for a minute."""
    await fill(bus, 500)
    async with bus.read(window=100) as reader:
        read = [number_of(m) for m in await reader.batch(50, 5)]
        for name in await consumers(bus):
            await bus.connection.api(f"CONSUMER.DELETE.LOG.{name}")
        read += [number_of(m) async for m in reader]
    assert read == list(range(1, 501))


async def test_a_stream_that_is_deleted_while_it_is_followed_is_named(bus: Bus) -> None:
    with pytest.raises(NotFound, match="there is no stream HEALTH"):
        async with bus.read("HEALTH", follow=True) as reader:
            await bus.connection.api("STREAM.DELETE.HEALTH")
            with anyio.fail_after(5):
                await reader.batch(1, None)


async def test_a_bus_that_is_closed_ends_its_readings(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        pass
    with anyio.fail_after(2), pytest.raises(ConnectionLost, match="has ended for good"):
        await numbers(bus)
    with anyio.fail_after(2), pytest.raises(ConnectionLost, match="has ended for good"):
        await bus.last(TASK)


# What is left behind


async def test_a_reading_leaves_nothing_on_the_server(bus: Bus) -> None:
    await fill(bus, 10)
    async with bus.read(follow=True):
        assert len(await consumers(bus)) == 1
    assert await consumers(bus) == []

    with pytest.raises(ZeroDivisionError):
        async with bus.read() as reader:
            async for _ in reader:
                raise ZeroDivisionError
    assert await consumers(bus) == []

    async with bus.read() as reader:
        async for _ in reader:
            break
    assert await consumers(bus) == []


async def test_a_reading_that_is_cancelled_leaves_nothing_on_the_server(bus: Bus) -> None:
    following = Following()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(following.run, bus)
        await following.open.wait()
        assert len(await consumers(bus)) == 1
        tasks.cancel_scope.cancel()
    assert await consumers(bus) == []


async def test_reading_settles_nothing_and_changes_nothing(bus: Bus) -> None:
    await fill(bus, 10)
    before = (await bus.connection.api("STREAM.INFO.LOG"))["state"]
    assert await numbers(bus) == await numbers(bus)
    after = (await bus.connection.api("STREAM.INFO.LOG"))["state"]
    assert {**before, "consumer_count": 0} == {**after, "consumer_count": 0}


# Single messages


async def test_a_message_is_the_same_however_it_is_read(bus: Bus) -> None:
    await fill(bus, 3)
    async with bus.read() as reader:
        third = [message async for message in reader][2]
    assert await bus.get("LOG", 3) == third
    assert await bus.last(TASK) == third
    assert (third.stream, third.sequence, third.subject, third.id) == ("LOG", 3, TASK, "task-3")
    assert abs(third.time - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_message_without_headers_has_none(bus: Bus) -> None:
    await bus.connection.request(TASK, b"1")
    for message in (await bus.last(TASK), await bus.get("LOG", 1)):
        assert message is not None
        assert (message.headers, message.id) == (None, "")


async def test_no_header_of_a_writer_makes_a_message_look_like_another_or_none(bus: Bus) -> None:
    for status in ("404", "408", "409", "100", "503"):
        forged = {"Nats-Sequence": "99", "Nats-Subject": "x", "Nats-Stream": "X", "Status": status}
        await bus.connection.request(TASK, b"1", forged)
        message = await bus.last(TASK)
        assert message is not None
        assert (message.stream, message.subject) == ("LOG", TASK)
        assert await bus.get("LOG", message.sequence) == message
    with anyio.fail_after(5):
        async with bus.read() as reader:
            assert [message.sequence async for message in reader] == [1, 2, 3, 4, 5]


async def test_what_is_not_there_is_none_or_named(bus: Bus) -> None:
    assert await bus.last(TASK) is None
    for sequence in (1, 0, -1):
        with pytest.raises(NotFound, match=f"there is no message {sequence} in stream LOG"):
            await bus.get("LOG", sequence)
    with pytest.raises(NotFound, match="there is no stream NOPE"):
        await bus.get("NOPE", 1)
    await bus.connection.api("STREAM.DELETE.LOG")
    with pytest.raises(NotFound, match="there is no stream LOG"):
        await bus.last(TASK)


async def test_what_cannot_be_read_as_an_event_is_read_as_a_message(bus: Bus) -> None:
    for payload in (b"\xff", b"{", b""):
        await bus.connection.request(TASK, payload)
    async with bus.read() as reader:
        messages = [message async for message in reader]
    assert [message.payload for message in messages] == [b"\xff", b"{", b""]
    for message in messages:
        with pytest.raises(InvalidEvent):
            message.event()


def store_raw(url: str, subject: bytes, headers: bytes, payload: bytes) -> None:
    """As any client can, with bytes that ours would not send."""
    host, _, port = url.removeprefix("nats://").partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=5) as raw,
        raw.makefile("rb") as answers,
    ):
        raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n')
        size, total = len(headers), len(headers) + len(payload)
        raw.sendall(b"HPUB %b %d %d\r\n%b%b\r\n" % (subject, size, total, headers, payload))
        raw.sendall(b"PING\r\n")
        assert b"PONG\r\n" in iter(answers.readline, b"")


@pytest.mark.parametrize(
    ("subject", "headers"),
    [
        (b"inbox.bob.eve.\xff", b"NATS/1.0\r\n\r\n"),
        (b"inbox.bob.eve.a\x0cb\x0bc", b"NATS/1.0\r\n\r\n"),
        (b"inbox.bob.eve.t", b"NATS/1.0\r\nA: \xff\r\n\xff: b\r\nno colon\r\n: no name\r\n\r\n"),
        (b"inbox.bob.eve.t", b"NATS/1.0"),
        (b"inbox.bob.eve.t", b"X\r\n\r\n"),
        (b"inbox.bob.eve.t", b"NATS/1.0 \xff\xff\xff\r\n\r\n"),
        (b"inbox.bob.eve.t", b"NATS/1.0 503\r\n\r\n"),
    ],
)
async def test_no_bytes_that_a_client_stored_can_stop_a_reader(
    bus: Bus, subject: bytes, headers: bytes
) -> None:
    await fill(bus, 1)
    store_raw(bus.connection.url, subject, headers, b'{"q": 1}')
    await fill(bus, 1, first=3)
    with anyio.fail_after(5):
        async with bus.read() as reader:
            read = [message async for message in reader]
        assert [message.sequence for message in read] == [1, 2, 3]
        assert typed(read[1].event(), dict[str, int]).data == {"q": 1}
        assert (await bus.get("LOG", 2)).payload == b'{"q": 1}'
    assert bus.connection.connected


# Permissions


@pytest.fixture
async def guarded(own_server: Callable[[str], Any]) -> AsyncIterator[Callable[[str], str]]:
    """A server where the user `half` may create consumers but not ask them, and `none` neither."""
    half = '"$JS.API.CONSUMER.MSG.NEXT.>"'
    none = '"$JS.API.CONSUMER.>"'
    own = own_server(
        "authorization { users: [{user: admin, password: admin},"
        f"{{user: half, password: half, permissions: {{publish: {{deny: [{half}]}}}}}},"
        f"{{user: none, password: none, permissions: {{publish: {{deny: [{none}]}}}}}}] }}"
    )
    await fresh(own.url("admin"))
    async with jetstream.connect(own.url("admin")) as connection:
        await connection.request(TASK, b"1")
    yield own.url


@pytest.mark.parametrize("user", ["half", "none"])
async def test_a_forbidden_reading_is_named_at_once(
    guarded: Callable[[str], str], user: str
) -> None:
    async with connect(guarded(user)) as bus:
        with anyio.fail_after(3), pytest.raises(PermissionDenied):
            await numbers(bus)


async def test_what_one_reading_may_not_does_not_end_another(
    own_server: Callable[[str], Any],
) -> None:
    deny = '"$JS.API.CONSUMER.MSG.NEXT.HEALTH.>"'
    own = own_server(
        "authorization { users: [{user: admin, password: admin},"
        f"{{user: some, password: some, permissions: {{publish: {{deny: [{deny}]}}}}}}] }}"
    )
    await fresh(own.url("admin"))
    async with connect(own.url("some")) as bus, bus.read(follow=True) as reader:
        with anyio.fail_after(3), pytest.raises(PermissionDenied):
            async with bus.read("HEALTH", follow=True) as forbidden:
                await forbidden.batch(1, None)
        await bus.publish(TASK, task(1))
        assert len(await reader.batch(1, 5)) == 1
