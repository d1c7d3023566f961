"""Publishing: stored once or not at all, and each failure has its name at once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace

from stratum_bus import batch
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import (
    BlobError,
    BusError,
    ConnectionLost,
    EncodeError,
    InvalidName,
    NoStream,
    PermissionDenied,
    Refused,
    StorageFull,
    TooLarge,
    WrongSequence,
)
from stratum_bus.event import Event, new, typed
from stratum_bus.jetstream import Reply
from stratum_bus.message import Message
from stratum_bus.publish import INLINE_MAX, Append
from stratum_bus.server import Server
from stratum_bus.stream import load_streams, provision
from stratum_bus.testing import eventually, fresh, server

TASK = "inbox.bob.alice.task"
JOURNAL = "run.bob.r1"
AT_ONCE_SECONDS = 2.0


def event(id: str | None = None, data: Any = 1) -> Event[Any]:
    return new("task", data, source="/tests", id=id)


def append(id: str | None = None, to: str = TASK, expected: int | None = None) -> Append:
    return Append(to, event(id), expected)


async def stored(bus: Bus, *filters: str) -> list[Message]:
    async with bus.read(filters=filters) as reader:
        return [message async for message in reader]


async def ids(bus: Bus, *filters: str) -> list[str]:
    return [message.id for message in await stored(bus, *filters)]


@contextmanager
def at_once() -> Iterator[None]:
    before = time.monotonic()
    yield
    assert time.monotonic() - before < AT_ONCE_SECONDS


@contextmanager
def frozen(of: Server) -> Iterator[None]:
    os.kill(of.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, of.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(of.pid, signal.SIGCONT)


@pytest.fixture
async def own() -> AsyncIterator[Server]:
    """A server that a test may kill, with streams."""
    with server() as started:
        await fresh(started.url)
        yield started


async def settle(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run all at once; what each returned or raised."""
    outcomes: list[Any] = [None] * len(calls)

    async def run(at: int) -> None:
        try:
            outcomes[at] = await calls[at]()
        except BusError as error:
            outcomes[at] = error

    async with anyio.create_task_group() as tasks:
        for at in range(len(calls)):
            tasks.start_soon(run, at)
    return outcomes


# One event


async def test_what_is_acknowledged_is_stored_under_its_id(bus: Bus) -> None:
    sent = event("a", {"q": 1})
    ack = await bus.publish(TASK, sent)
    assert (ack.stream, ack.sequence, ack.duplicate) == ("LOG", 1, False)
    (message,) = await stored(bus)
    assert (message.sequence, message.subject, message.id) == (1, TASK, "a")
    assert typed(message.event(), dict[str, int]) == sent


async def test_an_event_is_stored_once_however_often_it_is_published(bus: Bus) -> None:
    sent = event("a")
    assert not (await bus.publish(TASK, sent)).duplicate
    again = await bus.publish(TASK, sent)
    assert (again.sequence, again.duplicate) == (1, True)
    assert await ids(bus) == ["a"]


async def test_an_expected_sequence_lets_one_writer_win(bus: Bus) -> None:
    outcomes = await settle(
        [partial(bus.publish, JOURNAL, event(f"e{n}"), expected_sequence=0) for n in range(8)]
    )
    lost = [outcome for outcome in outcomes if isinstance(outcome, WrongSequence)]
    assert len(lost) == 7
    assert len(await ids(bus)) == 1
    error = lost[0]
    assert (error.subject, error.expected) == (JOURNAL, 0)
    assert str(error).startswith(f"the last sequence of {JOURNAL} was expected to be 0 and is")


async def test_the_winner_is_told_so_however_late_it_asks_again(bus: Bus) -> None:
    """Also when others have appended since, and it is not the last one any more."""
    first = await bus.publish(JOURNAL, event("first"), expected_sequence=0)
    await bus.publish(JOURNAL, event("second"), expected_sequence=first.sequence)
    again = await bus.publish(JOURNAL, event("first"), expected_sequence=0)
    assert (again.sequence, again.duplicate) == (1, True)
    with pytest.raises(WrongSequence):
        await bus.publish(JOURNAL, event("other"), expected_sequence=0)
    assert await ids(bus) == ["first", "second"]


