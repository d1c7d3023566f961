"""The connection: each failure has its name, comes at once, and leaves the connection usable."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from stratum_bus import jetstream
from stratum_bus.errors import (
    ConnectionLost,
    EncodeError,
    InvalidName,
    NoAnswer,
    NoStream,
    NotFound,
    PermissionDenied,
    Refused,
    TooLarge,
)
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.server import Server, free_port
from stratum_bus.testing import eventually, server

AT_ONCE_SECONDS = 2.0
"""Generous for a busy machine, and far below the time-out of a request."""


@pytest.fixture
async def connection(bus_url: str) -> AsyncIterator[Connection]:
    async with jetstream.connect(bus_url, name="test") as connected:
        yield connected


@contextmanager
def at_once() -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < AT_ONCE_SECONDS


@contextmanager
def frozen(of: Server) -> Iterator[None]:
    """The server stops to answer, and goes on later."""
    os.kill(of.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, of.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(of.pid, signal.SIGCONT)


# Connecting


async def test_no_server_is_one_sentence_at_once() -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    with at_once(), pytest.raises(ConnectionLost) as refused:
        async with jetstream.connect(url):
            raise AssertionError("connected to nothing")
    assert str(refused.value) == (
        f"cannot connect to {url}: no server answers there; start one with `stratum up`, "
        "or check the address"
    )


@pytest.mark.parametrize("url", ["nats://127.0.0.1:99999", "http://127.0.0.1", "nats://[", ""])
async def test_an_address_that_is_none_is_one_sentence(url: str) -> None:
    with at_once(), pytest.raises(ConnectionLost, match="cannot connect to"):
        async with jetstream.connect(url):
            raise AssertionError("connected to nothing")


# The library leaves the socket of a refused attempt to the garbage collector.
LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@LEAKS
async def test_wrong_credentials_are_said_so(own_server: Callable[[str], Any]) -> None:
    own = own_server("authorization { users: [{user: alice, password: alice}] }")
    with at_once(), pytest.raises(ConnectionLost, match="the server refused the credentials"):
        async with jetstream.connect(own.url("eve")):
            raise AssertionError("let in")


async def test_a_user_who_may_not_receive_answers_is_told_when_connecting(
    own_server: Callable[[str], Any],
) -> None:
    own = own_server(
        "authorization { users: [{user: alice, password: alice, "
        'permissions: {subscribe: ["_INBOX_alice.>"]}}] }'
    )
    with at_once(), pytest.raises(PermissionDenied, match="subscribe to _INBOX"):
        async with jetstream.connect(own.url("alice")):
            raise AssertionError("its requests would all time out")
    options = {"inbox_prefix": "_INBOX_alice"}
    async with jetstream.connect(own.url("alice"), options=options) as connection:
        assert (await connection.api("INFO"))["streams"] == 0


async def test_a_connect_that_is_given_up_leaves_nothing_open(bus_url: str) -> None:
    with anyio.move_on_after(0):
        async with jetstream.connect(bus_url):
            raise AssertionError("connected within no time")


async def test_it_is_closed_whoever_leaves_it_and_how(bus_url: str) -> None:
    connected: list[Connection] = []

    async def hold() -> None:
        async with jetstream.connect(bus_url) as connection:
            connected.append(connection)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await eventually(lambda: connected)
        tasks.cancel_scope.cancel()
    assert connected[0].closed

    with pytest.raises(ZeroDivisionError):
        async with jetstream.connect(bus_url) as connection:
            connected.append(connection)
            raise ZeroDivisionError
    assert connected[1].closed


# Requests


async def test_nobody_there_is_no_stream(connection: Connection) -> None:
    with at_once(), pytest.raises(NoStream, match=r"no stream takes nobody\.home"):
        await connection.request("nobody.home")


async def test_what_is_not_there_is_named(connection: Connection) -> None:
    with pytest.raises(NotFound, match=r"^there is no stream NOPE$"):
        await connection.api("STREAM.INFO.NOPE")
    with pytest.raises(NotFound, match=r"^there is no stream NOPE$"):
        body = {"stream_name": "NOPE", "config": {"name": "c"}}
        await connection.api("CONSUMER.CREATE.NOPE.c", body)
    with pytest.raises(NotFound, match=r"^there is no consumer nobody of stream LOG$"):
        await connection.api("CONSUMER.INFO.LOG.nobody")
    with pytest.raises(NotFound, match=r"^there is no message as asked for in stream LOG$"):
        await connection.api("STREAM.MSG.GET.LOG", {"seq": 5})


async def test_another_refusal_carries_the_servers_code(connection: Connection) -> None:
    with pytest.raises(Refused, match="unknown field") as refused:
        await connection.api("STREAM.CREATE.X", {"name": "X", "no_such_field": 1})
    assert refused.value.code == 10025


async def test_a_forbidden_subject_is_said_at_once(own_server: Callable[[str], Any]) -> None:
    own = own_server(
        "authorization { users: [{user: Alice, password: Alice, "
        'permissions: {publish: {deny: ["Secret.>", "$JS.API.>"]}}}] }'
    )
    async with jetstream.connect(own.url("Alice")) as connection:
        with at_once(), pytest.raises(PermissionDenied) as refused:
            await connection.request("Secret.Plan")
        assert refused.value.subject == "Secret.Plan"
        assert "does not allow this user to publish to Secret.Plan" in str(refused.value)
        with at_once(), pytest.raises(PermissionDenied):
            await connection.api("STREAM.INFO.LOG")
        with at_once(), pytest.raises(NoStream):
            await connection.request("allowed")


@pytest.mark.parametrize("headers", [{}, {"X": "y" * 1000}, {"Ü": "ü" * 1000}])
async def test_what_is_too_large_is_refused_before_it_is_sent(
    connection: Connection, headers: dict[str, str]
) -> None:
    limit = connection.max_payload
    for size in (limit + 1, limit if headers else limit + 1):
        with at_once(), pytest.raises(TooLarge) as refused:
            await connection.request("inbox.bob.alice.task", b"x" * size, headers)
        assert refused.value.limit_bytes == limit
    # The server ends a connection that sends more than it takes; this one is still good.
    assert (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] == 0


async def test_the_largest_payload_that_fits_is_taken(connection: Connection) -> None:
    header = len("NATS/1.0\r\nX: y\r\n\r\n")
    await connection.request(
        "inbox.bob.alice.task", b"x" * (connection.max_payload - header), {"X": "y"}
    )
    with pytest.raises(TooLarge):
        await connection.request(
            "inbox.bob.alice.task", b"x" * (connection.max_payload - header + 1), {"X": "y"}
        )


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB x 0", "x" * 5000, "\udc80"])
async def test_a_subject_that_would_break_the_protocol_is_refused(
    connection: Connection, subject: str
) -> None:
    with at_once(), pytest.raises(InvalidName):
        await connection.request(subject)
    assert (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] == 0


async def test_a_header_that_would_break_the_protocol_is_refused(connection: Connection) -> None:
    with pytest.raises(InvalidName, match="header"):
        await connection.send("x", b"", {"bad name:": "x"})
    assert (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] == 0


async def test_text_that_is_no_utf8_is_refused_wherever_it_stands(connection: Connection) -> None:
    with pytest.raises(InvalidName, match="UTF-8"):
        await connection.send("x", b"", {"A": "\udc80"})
    with pytest.raises(EncodeError, match="UTF-8"):
        await connection.api("STREAM.MSG.GET.LOG", {"last_by_subj": "\udc80"})
    assert (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] == 0


async def test_no_answer_in_time_is_named_so_and_the_connection_stays() -> None:
    with server() as own:
        async with jetstream.connect(own.url) as connection:
            with frozen(own), pytest.raises(NoAnswer, match=r"did not answer \$JS\.API\.INFO"):
                await connection.api("INFO", timeout_seconds=0.2)
            assert "streams" in await connection.api("INFO")


async def test_a_server_that_dies_fails_what_waits_at_once() -> None:
    with server() as own:
        async with jetstream.connect(own.url) as connection:
            failed: list[Exception] = []

            async def ask() -> None:
                try:
                    await connection.request("slow.service", timeout_seconds=30)
                except ConnectionLost as error:
                    failed.append(error)

            asked: list[Reply] = []
            async with (
                connection.subscribe("slow.service", asked.append),
                anyio.create_task_group() as tasks,
            ):
                for _ in range(3):
                    tasks.start_soon(ask)
                await eventually(lambda: len(asked) == 3)
                with at_once():
                    own.kill()
                    await eventually(lambda: len(failed) == 3)
            assert "broke before slow.service was answered" in str(failed[0])
            with at_once(), pytest.raises(ConnectionLost, match="no connection to nats://"):
                await connection.request("slow.service")


async def test_a_request_that_is_given_up_leaves_the_connection_good(
    connection: Connection,
) -> None:
    asked: list[Reply] = []
    async with connection.subscribe("slow.service", asked.append):
        with anyio.move_on_after(0.05):
            await connection.request("slow.service")
        await eventually(lambda: asked)
        await connection.send(asked[0].reply, b"too late")
        assert (await connection.api("STREAM.INFO.LOG"))["state"]["messages"] == 0


async def test_it_comes_back_by_itself_after_a_long_outage() -> None:
    with server() as own:
        async with jetstream.connect(own.url) as connection:
            heard: list[bytes] = []
            changes: list[bool] = []
            connection.on_change(lambda _: changes.append(connection.connected))
            async with connection.subscribe("news", lambda reply: heard.append(reply.payload)):
                own.kill()
                await eventually(lambda: not connection.connected)
                with at_once(), pytest.raises(ConnectionLost, match="is the server running"):
                    await connection.wait_connected(0.5)  # longer than all attempts of a connect
                own.restart()
                await connection.wait_connected(10)
                async with jetstream.connect(own.url) as other:
                    await other.send("news", b"subscribed again")
                    await eventually(lambda: heard == [b"subscribed again"])
            await eventually(lambda: changes and changes[-1])
            assert False in changes


@LEAKS
async def test_a_user_who_is_removed_is_told_and_comes_back_when_there_again(
    own_server: Callable[[str], Any],
) -> None:
    users = "authorization { users: [%s] }"
    alice, bob = "{user: alice, password: alice}", "{user: bob, password: bob}"
    own = own_server(users % f"{alice}, {bob}")
    async with jetstream.connect(own.url("alice")) as connection:
        own.reload(users % bob)
        await eventually(lambda: not connection.connected)

        async def said() -> bool:
            try:
                await connection.wait_connected(0.01)
            except ConnectionLost as error:
                return "the server refuses the credentials now" in str(error)
            return False

        await eventually(said)
        own.reload(users % f"{alice}, {bob}")
        await connection.wait_connected(10)
        assert "streams" in await connection.api("INFO")


async def test_a_connection_that_the_server_ends_for_good_says_so(
    own_server: Callable[[str], Any],
) -> None:
    async with jetstream.connect(own_server("max_subscriptions: 1").plain_url) as connection:
        async with connection.subscribe("one.too.many", print):
            await eventually(lambda: connection.closed)
        for call in (
            lambda: connection.request("x"),
            lambda: connection.wait_connected(30),
            lambda: connection.api("INFO"),
        ):
            with at_once(), pytest.raises(ConnectionLost, match=r"for good: .*subscriptions"):
                await call()
        with at_once(), pytest.raises(ConnectionLost, match="ended for good"):
            async with connection.subscribe("x", print):
                raise AssertionError("subscribed")


async def test_no_error_shows_a_password() -> None:
    url = f"nats://alice:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionLost) as refused:
        async with jetstream.connect(url):
            raise AssertionError("connected to nothing")
    assert "secret" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)


# Subscriptions


async def test_leaving_a_subscription_hands_over_what_the_server_had_sent(bus_url: str) -> None:
    async with jetstream.connect(bus_url) as sender, jetstream.connect(bus_url) as receiver:
        heard: list[bytes] = []
        async with receiver.subscribe("numbers", lambda reply: heard.append(reply.payload)):
            await receiver.api("INFO")  # the server knows of the subscription
            for number in range(500):
                await sender.send("numbers", str(number).encode())
            await sender.api("INFO")  # they are at the server now
        assert heard == [str(number).encode() for number in range(500)]


async def test_a_callback_that_fails_does_not_end_the_subscription(connection: Connection) -> None:
    heard: list[bytes] = []

    def take(reply: Reply) -> None:
        heard.append(reply.payload)
        if reply.payload == b"0":
            raise ZeroDivisionError

    async with connection.subscribe("numbers", take):
        await connection.send("numbers", b"0")
        await connection.send("numbers", b"1")
        await eventually(lambda: heard == [b"0", b"1"])


async def test_the_members_of_a_queue_share_the_messages(connection: Connection) -> None:
    heard: list[str] = []
    async with (
        connection.subscribe("jobs", lambda _: heard.append("a"), queue="workers"),
        connection.subscribe("jobs", lambda _: heard.append("b"), queue="workers"),
    ):
        for _ in range(50):
            await connection.send("jobs")
        await eventually(lambda: len(heard) == 50)
    assert set(heard) == {"a", "b"}
