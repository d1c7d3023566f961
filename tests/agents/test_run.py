"""What a handler does to the world through its run: all of it or nothing, once, and with its cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest

from stratum_agents import Agent, Outcome, Reject, RetryLater, Run, work
from stratum_bus import (
    Bus,
    Event,
    Memory,
    Message,
    Retry,
    dead,
    event_type,
    new_event,
    typed,
    upcaster,
)
from stratum_bus.event import encode
from stratum_bus.publish import INLINE_MAX
from stratum_bus.schema import TYPES
from stratum_bus.testing import eventually

SOON = Retry(max_attempts=3, first_seconds=0.01)
EFFECTS = ["inbox.*.bob.>", "topic.bob.>", "memory.bob.>"]


class Order(msgspec.Struct):
    cents: int


@pytest.fixture
def order() -> Iterator[None]:
    before = dict(TYPES)
    for name in ("order.placed", "order.made"):
        TYPES.pop(name, None)  # another test may have declared it
    event_type("order.placed", version=2, former=("order.made",))(Order)

    @upcaster("order.placed", since=1)
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {"cents": data["amount"] * 100}

    yield
    TYPES.clear()
    TYPES.update(before)


@asynccontextmanager
async def working(bus: Bus, agent: Agent, **how: Any) -> AsyncIterator[None]:
    stop = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(work, bus, agent, **{"stop": stop, "retry": SOON, **how}))
        yield
        stop.set()


async def tell(bus: Bus, type: str, data: Any = None, id: str | None = None) -> Event[Any]:
    event = new_event(type, data, source="/agents/alice", id=id)
    await bus.publish(f"inbox.bob.alice.{type}", event)
    return event


async def stored(bus: Bus, *filters: str) -> list[Message]:
    async with bus.read(filters=filters) as reader:
        return [message async for message in reader]


async def settled(bus: Bus) -> bool:
    """Whether bob has handled all that stands in his inbox."""
    async with bus.read(filters=["inbox.bob.>"]) as reader:
        sent = [message.sequence async for message in reader]
    info = await bus.connection.api("CONSUMER.INFO.LOG.bob")
    return bool(
        info["num_ack_pending"] == 0
        and info["num_pending"] == 0
        and (not sent or info["delivered"]["stream_seq"] >= sent[-1])
    )


async def test_effects_stand_in_the_log_with_their_run_and_their_cause(bus: Bus) -> None:
    agent = Agent("bob")
    made: dict[str, str] = {}

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        made["sent"] = await run.send("eve", "greeting", {"n": 1}, about="x")
        made["published"] = await run.publish("news", {"n": 2})
        made["noted"] = await run.remember("diary", "went", tags=["a"], score=0.5)
        await run.revise(made["noted"], "diary", text="went far")
        made["wrong"] = await run.remember("diary", "wrong")
        await run.retract(made["wrong"], "diary", "it was")

    async with working(bus, agent):
        cause = await tell(bus, "go")
        await eventually(partial(settled, bus))
    messages = await stored(bus, *EFFECTS)
    assert [message.subject for message in messages] == [
        "inbox.eve.bob.greeting",
        "topic.bob.news",
        *["memory.bob.diary"] * 4,
    ]
    events = [message.event() for message in messages]
    assert [events[0].id, events[1].id, events[2].id] == [
        made["sent"],
        made["published"],
        made["noted"],
    ]
    (run,) = {event.runid for event in events}
    for event in events:
        assert (event.source, event.causationid) == ("/agents/bob", cause.id)
        assert event.correlationid == cause.id
    assert events[0].subject == "x"
    journal = await stored(bus, f"run.bob.{run}")
    assert journal[-1].event().type == "stratum.run.completed"
    assert [m.sequence for m in [*messages, journal[-1]]] == list(range(2, 9)), "one commit"
    (note,) = await Memory(bus, "bob").notes()
    assert (note.id, note.text, note.tags, note.score) == (made["noted"], "went far", ("a",), 0.5)


async def test_nothing_is_sent_before_the_handler_returns_and_nothing_at_all_when_it_fails(
    bus: Bus,
) -> None:
    agent = Agent("bob")
    attempts: list[int] = []

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        attempts.append(run.attempt)
        await run.send("eve", "greeting", 1)
        await run.remember("diary", "went")
        assert await stored(bus, *EFFECTS) == []
        raise ValueError("in the end it did not work")

    async with working(bus, agent):
        await tell(bus, "go")
        (letter,) = await eventually(partial(dead.letters, bus))
        await eventually(partial(settled, bus))
    assert attempts == [1, 2, 3]
    assert await stored(bus, *EFFECTS) == []
    assert letter.letter.reason == "failed"
    assert "in the end it did not work" in letter.letter.error


@pytest.mark.parametrize("outcome", [Reject("no"), RetryLater("never", delay_seconds=0)])
async def test_an_event_that_is_not_taken_leaves_no_effects(bus: Bus, outcome: Outcome) -> None:
    agent = Agent("bob")

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> Outcome:
        await run.send("eve", "greeting", 1)
        return outcome

    async with working(bus, agent):
        await tell(bus, "go")
        (letter,) = await eventually(partial(dead.letters, bus))
    assert await stored(bus, *EFFECTS) == []
    assert letter.letter.origin.subject == "inbox.bob.alice.go"


async def test_an_attempt_that_works_in_the_end_has_its_effects_once(bus: Bus) -> None:
    agent = Agent("bob")

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        await run.send("eve", "greeting", run.attempt)
        if run.attempt < 3:
            raise ValueError("not yet")

    async with working(bus, agent):
        await tell(bus, "go")
        await eventually(partial(settled, bus))
        await eventually(partial(stored, bus, "inbox.eve.>"))
    (message,) = await stored(bus, *EFFECTS)
    assert typed(message.event(), int).data == 3
    assert await dead.letters(bus) == []


async def test_one_event_that_stands_in_the_log_twice_has_its_effects_once(bus: Bus) -> None:
    """As when its sender tries again when the dedupe window is over, which is tiny here."""
    config = (await bus.connection.api("STREAM.INFO.LOG"))["config"]
    await bus.connection.api("STREAM.UPDATE.LOG", {**config, "duplicate_window": 100_000_000})
    agent = Agent("bob")
    handled: list[str] = []

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        handled.append(run.id)
        await run.send("eve", "greeting", 1)
        await run.remember("diary", "went")

    event = new_event("go", None, source="/agents/alice", id="same")
    async with working(bus, agent):
        for _ in range(3):  # without an id in the headers the server knows none of them
            await bus.connection.request("inbox.bob.alice.go", encode(event))
            await eventually(partial(settled, bus))
            await anyio.sleep(0.1)  # the window
    async with working(bus, agent):  # another process
        await bus.connection.request("inbox.bob.alice.go", encode(event))
        await eventually(partial(settled, bus))
    assert len(await stored(bus, "inbox.bob.>")) == 4
    assert Counter(m.subject for m in await stored(bus, *EFFECTS)) == {
        "inbox.eve.bob.greeting": 1,
        "memory.bob.diary": 1,
    }
    assert len(set(handled)) == 1


async def test_two_runs_may_make_the_same_note(bus: Bus) -> None:
    """Its id is of the domain; the second one changes nothing, and the rest of its run counts."""
    agent = Agent("bob")

    @agent.on("go")
    async def go(run: Run, event: Event[int]) -> None:
        await run.remember("paper", f"seen {event.data}", note="paper-7")
        await run.send("eve", "greeting", event.data)

    async with working(bus, agent):
        for n in (1, 2):
            await tell(bus, "go", n)
            await eventually(partial(settled, bus))
    assert [note.text for note in await Memory(bus, "bob").notes()] == ["seen 1"]
    sent = [typed(message.event(), int).data for message in await stored(bus, "inbox.eve.>")]
    assert sent == [1, 2]
    assert await dead.letters(bus) == []


async def test_data_arrives_as_the_handlers_type_and_in_its_newest_version(
    bus: Bus, order: None
) -> None:
    agent = Agent("bob")
    got: list[Order] = []

    @agent.on("order.placed")
    async def placed(run: Run, event: Event[Order]) -> None:
        got.append(event.data)

    async with working(bus, agent):
        await tell(bus, "order.placed", Order(1))
        bare = b'{"amount": 2}'
        await bus.connection.request("inbox.bob.alice.order.placed", bare)
        await bus.connection.request("inbox.bob.alice.order.made", bare)
        await eventually(lambda: len(got) == 3)
    assert sorted(order.cents for order in got) == [1, 200, 200]


async def test_data_of_the_wrong_type_is_a_dead_letter_without_another_attempt(bus: Bus) -> None:
    agent = Agent("bob")
    called: list[int] = []

    @agent.on("go")
    async def go(run: Run, event: Event[int]) -> None:
        called.append(event.data)

    async with working(bus, agent):
        await tell(bus, "go", {"no": "number"})
        (letter,) = await eventually(partial(dead.letters, bus))
    assert called == []
    assert (letter.letter.reason, letter.letter.attempts) == ("unreadable", 1)
    assert "Expected `int`, got `object`" in letter.letter.error


@pytest.mark.parametrize(
    ("subject", "payload"),
    [
        ("inbox.bob.alice.unknown", b"1"),
        ("inbox.bob.short", b"1"),
        ("inbox.bob.alice.\xc3\xbc", b"1"),
        ("inbox.bob.alice.task", encode(Event(id="1", source="urn:x", type="odd type/x", data=1))),
    ],
)
async def test_what_has_no_handler_is_left_alone(bus: Bus, subject: str, payload: bytes) -> None:
    agent = Agent("bob")
    got: list[int] = []

    @agent.on("go")
    async def go(run: Run, event: Event[int]) -> None:
        got.append(event.data)

    async with working(bus, agent):
        await bus.connection.request(subject, payload)
        await tell(bus, "go", 7)
        await eventually(lambda: got == [7])
        await eventually(partial(settled, bus))
    assert await dead.letters(bus) == []


async def test_an_event_for_a_handler_may_stand_on_a_subject_outside_the_grammar(bus: Bus) -> None:
    agent = Agent("bob")
    got: list[int] = []

    @agent.on("go")
    async def go(run: Run, event: Event[int]) -> None:
        got.append(event.data)

    async with working(bus, agent):
        event = new_event("go", 7, source="urn:elsewhere")
        await bus.connection.request("inbox.bob.short", encode(event))
        await eventually(lambda: got == [7])


async def test_large_effects_are_kept_as_blobs_and_read_back(bus: Bus) -> None:
    agent, eve = Agent("bob"), Agent("eve")
    text = "x" * (2 * INLINE_MAX)
    got: list[str] = []

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        await run.send("eve", "greeting", text)
        await run.remember("diary", text)

    @eve.on("greeting")
    async def greeting(run: Run, event: Event[str]) -> None:
        got.append(event.data)

    async with working(bus, agent), working(bus, eve):
        await tell(bus, "go")
        await eventually(lambda: got == [text])
    assert [note.text for note in await Memory(bus, "bob").notes()] == [text]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda run: run.send("no good", "greeting", 1), "InvalidName"),
        (lambda run: run.send("eve", "no good", 1), "InvalidName"),
        (lambda run: run.publish("", 1), "InvalidName"),
        (lambda run: run.remember("no good", "text"), "InvalidName"),
        (lambda run: run.send("eve", "greeting", object()), "EncodeError"),
        (lambda run: run.remember("diary", "text", data={"a": object()}), "EncodeError"),
        (lambda run: run.revise("n1", "diary", no_such_field=1), "TypeError"),
    ],
)
async def test_an_effect_that_cannot_be_is_a_failure_with_its_name_and_leaves_nothing(
    bus: Bus, call: Callable[[Run], Any], error: str
) -> None:
    agent = Agent("bob")

    @agent.on("go")
    async def go(run: Run, event: Event[Any]) -> None:
        await run.send("eve", "greeting", 1)
        await call(run)

    async with working(bus, agent):
        await tell(bus, "go")
        (letter,) = await eventually(partial(dead.letters, bus))
        await eventually(partial(settled, bus))
    assert error in letter.letter.error
    assert await stored(bus, *EFFECTS) == []


async def test_an_error_of_any_size_and_characters_is_a_letter_that_can_be_listed(bus: Bus) -> None:
    agent = Agent("bob")

    @agent.on("go")
    async def go(run: Run, event: Event[int]) -> None:
        raise ValueError(["x" * 1_000_000, "\udc80", "ü" * 100_000, "a\nb\0"][event.data])

    async with working(bus, agent):
        for n in range(4):
            await tell(bus, "go", n)

        async def all_four() -> bool:
            return len(await dead.letters(bus)) == 4

        await eventually(all_four)
    for letter in await dead.letters(bus):
        assert "ValueError" in letter.letter.error
        message = await bus.get("LOG", letter.sequence)
        assert message.event().dataref is None, "a letter is short enough to be read in SQL"