async def test_other_streams_are_published_to_as_well(bus: Bus) -> None:
    ack = await bus.publish("health.bob.i1", event())
    assert ack.stream == "HEALTH"
    first = await bus.publish("timer.bob.r1.s1", event("t"), expected_sequence=0)
    again = await bus.publish("timer.bob.r1.s1", event("t"), expected_sequence=0)
    assert (again.stream, again.sequence, again.duplicate) == ("TIMERS", first.sequence, True)


@pytest.mark.parametrize(
    ("subject", "rule"),
    [
        ("inbox.*.alice.task", "a wildcard"),
        ("inbox.bob.alice.>", "joined by single dots"),
        ("inbox.bob", "must have the form"),
        ("inbox.bob.al ice.task", "a space"),
        ("inbox." + "x" * 5000 + ".a.b", "5000 characters"),
        ("orders.new", "must start with one of"),
        ("", "must start with one of"),
    ],
)
async def test_a_subject_outside_the_grammar_is_refused(bus: Bus, subject: str, rule: str) -> None:
    for call in (
        lambda: bus.publish(subject, event()),
        lambda: bus.commit([append(to=subject)]),
        lambda: bus.publish_many([append(to=subject)]),
    ):
        with pytest.raises(InvalidName, match=rule):
            await call()
    assert await ids(bus) == []


async def test_what_cannot_be_written_is_named_and_nothing_is_stored(bus: Bus) -> None:
    with pytest.raises(EncodeError, match=r"^\$\.data\.when is a object"):
        await bus.publish(TASK, event(data={"when": object()}))
    with pytest.raises(EncodeError, match=r"^\$\.data is a object"):
        await bus.commit([append("a"), Append(TASK, event("b", object()))])
    assert await ids(bus) == []


# Commits


async def test_a_commit_is_stored_whole_and_contiguous(bus: Bus) -> None:
    commits = [
        [append(f"{c}-{n}", f"topic.a{c}.t{n}") for n in range(1 + c % 7)] for c in range(40)
    ]
    outcomes = await settle([partial(bus.commit, commit) for commit in commits])
    place = {message.id: message.sequence for message in await stored(bus)}
    assert len(place) == sum(len(commit) for commit in commits)
    for commit, acks in zip(commits, outcomes, strict=True):
        sequences = [place[append.event.id] for append in commit]
        assert [ack.sequence for ack in acks] == sequences
        assert sequences == list(range(sequences[0], sequences[0] + len(commit)))


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_commit_with_a_wrong_expectation_stores_nothing(bus: Bus, at: int) -> None:
    await bus.publish(JOURNAL, event("before"))
    commit = [append("a"), append("b")]
    commit.insert(at, append("fenced", JOURNAL, expected=0))
    with pytest.raises(WrongSequence) as refused:
        await bus.commit(commit)
    assert (refused.value.subject, refused.value.expected) == (JOURNAL, 0)
    assert await ids(bus) == ["before"]


async def test_a_commit_may_expect_something_of_several_subjects(bus: Bus) -> None:
    acks = await bus.commit([append("a", "run.b.r1", 0), append("b", "run.b.r2", 0), append("c")])
    assert [ack.sequence for ack in acks] == [1, 2, 3]
    with pytest.raises(WrongSequence):
        await bus.commit([append("d", "run.b.r1", 1), append("e", "run.b.r2", 1)])
    assert await ids(bus) == ["a", "b", "c"]


@pytest.mark.parametrize("expected", [None, 0])
async def test_a_commit_that_is_repeated_is_not_stored_again(
    bus: Bus, expected: int | None
) -> None:
    commit = [append("a"), append("b", JOURNAL, expected), append("c")]
    first = await bus.commit(commit)
    await bus.publish(JOURNAL, event("later"))
    again = await bus.commit(commit)
    assert [ack.sequence for ack in again] == [ack.sequence for ack in first] == [1, 2, 3]
    assert all(ack.duplicate for ack in again)
    assert await ids(bus) == ["a", "b", "c", "later"]


