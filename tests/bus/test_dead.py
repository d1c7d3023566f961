"""Dead letters: whatever it was and however it failed, it is written down, once, and decided once."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from stratum_bus import dead
from stratum_bus.bus import Bus
from stratum_bus.dead import DETAIL_MAX, Cause, Letter
from stratum_bus.errors import InvalidEvent, NotFound, StratumError
from stratum_bus.event import Event, encode, new, typed
from stratum_bus.message import Message
from stratum_bus.publish import INLINE_MAX

FAILED = Cause("failed", "ValueError('no')", "Traceback …")


async def store(bus: Bus, subject: str, payload: bytes, **headers: str) -> Message:
    """As any client can."""
    await bus.connection.request(subject, payload, headers)
    return await bus.get("LOG", (await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])


async def buried(bus: Bus, message: Message, cause: Cause = FAILED, agent: str = "bob") -> Letter:
    await dead.bury(bus, agent, message, 3, cause)
    letters = await dead.letters(bus, agent)
    return letters[-1]


async def sent(bus: Bus, type: str = "task", data: Any = 1, to: str = "") -> Message:
    event = new(type, data, source="/agents/alice", id=f"id-{type}")
    ack = await bus.publish(to or f"inbox.bob.alice.{type}", event)
    return await bus.get("LOG", ack.sequence)


async def test_a_letter_says_what_and_why_and_points_to_the_original(bus: Bus) -> None:
    message = await sent(bus)
    letter = await buried(bus, message)
    assert (letter.subject, letter.state) == ("dead.bob.task", "open")
    body = letter.letter
    assert (body.agent, body.reason, body.error) == ("bob", "failed", "ValueError('no')")
    assert (body.attempts, body.trace) == (3, "Traceback …")
    origin = body.origin
    assert (origin.stream, origin.sequence, origin.subject, origin.id) == (
        "LOG",
        1,
        "inbox.bob.alice.task",
        "id-task",
    )
    event = (await bus.get("LOG", letter.sequence)).event()
    assert (event.type, event.source) == ("stratum.dead.lettered", "/agents/bob")
    assert (event.causationid, event.correlationid) == ("id-task", "id-task")


async def test_one_message_makes_one_letter_for_each_agent(bus: Bus) -> None:
    message = await sent(bus, to="topic.alice.task")
    for agent in ("bob", "eve", "bob"):
        await dead.bury(bus, agent, message, 1, FAILED)
    assert [letter.letter.agent for letter in await dead.letters(bus)] == ["bob", "eve"]
    assert [letter.letter.agent for letter in await dead.letters(bus, "eve")] == ["eve"]
    assert await dead.letters(bus, "nobody") == []


@pytest.mark.parametrize(
    ("subject", "payload", "expected"),
    [
        ("inbox.bob.alice.a.b", b"\xff", "dead.bob.a.b"),
        ("inbox.bob.alice.a.b", b"", "dead.bob.a.b"),
        ("inbox.bob.short", b"\xff", "dead.bob.message"),
        ("inbox.bob.short", b"1", "dead.bob.message"),
        ("inbox.bob.alice.ünï", b"\xff", "dead.bob.message"),
        ("inbox.bob.alice.ünï", b"1", "dead.bob.message"),
        ("inbox.bob.alice." + "x" * 300, b"\xff", "dead.bob.message"),
        ("inbox.bob.alice." + ".".join(["x" * 30] * 6), b"\xff", "dead.bob.message"),
        ("topic.alice.a", b"{", "dead.bob.a"),
    ],
)
async def test_whatever_it_was_it_gets_a_letter(
    bus: Bus, subject: str, payload: bytes, expected: str
) -> None:
    letter = await buried(bus, await store(bus, subject, payload))
    assert letter.subject == expected
    assert letter.letter.origin.subject == subject
    assert letter.letter.origin.id == "LOG-1"


@pytest.mark.parametrize("type", ["com.example/odd type", "x" * 300, "ünï", "a..b"])
async def test_a_foreign_type_outside_the_grammar_gets_a_letter_too(bus: Bus, type: str) -> None:
    event: Event[int] = Event(id="1", source="urn:x", type=type, data=1)
    letter = await buried(bus, await store(bus, "inbox.bob.alice.task", encode(event)))
    assert letter.subject == "dead.bob.message"
    sequence = await dead.redrive(bus, letter)
    again = await bus.get("LOG", sequence)
    assert again.subject == "inbox.bob.alice.message"
    assert again.event().type == type


@pytest.mark.parametrize("text", ["x" * 3_000_000, "\udc80 not UTF-8", "ü" * 10_000, "a\r\nb\0"])
async def test_whatever_a_handler_said_fits_into_its_letter(bus: Bus, text: str) -> None:
    letter = await buried(bus, await sent(bus), Cause("rejected", text, text))
    for said in (letter.letter.error, letter.letter.trace):
        assert 0 < len(said.encode()) <= DETAIL_MAX
        assert said[:1] in (text[:1], "?")


async def test_a_letter_may_have_its_data_in_a_blob(bus: Bus) -> None:
    """Not ours, which are short; but an id of an original may be as long as a header."""
    long = "i" * (2 * INLINE_MAX)
    message = await store(bus, "inbox.bob.alice.task", b"\xff", **{"Nats-Msg-Id": long})
    letter = await buried(bus, message)
    assert letter.letter.origin.id == long


# What is decided


async def test_redriving_sends_the_original_again_to_its_agent_alone(bus: Bus) -> None:
    message = await sent(bus, "a.b", {"q": 1}, to="topic.alice.a.b")
    letter = await buried(bus, message)
    sequence = await dead.redrive(bus, letter, "the cause is gone")
    again = await bus.get("LOG", sequence)
    assert again.subject == "inbox.bob.alice.a.b"
    event = typed(again.event(), dict[str, int])
    original = typed(message.event(), dict[str, int])
    assert event.id != original.id
    assert (event.type, event.source, event.time) == (
        original.type,
        original.source,
        original.time,
    )
    assert event.data == {"q": 1}
    assert (event.correlationid, event.causationid) == (original.id, letter.id)
    assert (await dead.find(bus, letter.id)).state == "redriven"
    note = (await bus.get("LOG", sequence + 1)).event()
    assert (note.type, typed(note, dead.Redriven).data) == (
        "stratum.dead.redriven",
        dead.Redriven(letter.id, event.id, "the cause is gone"),
    )


async def test_bare_json_and_large_data_are_redriven_as_they_were(bus: Bus) -> None:
    bare = await buried(bus, await store(bus, "inbox.bob.alice.bare", b'{"q": 1}'))
    large = await buried(bus, await sent(bus, "large", "x" * INLINE_MAX))
    first = await bus.get("LOG", await dead.redrive(bus, bare))
    second = await bus.get("LOG", await dead.redrive(bus, large))
    assert typed(first.event(), dict[str, int]).data == {"q": 1}
    assert typed(await bus.event(second), str).data == "x" * INLINE_MAX


async def test_a_letter_is_decided_once(bus: Bus) -> None:
    redriven = await buried(bus, await sent(bus, "a"))
    dropped = await buried(bus, await sent(bus, "b"))
    await dead.redrive(bus, redriven)
    await dead.drop(bus, dropped, "not worth it")
    for letter, state in ((redriven, "redriven"), (dropped, "dropped")):
        found = await dead.find(bus, letter.id)
        assert found.state == state
        for decide in (dead.redrive, dead.drop):
            with pytest.raises(StratumError, match=f"{letter.id} is already {state}"):
                await decide(bus, found)


async def test_who_redrives_at_the_same_time_sends_it_once(bus: Bus) -> None:
    letter = await buried(bus, await sent(bus))
    sequences: set[int] = set()

    async def redrive() -> None:
        sequences.add(await dead.redrive(bus, letter))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(redrive)
    assert len(sequences) == 1
    async with bus.read(filters=["inbox.bob.>"]) as reader:
        assert [message.sequence async for message in reader] == [1, *sequences]


async def test_what_cannot_be_read_cannot_be_redriven(bus: Bus) -> None:
    letter = await buried(bus, await store(bus, "inbox.bob.alice.task", b"\xff"))
    with pytest.raises(InvalidEvent, match="LOG 1: not a readable event"):
        await dead.redrive(bus, letter)
    assert (await dead.find(bus, letter.id)).state == "open"
    await dead.drop(bus, letter)


async def test_a_letter_is_found_by_its_id_its_sequence_or_its_originals(bus: Bus) -> None:
    await sent(bus, "filler")
    letter = await buried(bus, await sent(bus))
    for name in (letter.id, "2", "3"):
        assert await dead.find(bus, name) == letter
    for name in ("1", "4", "", "nobody"):
        with pytest.raises(NotFound, match="there is no dead letter"):
            await dead.find(bus, name)


async def test_what_is_no_letter_is_passed_over(bus: Bus) -> None:
    letter = await buried(bus, await sent(bus))
    await store(bus, "dead.bob.task", b"\xff")
    await store(bus, "dead.bob.task", b'{"letter": 5}')
    for type in ("stratum.dead.lettered", "stratum.dead.dropped", "stratum.dead.redriven"):
        await store(bus, "dead.bob.task", encode(new(type, {"letter": 5}, source="/t")))
        gone: Event[None] = Event(id=type, source="/t", type=type, dataref="blob:" + "0" * 64)
        await store(bus, "dead.bob.task", encode(gone))
    await store(bus, "dead.bob.task", encode(new("other", {"letter": letter.id}, source="/t")))
    assert await dead.letters(bus) == [letter]
