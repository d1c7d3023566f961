"""Consuming: every event is handled or buried, whatever happens to handlers, processes and servers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from stratum_bus import dead
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import (
    Delivery,
    Done,
    Leave,
    Outcome,
    Reject,
    Retry,
    RetryLater,
    consume,
)
from stratum_bus.dead import Letter
from stratum_bus.errors import (
    ConnectionLost,
    NoAnswer,
    NotFound,
    PermissionDenied,
    Refused,
    StorageFull,
)
from stratum_bus.event import Event, encode, new, typed
from stratum_bus.jetstream import Reply
from stratum_bus.publish import INLINE_MAX, Append
from stratum_bus.testing import eventually, fresh, server

SOON = Retry(first_seconds=0.01)
Handler = Callable[[Delivery], Awaitable[Outcome | None]]


def task(data: Any = 1, id: str | None = None) -> Event[Any]:
    return new("task", data, source="/agents/alice", id=id)


async def fill(bus: Bus, count: int, first: int = 0) -> None:
    await bus.publish_many(
        Append("inbox.bob.alice.task", task(n, f"t{n}")) for n in range(first, first + count)
    )


def number(delivery: Delivery) -> int:
    return typed(delivery.event, int).data


class Handled:
    """A handler that notes what it gets."""

    def __init__(self, outcome: Outcome | None = None) -> None:
        self.deliveries: list[Delivery] = []
        self.outcome = outcome

    @property
    def numbers(self) -> list[int]:
        return [number(delivery) for delivery in self.deliveries]

    async def __call__(self, delivery: Delivery) -> Outcome | None:
        self.deliveries.append(delivery)
        return self.outcome


class Consumer:
    """A running `consume`; `finished` when it has returned by itself."""

    def __init__(self) -> None:
        self.stop = anyio.Event()
        self.finished = anyio.Event()


@asynccontextmanager
async def consuming(
    bus: Bus, handler: Handler, agent: str = "bob", **how: Any
) -> AsyncIterator[Consumer]:
    consumer = Consumer()

    async def run() -> None:
        await consume(bus, agent, handler, stop=consumer.stop, **{"retry": SOON, **how})
        consumer.finished.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield consumer
        consumer.stop.set()


async def unsettled(bus: Bus) -> tuple[int, int]:
    """How many are delivered and not settled, and how many not yet delivered."""
    try:
        info = await bus.connection.api("CONSUMER.INFO.LOG.bob")
    except NotFound:
        return -1, -1
    return info["num_ack_pending"], info["num_pending"]


async def all_settled(bus: Bus) -> bool:
    return await unsettled(bus) == (0, 0)


async def asked(bus: Bus, times: int) -> bool:
    """Whether so many requests for messages wait at the server."""
    try:
        info = await bus.connection.api("CONSUMER.INFO.LOG.bob")
    except NotFound:
        return False
    return bool(info["num_waiting"] >= times)


async def available(bus: Bus) -> int:
    """How many the server would hand out to bob now; they are given back at once."""
    taken: list[Reply] = []
    inbox = bus.connection.new_inbox()
    async with bus.connection.subscribe(inbox, taken.append):
        body = b'{"batch": 100000, "no_wait": true}'
        await bus.connection.send("$JS.API.CONSUMER.MSG.NEXT.LOG.bob", body, reply=inbox)
        await eventually(lambda: taken and taken[-1].status)  # that it has no more
    messages = [reply for reply in taken if not reply.status]
    for reply in messages:
        await bus.connection.send(reply.reply, b"-NAK")
    return len(messages)


async def only_letter(bus: Bus) -> Letter:
    async def one() -> Letter | None:
        letters = await dead.letters(bus)
        return letters[0] if letters else None

    letter = await eventually(one)
    await eventually(partial(all_settled, bus))
    assert len(await dead.letters(bus)) == 1
    assert letter is not None
    return letter


# What is received


async def test_an_agent_handles_all_it_was_ever_sent_and_nothing_else(bus: Bus) -> None:
    await fill(bus, 300)
    await bus.publish("inbox.eve.alice.task", task(1000))
    await bus.publish("topic.alice.task", task(1001))
    handled = Handled()
    async with consuming(bus, handled):
        await fill(bus, 300, first=300)
        await eventually(lambda: len(handled.deliveries) >= 600)
        await eventually(partial(all_settled, bus))
    assert sorted(handled.numbers) == list(range(600))
    first = handled.deliveries[0]
    assert (first.attempt, first.message.sequence, first.message.stream) == (1, 1, "LOG")


async def test_an_agent_receives_the_topics_it_follows(bus: Bus) -> None:
    handled = Handled()
    async with consuming(bus, handled, follows=("a.b", "c", "c")):
        for n, type in enumerate(("a.b", "a.b.c", "a", "c")):
            await bus.publish(f"topic.alice.{type}", task(n))
        await eventually(lambda: len(handled.deliveries) == 2)
    assert handled.numbers == [0, 3]


async def test_one_at_a_time_is_one_after_the_other(bus: Bus) -> None:
    await fill(bus, 50)
    at_once = most = 0
    numbers: list[int] = []

    async def handle(delivery: Delivery) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.lowlevel.checkpoint()
        numbers.append(number(delivery))
        at_once -= 1

    async with consuming(bus, handle, concurrency=1):
        await eventually(lambda: len(numbers) == 50)
    assert numbers == list(range(50))
    assert most == 1


async def test_no_more_are_handled_at_once_than_allowed_and_no_fewer(bus: Bus) -> None:
    await fill(bus, 100)
    at_once = most = 0
    enough = anyio.Event()

    async def handle(delivery: Delivery) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        if at_once == 7:
            enough.set()
        await enough.wait()  # the first seven wait for each other
        at_once -= 1

    async with consuming(bus, handle, concurrency=7):
        await eventually(partial(all_settled, bus))
    assert most == 7


async def test_two_workers_share_the_work(bus: Bus) -> None:
    one, two = Handled(), Handled()
    async with consuming(bus, one), consuming(bus, two):
        await eventually(partial(asked, bus, 2))
        await fill(bus, 400)
        await eventually(partial(all_settled, bus))
    assert sorted(one.numbers + two.numbers) == list(range(400))
    assert one.numbers
    assert two.numbers


async def test_large_data_is_brought_in_before_it_is_handled(bus: Bus) -> None:
    handled = Handled()
    await bus.publish("inbox.bob.alice.task", task("x" * INLINE_MAX))
    async with consuming(bus, handled):
        await eventually(lambda: handled.deliveries)
    assert typed(handled.deliveries[0].event, str).data == "x" * INLINE_MAX


async def test_another_stream_and_other_filters_may_be_consumed(bus: Bus) -> None:
    handled = Handled()
    async with consuming(bus, handled, stream="HEALTH", filters=["health.*.i1"]):
        await bus.publish("health.bob.i1", task(1))
        await bus.publish("health.bob.i2", task(2))
        await bus.publish("health.eve.i1", task(3))
        await eventually(lambda: len(handled.deliveries) == 2)
    assert sorted(handled.numbers) == [1, 3]


# Outcomes


async def test_done_is_done(bus: Bus) -> None:
    await fill(bus, 2)
    handled = Handled(Done())
    async with consuming(bus, handled):
        await eventually(lambda: len(handled.deliveries) == 2)
        await eventually(partial(all_settled, bus))
    assert await dead.letters(bus) == []


async def test_a_rejected_event_is_a_dead_letter_at_once(bus: Bus) -> None:
    await fill(bus, 1)
    handled = Handled(Reject("not for me"))
    async with consuming(bus, handled):
        letter = await only_letter(bus)
    assert len(handled.deliveries) == 1
    assert (letter.letter.reason, letter.letter.error) == ("rejected", "not for me")
    assert (letter.letter.attempts, letter.letter.origin.id) == (1, "t0")
    assert letter.subject == "dead.bob.task"


async def test_a_failing_handler_is_tried_again_and_then_its_event_buried(bus: Bus) -> None:
    await fill(bus, 1)
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise ValueError("never works")

    async with consuming(bus, handle, retry=Retry(max_attempts=3, first_seconds=0.01)):
        letter = await only_letter(bus)
    assert attempts == [1, 2, 3]
    assert (letter.letter.reason, letter.letter.attempts) == ("failed", 3)
    assert letter.letter.error == "ValueError('never works')"
    assert 'raise ValueError("never works")' in letter.letter.trace


async def test_an_event_that_works_in_the_end_is_no_dead_letter(bus: Bus) -> None:
    await fill(bus, 3)
    done: list[int] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.attempt < 3:
            raise ValueError("not yet")
        done.append(number(delivery))

    async with consuming(bus, handle):
        await eventually(partial(all_settled, bus))
    assert sorted(done) == [0, 1, 2]
    assert await dead.letters(bus) == []


async def test_a_handler_may_say_when_to_try_again(bus: Bus) -> None:
    await fill(bus, 1)
    times: list[float] = []

    async def handle(delivery: Delivery) -> Outcome:
        times.append(time.monotonic())
        return RetryLater("not yet", delay_seconds=0.2) if delivery.attempt == 1 else Done()

    async with consuming(bus, handle):
        await eventually(partial(all_settled, bus))
        await eventually(lambda: len(times) == 2)
    assert times[1] - times[0] >= 0.19


async def test_asking_for_ever_more_attempts_ends_in_a_dead_letter(bus: Bus) -> None:
    await fill(bus, 1)
    handled = Handled(RetryLater("still not", delay_seconds=0))
    async with consuming(bus, handled, retry=Retry(max_attempts=4)):
        letter = await only_letter(bus)
    assert [delivery.attempt for delivery in handled.deliveries] == [1, 2, 3, 4]
    assert (letter.letter.reason, letter.letter.error) == ("failed", "still not")


async def test_what_is_left_to_another_comes_again_after_a_while(bus: Bus) -> None:
    await fill(bus, 1)
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> Outcome:
        attempts.append(delivery.attempt)
        return Leave() if delivery.attempt == 1 else Done()

    async with consuming(bus, handle, ack_wait_seconds=0.3):
        await eventually(partial(all_settled, bus))
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    "outcome",
    [
        "done",
        True,
        RetryLater(delay_seconds=-1),
        RetryLater(delay_seconds=float("nan")),
        RetryLater(delay_seconds=float("inf")),
        RetryLater(delay_seconds=1e30),
        RetryLater(delay_seconds="soon"),  # type: ignore[arg-type]
    ],
)
async def test_what_is_no_outcome_is_a_dead_letter_that_says_so(bus: Bus, outcome: Any) -> None:
    await fill(bus, 1)
    async with consuming(bus, Handled(outcome)):
        letter = await only_letter(bus)
    assert letter.letter.reason == "failed"
    assert "which is no outcome" in letter.letter.error


class Unshowable(Exception):
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("x" * 1_000_000), "ValueError('xxx"),
        (ValueError("\udc80"), "ValueError("),
        (Unshowable("a"), "Unshowable, which cannot be shown"),
        (ExceptionGroup("several", [ValueError("a")]), "ExceptionGroup("),
        (StopAsyncIteration(), "StopAsyncIteration("),
        (TimeoutError(), "TimeoutError()"),
        (asyncio.CancelledError(), "CancelledError()"),
    ],
)
async def test_whatever_a_handler_raises_ends_in_a_letter_and_the_next_event_is_handled(
    bus: Bus, error: BaseException, said: str
) -> None:
    await fill(bus, 1)
    done: list[int] = []

    async def handle(delivery: Delivery) -> None:
        if number(delivery) == 0:
            raise error
        done.append(number(delivery))

    async with consuming(bus, handle, concurrency=1, retry=Retry(max_attempts=2, first_seconds=0)):
        letter = await only_letter(bus)
        await fill(bus, 1, first=1)
        await eventually(lambda: done == [1])
    assert letter.letter.error.startswith(said)
    assert letter.letter.attempts == 2


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("inbox.bob.alice.task", b"\xff"),
        ("inbox.bob.alice.task", b""),
        ("inbox.bob.alice.task", b"{"),
        ("inbox.bob.alice.task", b'{"specversion": "0.3"}'),
        ("inbox.bob.short", b"\xff"),
        ("inbox.bob.alice.\xff", b"\xff"),
        ("inbox.bob.alice.task", encode(Event(id="1", source="/t", type="t", dataref="blob:*"))),
        (
            "inbox.bob.alice.task",
            encode(Event(id="1", source="/t", type="t", dataref="blob:" + "0" * 64)),
        ),
    ],
)
async def test_what_cannot_be_read_is_buried_and_the_next_event_is_handled(
    bus: Bus, subject: str, payload: bytes
) -> None:
    await bus.connection.request(subject, payload)
    await fill(bus, 1, first=1)
    handled = Handled()
    async with consuming(bus, handled):
        letter = await only_letter(bus)
        await eventually(lambda: handled.numbers == [1])
    assert (letter.letter.reason, letter.letter.origin.sequence) == ("unreadable", 1)


async def test_data_of_the_wrong_type_is_unreadable(bus: Bus) -> None:
    await bus.publish("inbox.bob.alice.task", task({"not": "a number"}))

    async def handle(delivery: Delivery) -> None:
        number(delivery)

    async with consuming(bus, handle):
        letter = await only_letter(bus)
    assert letter.letter.reason == "unreadable"
    assert "Expected `int`, got `object`" in letter.letter.error


async def test_an_event_that_kills_who_takes_it_is_buried_in_the_end(bus: Bus) -> None:
    """Each instance ends without settling it, as by kill -9."""
    await fill(bus, 1)
    most = Retry(max_deliveries=3)
    for attempt in range(1, 4):
        taken = anyio.Event()

        async def die(
            delivery: Delivery, attempt: int = attempt, taken: anyio.Event = taken
        ) -> None:
            assert delivery.attempt == attempt
            taken.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                partial(
                    consume, bus, "bob", die, stop=anyio.Event(), retry=most, ack_wait_seconds=0.5
                )
            )
            await taken.wait()
            tasks.cancel_scope.cancel()
    handled = Handled()
    async with consuming(bus, handled, retry=most, ack_wait_seconds=0.5):
        letter = await only_letter(bus)
    assert handled.deliveries == []
    assert (letter.letter.reason, letter.letter.attempts) == ("undeliverable", 4)
    assert letter.letter.error == "delivered 3 times, never settled"


# Errors that are not the event's fault, and errors that only look so


@pytest.mark.parametrize("error", [ConnectionLost("other"), NoAnswer("other service")])
async def test_a_lost_server_of_the_handlers_own_is_its_failure(bus: Bus, error: Exception) -> None:
    """Ours answers: then it was another one, and the event has its attempts like any other."""
    await fill(bus, 1)
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        raise error

    async with consuming(bus, handle, retry=Retry(max_attempts=3, first_seconds=0.01)):
        letter = await only_letter(bus)
    assert attempts == [1, 2, 3]
    assert letter.letter.reason == "failed"


async def test_while_the_servers_disk_is_full_an_event_stays_in_hand(bus: Bus) -> None:
    await fill(bus, 1)
    attempts: list[int] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 3:
            raise StorageFull("x", "no space left")

    async with consuming(bus, handle, retry=Retry(max_attempts=1)):
        await eventually(partial(all_settled, bus))
    assert attempts == [1, 1, 1]
    assert await dead.letters(bus) == []


async def test_kills_of_the_server_lose_nothing_and_bury_nothing() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url, patience_seconds=30) as sender, connect(own.url) as bus:
            handled: Counter[int] = Counter()
            sent = 0

            async def send() -> None:
                nonlocal sent
                while True:
                    await sender.publish("inbox.bob.alice.task", task(sent, f"t{sent}"))
                    sent += 1

            async def handle(delivery: Delivery) -> None:
                await bus.last("run.bob.r1")  # fails while the server is gone
                handled[number(delivery)] += 1

            async with (
                consuming(bus, handle, retry=Retry(max_attempts=2), ack_wait_seconds=1),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(send)
                for _ in range(3):
                    goal = len(handled) + 100
                    await eventually(lambda: len(handled) > goal, within_seconds=20)  # noqa: B023
                    own.kill()
                    await eventually(lambda: not bus.connection.connected)
                    own.restart()
                goal = len(handled) + 100
                await eventually(lambda: len(handled) > goal, within_seconds=20)
                tasks.cancel_scope.cancel()
            async with consuming(bus, handle, ack_wait_seconds=1):
                await eventually(partial(all_settled, bus), within_seconds=20)
            assert set(range(sent)) <= set(handled)
            assert await dead.letters(bus) == []


async def test_a_dead_letter_that_cannot_be_written_now_is_written_later() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url) as bus:
            await fill(bus, 1)
            killed = anyio.Event()

            async def handle(delivery: Delivery) -> Outcome:
                if not killed.is_set():
                    own.kill()
                    await eventually(lambda: not bus.connection.connected)
                    killed.set()
                return Reject("no")

            async with consuming(bus, handle):
                await killed.wait()
                own.restart()
                await bus.connection.wait_connected(10)
                letter = await only_letter(bus)
            assert letter.letter.reason == "rejected"


async def test_a_connection_that_ended_for_good_ends_consuming(bus_url: str) -> None:
    async with connect(bus_url) as bus, anyio.create_task_group() as tasks:
        await fill(bus, 1)
        handled = Handled()

        async def close() -> None:
            await eventually(lambda: handled.deliveries)
            await bus.connection.close()

        tasks.start_soon(close)
        with anyio.fail_after(5), pytest.raises(ConnectionLost, match="it was closed"):
            await consume(bus, "bob", handled, stop=anyio.Event())


# Holding what is in hand


async def test_a_long_handler_keeps_its_event_and_those_that_wait_behind_it(bus: Bus) -> None:
    await fill(bus, 2)
    attempts: list[tuple[int, int]] = []

    async def handle(delivery: Delivery) -> None:
        attempts.append((number(delivery), delivery.attempt))
        await anyio.sleep(0.8)

    async with consuming(bus, handle, concurrency=1, ack_wait_seconds=0.3):
        await eventually(partial(all_settled, bus))
    assert attempts == [(0, 1), (1, 1)]


async def test_an_event_is_not_handled_twice_at_once_by_one_instance(bus: Bus) -> None:
    """As when the server takes it for lost while it is in hand."""
    await fill(bus, 1)
    handled = Handled()
    release = anyio.Event()

    async def handle(delivery: Delivery) -> None:
        await handled(delivery)
        await release.wait()

    async with consuming(bus, handle, ack_wait_seconds=60):
        await eventually(lambda: handled.deliveries)
        for again in (1, 2):
            place = f"{again}.1.{again}.0.0"
            await bus.connection.send(f"$JS.ACK.LOG.bob.{place}", b"-NAK")

            async def redelivered(again: int = again) -> bool:
                info = await bus.connection.api("CONSUMER.INFO.LOG.bob")
                return bool(info["delivered"]["consumer_seq"] == again + 1)

            await eventually(redelivered)
        release.set()
        await eventually(partial(all_settled, bus))
    assert [delivery.attempt for delivery in handled.deliveries] == [1]


# Stopping


async def test_stopping_finishes_what_is_in_hand_and_gives_the_rest_back_at_once(bus: Bus) -> None:
    await fill(bus, 100)
    begun, finished = Handled(), Handled()
    release = anyio.Event()

    async def handle(delivery: Delivery) -> None:
        await begun(delivery)
        await release.wait()
        await finished(delivery)

    async with consuming(bus, handle, concurrency=4, ack_wait_seconds=60) as consumer:
        await eventually(lambda: len(begun.deliveries) == 4)
        consumer.stop.set()

        async def the_rest_is_there() -> bool:
            return await available(bus) == 96

        await eventually(the_rest_is_there)
        assert finished.deliveries == []
        release.set()
        await consumer.finished.wait()
    assert begun.numbers == finished.numbers == [0, 1, 2, 3]
    assert await unsettled(bus) == (96, 0)


async def test_who_does_not_finish_within_the_grace_is_cancelled_and_its_event_given_back(
    bus: Bus,
) -> None:
    await fill(bus, 3)
    cancelled: list[int] = []

    async def handle(delivery: Delivery) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number(delivery))

    async with consuming(bus, handle, grace_seconds=0.1, ack_wait_seconds=60) as consumer:

        async def in_hand() -> bool:
            return await unsettled(bus) == (3, 0)

        await eventually(in_hand)
        consumer.stop.set()
        with anyio.fail_after(5):
            await consumer.finished.wait()
    assert sorted(cancelled) == [0, 1, 2]
    assert await available(bus) == 3


async def test_stopping_in_the_middle_of_a_flow_leaves_nothing_behind(bus: Bus) -> None:
    done = anyio.Event()
    sent = 0

    async def send() -> None:
        nonlocal sent
        while not done.is_set():
            await fill(bus, 20, first=sent)
            sent += 20

    handled = Handled()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        for _ in range(10):
            goal = len(handled.deliveries) + 50
            async with consuming(bus, handled, ack_wait_seconds=60) as consumer:
                await eventually(lambda: len(handled.deliveries) > goal)  # noqa: B023
                consumer.stop.set()
                await consumer.finished.wait()
        done.set()
    assert await available(bus) == sent - len(handled.deliveries)
    assert len(set(handled.numbers)) == len(handled.deliveries)


async def test_cancelling_gives_all_back_at_once(bus: Bus) -> None:
    await fill(bus, 20)
    begun = Handled()

    async def handle(delivery: Delivery) -> None:
        await begun(delivery)
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(consume, bus, "bob", handle, stop=anyio.Event(), concurrency=4))
        await eventually(lambda: len(begun.deliveries) == 4)
        tasks.cancel_scope.cancel()
    assert await available(bus) == 20


async def test_stopping_before_the_start_handles_nothing(bus: Bus) -> None:
    await fill(bus, 1)
    stop = anyio.Event()
    stop.set()
    handled = Handled()
    with anyio.fail_after(5):
        await consume(bus, "bob", handled, stop=stop)
    assert await available(bus) == 1


# What ends consuming


async def test_a_stream_that_is_not_there_is_named(bus: Bus) -> None:
    await bus.connection.api("STREAM.DELETE.LOG")
    with anyio.fail_after(5), pytest.raises(NotFound, match="there is no stream LOG"):
        await consume(bus, "bob", Handled(), stop=anyio.Event())


async def test_a_stream_that_is_deleted_meanwhile_is_named(bus: Bus) -> None:
    handled = Handled()

    async def delete() -> None:
        await fill(bus, 1)
        await eventually(lambda: handled.deliveries)
        await bus.connection.api("STREAM.DELETE.LOG")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(delete)
        with anyio.fail_after(10), pytest.raises(NotFound, match="there is no stream LOG"):
            await consume(bus, "bob", handled, stop=anyio.Event())


async def test_a_consumer_that_is_deleted_meanwhile_is_made_again(bus: Bus) -> None:
    handled = Handled()
    async with consuming(bus, handled):
        await fill(bus, 1)
        await eventually(lambda: handled.deliveries)
        await bus.connection.api("CONSUMER.DELETE.LOG.bob")
        await fill(bus, 1, first=1)
        await eventually(lambda: set(handled.numbers) == {0, 1})


@pytest.mark.parametrize(
    "denied",
    ["$JS.API.CONSUMER.CREATE.LOG.bob", "$JS.API.CONSUMER.MSG.NEXT.LOG.bob", "$JS.ACK.LOG.bob.>"],
)
async def test_what_the_user_may_not_do_is_named_at_once(
    own_server: Callable[[str], Any], denied: str
) -> None:
    own = own_server(
        "authorization { users: [{user: admin, password: admin},"
        f'{{user: bob, password: bob, permissions: {{publish: {{deny: ["{denied}"]}}}}}}] }}'
    )
    await fresh(own.url("admin"))
    async with connect(own.url("admin")) as admin:
        await fill(admin, 1)
    async with connect(own.url("bob")) as bus:
        with anyio.fail_after(4), pytest.raises(PermissionDenied) as refused:
            await consume(bus, "bob", Handled(), stop=anyio.Event())
    assert refused.value.subject.lower().startswith(denied.lower().rstrip(".>"))


async def test_a_consumer_of_another_kind_under_the_name_is_refused(bus: Bus) -> None:
    config = {"durable_name": "bob", "name": "bob", "ack_policy": "none"}
    body = {"stream_name": "LOG", "config": config}
    await bus.connection.api("CONSUMER.CREATE.LOG.bob", body)
    with pytest.raises(Refused):
        await consume(bus, "bob", Handled(), stop=anyio.Event())