@pytest.mark.parametrize("known", [["a"], ["c"], ["a", "c"], ["b"]])
async def test_what_a_commit_repeats_of_others_is_left_out_and_the_rest_is_stored(
    bus: Bus, known: list[str]
) -> None:
    for id in known:
        await bus.publish(TASK, event(id))
    acks = await bus.commit([append("a"), append("b"), append("c")])
    place = {message.id: message.sequence for message in await stored(bus)}
    assert sorted(place) == ["a", "b", "c"]
    assert [ack.sequence for ack in acks] == [place["a"], place["b"], place["c"]]
    assert [ack.duplicate for ack in acks] == [id in known for id in ("a", "b", "c")]


async def test_an_expectation_that_was_met_alone_does_not_swallow_a_commit(bus: Bus) -> None:
    await bus.publish(JOURNAL, event("end"), expected_sequence=0)
    acks = await bus.commit([append("message"), append("end", JOURNAL, 0)])
    assert [ack.duplicate for ack in acks] == [False, True]
    assert await ids(bus) == ["end", "message"]


async def test_an_id_that_stands_on_another_subject_is_refused_not_lost(bus: Bus) -> None:
    await bus.publish("memory.bob.note", event("a"))
    with pytest.raises(Refused, match="duplicate message id"):
        await bus.commit([append("a"), append("b")])
    assert await ids(bus) == ["a"]


async def test_a_commit_that_cannot_be_one_is_refused_before_anything_is_sent(bus: Bus) -> None:
    same = event("same")
    with pytest.raises(ValueError, match="two events of a commit have the same id"):
        await bus.commit([Append(TASK, same), Append("inbox.eve.alice.task", same)])
    with pytest.raises(ValueError, match="a commit has 1001 events, at most 1000 fit"):
        await bus.commit([append() for _ in range(1001)])
    with pytest.raises(ValueError, match=r"health\.a\.b is not of stream LOG"):
        await bus.commit([append(), append(to="health.a.b")])
    with pytest.raises(TooLarge):
        await bus.commit([append(), Append(TASK, replace(event(), data_base64="x" * (1 << 20)))])
    assert await bus.commit([]) == []
    assert await ids(bus) == []


async def test_the_largest_commit_is_stored(bus: Bus) -> None:
    acks = await bus.commit([append(f"e{n}", f"topic.a.t{n}") for n in range(1000)])
    assert [ack.sequence for ack in acks] == list(range(1, 1001))


# Groups: appends that wait at the same time


async def test_the_guilty_member_of_a_group_fails_alone(bus: Bus) -> None:
    await bus.publish(JOURNAL, event("before"))
    calls: list[Callable[[], Any]] = [
        partial(bus.publish, f"topic.a.t{n}", event(f"e{n}")) for n in range(300)
    ]
    calls[150] = lambda: bus.publish(JOURNAL, event("guilty"), expected_sequence=0)
    calls[151] = lambda: bus.commit([append("x"), append("guilty too", JOURNAL, 0)])
    calls[152] = lambda: bus.commit([append("y"), append("z")])
    outcomes = await settle(calls)
    failed = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, BusError)]
    assert failed == [150, 151]
    assert all(isinstance(outcomes[at], WrongSequence) for at in failed)
    place = {message.id: message.sequence for message in await stored(bus)}
    assert len(place) == 1 + 297 + 2
    assert "x" not in place
    assert [ack.sequence for ack in outcomes[152]] == [place["y"], place["z"]]
    assert all(outcomes[n].sequence == place[f"e{n}"] for n in range(150))


async def test_expectations_of_one_subject_that_wait_together_are_each_judged(bus: Bus) -> None:
    outcomes = await settle(
        [
            *(partial(bus.publish, TASK, event(f"filler{n}")) for n in range(50)),
            lambda: bus.publish(JOURNAL, event("a"), expected_sequence=0),
            lambda: bus.publish(JOURNAL, event("b"), expected_sequence=0),
            lambda: bus.commit([append("c", JOURNAL, 0), append("d")]),
            lambda: bus.publish(JOURNAL, event("e")),
        ]
    )
    won = [type(outcome).__name__ for outcome in outcomes[50:53]]
    assert Counter(won)["WrongSequence"] >= 2
    assert not isinstance(outcomes[53], BusError)
    assert len(await ids(bus, JOURNAL)) == 4 - Counter(won)["WrongSequence"]


async def test_one_id_that_waits_twice_is_stored_once(bus: Bus) -> None:
    outcomes = await settle([lambda: bus.publish(TASK, event("same")) for _ in range(100)])
    assert {ack.sequence for ack in outcomes} == {1}
    assert sum(not ack.duplicate for ack in outcomes) == 1
    assert await ids(bus) == ["same"]


async def test_many_writers_at_once_lose_and_double_nothing(bus: Bus) -> None:
    async def write(writer: int) -> None:
        for n in range(20):
            if n % 5:
                await bus.publish(f"topic.a.t{writer}", event(f"{writer}-{n}"))
            else:
                await bus.commit([append(f"{writer}-{n}"), append(f"{writer}-{n}+")])

    async with anyio.create_task_group() as tasks:
        for writer in range(50):
            tasks.start_soon(write, writer)
    count = Counter(await ids(bus))
    assert len(count) == 50 * 24
    assert set(count.values()) == {1}
    for writer in range(50):  # each writer's events in the order in which it published them
        own = [id for id in await ids(bus, f"topic.a.t{writer}")]
        assert own == [f"{writer}-{n}" for n in range(20) if n % 5]


async def test_a_publisher_who_gives_up_leaves_the_others_and_the_bus_alone(bus: Bus) -> None:
    async with anyio.create_task_group() as tasks:
        for n in range(100):
            tasks.start_soon(bus.publish, TASK, event(f"kept{n}"))
        with anyio.move_on_after(0):
            await bus.publish(TASK, event("given up"))
        with anyio.move_on_after(0.001):
            await bus.commit([append("given up too"), append("as a whole")])
    await bus.publish(TASK, event("after"))
    found = await ids(bus)
    assert {f"kept{n}" for n in range(100)} | {"after"} <= set(found)
    assert ("given up too" in found) == ("as a whole" in found)


# Named errors, at once


async def test_no_stream_is_named_at_once(bus: Bus) -> None:
    await bus.connection.api("STREAM.DELETE.LOG")
    for call in (
        lambda: bus.publish(TASK, event()),
        lambda: bus.commit([append(), append()]),
        lambda: bus.publish_many([append(), append()]),
    ):
        with at_once(), pytest.raises(NoStream, match=f"no stream takes {TASK}"):
            await call()


USERS = """
authorization {{ users: [
  {{ user: admin, password: admin }}
  {{ user: alice, password: alice, permissions: {{ publish: {{ deny: [{deny}] }} }} }}
] }}
"""


@pytest.fixture
async def alice(own_server: Callable[[str], Any]) -> AsyncIterator[Bus]:
    """Alice may not publish to `topic.secret.>` nor to BLOBS."""
    guarded = own_server(USERS.format(deny='"topic.secret.>", "blob.>"'))
    await fresh(guarded.url("admin"))
    async with connect(guarded.url("alice")) as bus:
        yield bus


SECRET = "topic.secret.Plan"


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_forbidden_subject_is_named_at_once(alice: Bus, at: int) -> None:
    with at_once(), pytest.raises(PermissionDenied) as refused:
        await alice.publish(SECRET, event())
    assert refused.value.subject == SECRET
    commit = [append("a"), append("b")]
    commit.insert(at, append("c", SECRET))
    with at_once(), pytest.raises(PermissionDenied) as refused:
        await alice.commit(commit)
    assert refused.value.subject == SECRET
    with at_once(), pytest.raises(PermissionDenied):
        await alice.publish_many(commit)
    await alice.publish(TASK, event("allowed"))
    assert "c" not in await ids(alice)


async def test_what_one_may_not_does_not_fail_what_others_publish_beside(alice: Bus) -> None:
    calls: list[Callable[[], Any]] = [
        partial(alice.publish, f"topic.a.t{n}", event(f"e{n}")) for n in range(200)
    ]
    calls[100] = lambda: alice.publish(SECRET, event())
    with at_once():
        outcomes = await settle(calls)
    failed = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, BusError)]
    assert failed == [100]
    assert isinstance(outcomes[100], PermissionDenied)
    assert len(await ids(alice)) == 199


async def test_a_blob_that_may_not_be_stored_is_named_at_once(alice: Bus) -> None:
    with at_once(), pytest.raises(PermissionDenied, match=r"blob\."):
        await alice.publish(TASK, event(data="x" * INLINE_MAX))


async def test_a_full_stream_is_named_at_once(bus: Bus) -> None:
    config = (await bus.connection.api("STREAM.INFO.HEALTH"))["config"]
    limits = {**config, "max_msgs": 1, "discard": "new"}
    await bus.connection.api("STREAM.UPDATE.HEALTH", limits)
    await bus.publish("health.bob.i1", event())
    with at_once(), pytest.raises(StorageFull, match="maximum messages exceeded"):
        await bus.publish("health.bob.i1", event())


@pytest.mark.parametrize("nonsense", [b"", b"{}", b"[]", b"\xff", b'{"seq": "x"}', b'{"error": 1}'])
async def test_who_answers_in_the_place_of_the_stream_harms_nobody_else(
    bus: Bus, nonsense: bytes
) -> None:
    """The server hands a message to subscribers too, and some answer whatever they are sent."""

    def answer(asked: Reply) -> None:
        if asked.reply:
            tasks.start_soon(bus.connection.send, asked.reply, nonsense)

    await bus.connection.api("STREAM.DELETE.LOG")  # so that no stream can be faster
    async with anyio.create_task_group() as tasks, bus.connection.subscribe("inbox.>", answer):
        outcomes = await settle(
            [
                *(partial(bus.publish, TASK, event()) for _ in range(50)),
                partial(bus.commit, [append(), append()]),
                partial(bus.publish_many, [append(), append()]),
            ]
        )
    for outcome in outcomes:
        assert isinstance(outcome, Refused)
        assert "a subscriber that is no stream answered first" in str(outcome)
    await fresh(bus.connection.url)
    await bus.publish(TASK, event("after"))


async def test_a_lost_server_is_named_at_once_without_patience(own: Server) -> None:
    async with connect(own.url) as bus:
        await bus.publish(TASK, event())
        with frozen(own):  # so that they are under way when it dies
            outcomes: list[Any] = []

            async def publish() -> None:
                outcomes.extend(
                    await settle(
                        [
                            *(lambda: bus.publish(TASK, event()) for _ in range(5)),
                            lambda: bus.commit([append(), append()]),
                            lambda: bus.publish_many([append(), append()]),
                        ]
                    )
                )

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish)
                await anyio.wait_all_tasks_blocked()
                with at_once():
                    own.kill()
                    await eventually(lambda: len(outcomes) == 7)
            own.restart()
        assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
        await bus.connection.wait_connected(10)
        own.kill()
        await eventually(lambda: not bus.connection.connected)
        for call in (
            lambda: bus.publish(TASK, event()),
            lambda: bus.commit([append(), append()]),
            lambda: bus.publish_many([append(), append()]),
            lambda: bus.publish(TASK, event(data="x" * INLINE_MAX)),
        ):
            with at_once(), pytest.raises(ConnectionLost, match="is the server running"):
                await call()


async def test_a_bus_that_is_closed_publishes_nothing_and_says_so(bus_url: str) -> None:
    async with connect(bus_url) as bus:
        pass
    for call in (
        lambda: bus.publish(TASK, event()),
        lambda: bus.commit([append(), append()]),
        lambda: bus.publish_many([append()]),
    ):
        with at_once(), pytest.raises(ConnectionLost, match="it was closed"):
            await call()


async def test_who_still_publishes_when_the_bus_is_closed_is_told(own: Server) -> None:
    outcomes: list[Any] = []

    async def publish(bus: Bus) -> None:
        outcomes.extend(await settle([lambda: bus.publish(TASK, event())] * 20))

    async with anyio.create_task_group() as tasks:
        async with connect(own.url) as bus:
            os.kill(own.pid, signal.SIGSTOP)
            tasks.start_soon(publish, bus)
            await anyio.wait_all_tasks_blocked()
        with at_once():
            await eventually(lambda: len(outcomes) == 20)
        os.kill(own.pid, signal.SIGCONT)
    assert {type(outcome) for outcome in outcomes} == {ConnectionLost}


# Lost answers, within the connection's patience


async def test_what_is_not_answered_in_time_is_stored_once(
    own: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "ANSWER_SECONDS", 0.3)
    outcomes: list[Any] = []
    async with connect(own.url, patience_seconds=30) as bus:

        async def publish() -> None:
            outcomes.extend(
                await settle(
                    [
                        lambda: bus.publish(TASK, event("a")),
                        lambda: bus.publish(JOURNAL, event("b"), expected_sequence=0),
                        lambda: bus.commit([append("c"), append("d", "run.b.r2", 0)]),
                        lambda: bus.commit([append("e"), append("f")]),
                    ]
                )
            )

        async with anyio.create_task_group() as tasks:
            with frozen(own):
                tasks.start_soon(publish)
                await anyio.sleep(1)  # several time-outs, no other sign of them is to be seen
        assert not any(isinstance(outcome, BusError) for outcome in outcomes)
        assert sorted(await ids(bus)) == ["a", "b", "c", "d", "e", "f"]


async def test_a_server_that_came_back_may_take_a_moment_to_have_its_streams(own: Server) -> None:
    place, beat = "health.worker.w1", event("beat")
    async with connect(own.url, patience_seconds=60) as bus:
        own.kill()
        await own.wait()
        await own.start()
        await bus.connection.wait_connected(30)
        await bus.connection.api("STREAM.DELETE.HEALTH")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.publish, place, beat)
            await anyio.sleep(0.3)
            await provision(bus.connection, load_streams())
        assert await bus.last(place) is not None


@pytest.mark.parametrize("end", [Server.kill, Server.stop])
async def test_what_a_dying_server_does_not_answer_is_stored_once(
    own: Server, end: Callable[[Server], None]
) -> None:
    """Each writer publishes on while the server ends and is started again, again and again."""
    acknowledged: list[str] = []
    async with connect(own.url, patience_seconds=30) as bus:
        done = anyio.Event()

        async def write(writer: int) -> None:
            n, last = 0, 0
            while not done.is_set():
                n += 1
                id = f"{writer}-{n}"
                match writer % 3:
                    case 0:
                        await bus.publish(f"topic.a.t{writer}", event(id))
                    case 1:
                        to = f"run.a.r{writer}"
                        ack = await bus.publish(to, event(id), expected_sequence=last)
                        last = ack.sequence
                    case _:
                        fenced = append(f"{id}+", f"run.a.r{writer}", last)
                        last = (await bus.commit([append(id), fenced]))[-1].sequence
                        acknowledged.append(f"{id}+")
                acknowledged.append(id)

        async with anyio.create_task_group() as tasks:
            for writer in range(9):
                tasks.start_soon(write, writer)
            for _ in range(4):
                goal = len(acknowledged) + 100
                await eventually(lambda: len(acknowledged) > goal, within_seconds=20)  # noqa: B023
                await anyio.to_thread.run_sync(end, own)
                await anyio.to_thread.run_sync(own.restart)
            goal = len(acknowledged) + 100
            await eventually(lambda: len(acknowledged) > goal, within_seconds=20)
            done.set()
        count = Counter(await ids(bus))
    assert set(count.values()) == {1}
    assert set(count) == set(acknowledged)


async def test_large_data_has_the_same_patience(own: Server) -> None:
    async with connect(own.url, patience_seconds=30) as bus:
        own.kill()
        await eventually(lambda: not bus.connection.connected)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.publish, TASK, event("a", "x" * 600_000))
            own.restart()
        (message,) = await stored(bus)
        assert typed(await bus.event(message), str).data == "x" * 600_000


async def test_patience_ends(own: Server) -> None:
    async with connect(own.url, patience_seconds=0.3) as bus:
        own.kill()
        await eventually(lambda: not bus.connection.connected)
        with anyio.fail_after(10), pytest.raises(ConnectionLost):
            await bus.publish(TASK, event())


# Bulk


async def test_many_events_are_stored_in_order(bus: Bus) -> None:
    assert await bus.publish_many(append(f"e{n}") for n in range(4500)) == 4500
    assert await ids(bus) == [f"e{n}" for n in range(4500)]


async def test_many_events_may_come_from_anywhere(bus: Bus) -> None:
    async def produce() -> AsyncIterator[Append]:
        for n in range(1500):
            yield append(f"e{n}")

    assert await bus.publish_many(produce()) == 1500
    assert await bus.publish_many([]) == 0
    assert len(await ids(bus)) == 1500


async def test_duplicates_among_many_are_stored_once(bus: Bus) -> None:
    await bus.publish(TASK, event("e7"))
    many = [append(f"e{n % 1200}") for n in range(2500)]
    assert await bus.publish_many(many) == 2500
    assert Counter(await ids(bus)) == Counter(f"e{n}" for n in range(1200))


async def test_a_wrong_expectation_among_many_is_raised(bus: Bus) -> None:
    await bus.publish(JOURNAL, event())
    with pytest.raises(WrongSequence):
        await bus.publish_many([append(), append("guilty", JOURNAL, 0), append()])
    assert "guilty" not in await ids(bus)


async def test_a_source_that_fails_ends_the_bulk_with_its_error(bus: Bus) -> None:
    def produce() -> Iterator[Append]:
        for n in range(2500):
            yield append(f"e{n}")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bus.publish_many(produce())
    await bus.publish(TASK, event("after"))


async def test_large_data_among_many_is_kept_as_a_blob(bus: Bus) -> None:
    assert await bus.publish_many(Append(TASK, event(data="x" * n)) for n in (10, 20_000)) == 2
    small, large = await stored(bus)
    assert small.event().dataref is None
    assert large.event().dataref is not None
    assert typed(await bus.event(large), str).data == "x" * 20_000


async def test_bulk_goes_on_over_a_kill_of_the_server(own: Server) -> None:
    async with connect(own.url, patience_seconds=30) as bus:
        sent = 0

        async def produce() -> AsyncIterator[Append]:
            nonlocal sent
            for n in range(20_000):
                sent = n
                yield append(f"e{n}")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bus.publish_many, produce())
            for share in (7_000, 14_000):
                await eventually(lambda: sent >= share, within_seconds=20)  # noqa: B023
                own.kill()
                own.restart()
        count = Counter(await ids(bus))
    assert len(count) == 20_000
    assert set(count.values()) == {1}


# Large data


@pytest.mark.parametrize("size", [INLINE_MAX - 2, INLINE_MAX - 1, 700_000, 3_000_000])
async def test_data_over_the_inline_limit_is_kept_as_a_blob(bus: Bus, size: int) -> None:
    sent = event("a", "x" * size)
    await bus.publish(TASK, sent)
    await bus.commit([Append(TASK, replace(sent, id="b")), append("c")])
    first, second, _ = await stored(bus)
    inline = size + 2 <= INLINE_MAX  # the quotes count
    for message in (first, second):
        assert (message.event().dataref is None) == inline
        assert len(message.payload) < INLINE_MAX + 500
        assert typed(await bus.event(message), str).data == "x" * size
    blobs = (await bus.connection.api("STREAM.INFO.BLOBS"))["state"]["messages"]
    assert (blobs == 0) == inline


async def test_data_over_the_blob_limit_is_refused_before_anything_is_stored(bus: Bus) -> None:
    too_large = "x" * (64 << 20)  # and two quotes
    with pytest.raises(BlobError, match=r"67,108,866 bytes, a blob may have 67,108,864 \(64 MiB\)"):
        await bus.publish(TASK, event(data=too_large))
    for stream in ("LOG", "BLOBS"):
        assert (await bus.connection.api(f"STREAM.INFO.{stream}"))["state"]["messages"] == 0


async def test_an_event_that_is_too_large_besides_its_data_is_refused(bus: Bus) -> None:
    binary = replace(event(), data=None, data_base64="x" * (1 << 20))
    with at_once(), pytest.raises(TooLarge, match="the limit is 1,048,576: store it as a blob"):
        await bus.publish(TASK, binary)
    nearly = replace(event(), data=None, data_base64="x" * ((1 << 20) - 250))
    with at_once(), pytest.raises(TooLarge):
        await bus.publish(TASK, nearly)
    await bus.publish(TASK, event("after"))
    assert await ids(bus) == ["after"]
