"""Memory: notes, what became of them, and what an agent believed at any point of the log."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from stratum_bus import memory, subject
from stratum_bus.bus import Bus, connect
from stratum_bus.errors import InvalidName, NotFound
from stratum_bus.event import Event, encode, new, typed
from stratum_bus.memory import Memory, Note, Noted, Notes
from stratum_bus.publish import INLINE_MAX
from stratum_bus.testing import eventually, fresh, server


@pytest.fixture
async def bob(bus: Bus) -> Memory:
    return Memory(bus, "bob")


def texts(notes: Sequence[Note]) -> list[str]:
    return [note.text for note in notes]


async def head(bus: Bus) -> int:
    return int((await bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"])


async def test_a_note_is_there_as_soon_as_it_is_made(bob: Memory, bus: Bus) -> None:
    valid = datetime(2026, 1, 1, tzinfo=UTC)
    id = await bob.note(
        "logs are nice", kind="paper", data={"pages": 3}, tags=["logs", "nice"], about="arxiv:1",
        score=0.5, valid_from=valid, valid_to=valid + timedelta(days=1),
    )  # fmt: skip
    (note,) = await bob.notes()
    stored = await bus.get("LOG", 1)
    assert stored.subject == "memory.bob.paper"
    assert note == Note(
        id=id,
        agent="bob",
        kind="paper",
        text="logs are nice",
        data={"pages": 3},
        tags=("logs", "nice"),
        about="arxiv:1",
        score=0.5,
        time=note.time,
        changed=note.time,
        first_sequence=1,
        last_sequence=1,
        valid_from=valid,
        valid_to=valid + timedelta(days=1),
    )
    assert stored.event().subject == "arxiv:1"


async def test_own_notes_are_visible_at_once_among_many_writers(bob: Memory) -> None:
    async def write(writer: int) -> None:
        for n in range(5):
            id = await bob.note(f"{writer}-{n}")
            assert id in {note.id for note in await bob.notes()}

    async with anyio.create_task_group() as tasks:
        for writer in range(10):
            tasks.start_soon(write, writer)
    assert len(await bob.notes()) == 50


async def test_agents_do_not_see_each_others_notes(bus: Bus) -> None:
    await Memory(bus, "bob").note("bob's")
    await Memory(bus, "bobby").note("bobby's")
    assert texts(await Memory(bus, "bob").notes()) == ["bob's"]
    assert texts(await Memory(bus, "eve").notes()) == []


async def test_a_revision_changes_what_it_names_and_nothing_else(bob: Memory) -> None:
    id = await bob.note("old", tags=["a"], about="x", score=0.5, data={"n": 1})
    await bob.revise(id, text="new", tags=["b", "c"])
    await bob.revise(id, score=None)
    (note,) = await bob.notes()
    assert (note.text, note.tags, note.about, note.score) == ("new", ("b", "c"), "x", None)
    assert (note.data, note.revision) == ({"n": 1}, 2)
    assert (note.first_sequence, note.last_sequence) == (1, 3)
    assert note.changed >= note.time


async def test_a_retracted_note_is_not_believed_and_not_forgotten(bob: Memory) -> None:
    kept, wrong = await bob.note("kept"), await bob.note("wrong")
    await bob.retract(wrong, "it was wrong")
    assert texts(await bob.notes()) == ["kept"]
    everything = await bob.notes(retracted=True)
    assert [(note.id, note.retracted) for note in everything] == [(kept, False), (wrong, True)]


async def test_what_is_not_believed_cannot_be_changed(bob: Memory) -> None:
    id = await bob.note("wrong")
    await bob.retract(id)
    for note in (id, "nobody"):
        with pytest.raises(NotFound, match=f"there is no note {note} in the memory of bob"):
            await bob.revise(note, text="x")
        with pytest.raises(NotFound, match=f"there is no note {note} in the memory of bob"):
            await bob.retract(note)
    with pytest.raises(TypeError, match="no_such_field"):
        await bob.revise(await bob.note("x"), no_such_field=1)


async def test_notes_are_chosen_by_kind_tags_and_what_they_are_about(bob: Memory) -> None:
    await bob.note("one", kind="paper", tags=["a", "b"], about="x")
    await bob.note("two", kind="paper", tags=["a"], about="y")
    await bob.note("three", tags=["b"], about="x")
    assert texts(await bob.notes(kind="paper")) == ["one", "two"]
    assert texts(await bob.notes(tags=["a"])) == ["one", "two"]
    assert texts(await bob.notes(tags=["a", "b"])) == ["one"]
    assert texts(await bob.notes(about="x")) == ["one", "three"]
    assert texts(await bob.notes(kind="note", about="x", tags=["b"])) == ["three"]
    assert texts(await bob.notes(kind="no-such-kind")) == []


async def test_what_was_believed_at_a_sequence_or_a_time_stays_so(bob: Memory, bus: Bus) -> None:
    first = await bob.note("first")
    await bob.note("second")
    await bob.revise(first, text="first, revised")
    await bob.retract(first)
    expected = {
        0: [],
        1: ["first"],
        2: ["first", "second"],
        3: ["first, revised", "second"],
        4: ["second"],
        99: ["second"],
    }
    for sequence, believed in expected.items():
        assert texts(await bob.notes(as_of=sequence)) == believed
        if 0 < sequence < 5:
            time = (await bus.get("LOG", sequence)).time + timedelta(microseconds=1)
            assert texts(await bob.notes(as_of=time)) == believed
    assert texts(await bob.notes(as_of=datetime(1990, 1, 1, tzinfo=UTC))) == []


async def test_a_note_with_an_id_of_its_own_is_made_once(bob: Memory) -> None:
    assert await bob.note("first", note="paper-1") == "paper-1"
    assert await bob.note("second", note="paper-1") == "paper-1"
    assert texts(await bob.notes()) == ["first"]


async def test_the_same_note_stored_twice_counts_once(bob: Memory, bus: Bus) -> None:
    """As when its writer tries again after the dedupe window."""
    append = memory.noted("bob", "note", "twice", note="n1")
    payload = encode(append.event)
    for _ in range(2):
        await bus.connection.request(append.subject, payload)
    (note,) = await bob.notes()
    assert (note.id, note.first_sequence, note.revision) == ("n1", 1, 0)


async def test_a_note_of_any_language_is_a_note(bob: Memory, bus: Bus) -> None:
    to = subject.memory("bob", "note")
    await bus.connection.request(to, b'{"text": "bare", "tags": ["x"], "more": 1}')
    await bus.connection.request(to, b'{"text": "with an id", "note": "n7"}')
    await bus.connection.request(to, b'{"text": "by its message"}', {"Nats-Msg-Id": "m1"})
    assert [(note.id, note.text) for note in await bob.notes()] == [
        ("LOG-1", "bare"),
        ("n7", "with an id"),
        ("m1", "by its message"),
    ]
    await bob.revise("LOG-1", text="revised")
    assert texts(await bob.notes(tags=["x"])) == ["revised"]


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"{", b'"only text"', b"[]", b"null", b'{"text": 5}', b'{"score": "much"}', b"{}"],
)
async def test_what_is_no_note_is_passed_over(bob: Memory, bus: Bus, payload: bytes) -> None:
    await bob.note("before")
    await bus.connection.request("memory.bob.note", payload)
    await bob.note("after")
    believed = texts(await bob.notes())
    assert [text for text in believed if text] == ["before", "after"]


async def test_events_that_belong_to_no_note_change_nothing(bob: Memory, bus: Bus) -> None:
    await bob.note("only")
    for append in (
        memory.revised("bob", "note", "nobody", text="x"),
        memory.retracted("bob", "note", "nobody"),
    ):
        await bus.publish(append.subject, append.event)
    await bus.publish("memory.bob.note", new("something.else", {"text": "x"}, source="/t"))
    await bus.connection.request("memory.bob.note.too.deep", b'{"text": "x"}')
    await bus.connection.request("memory.bob.note.too.deep", b"\xff")
    await bus.connection.request(
        "memory.bob.note.too.deep", encode(new(memory.NOTED, {}, source="/t"))
    )
    assert texts(await bob.notes()) == ["only"]


async def test_a_large_note_is_kept_as_a_blob_and_read_back(bob: Memory, bus: Bus) -> None:
    text = "x" * (2 * INLINE_MAX)
    id = await bob.note(text, tags=["large"])
    message = await bus.get("LOG", 1)
    assert message.event().dataref is not None
    assert texts(await bob.notes(tags=["large"])) == [text]
    await bob.revise(id, text=text + "y")
    assert texts(await bob.notes()) == [text + "y"]


@pytest.mark.parametrize("dataref", ["blob:" + "0" * 64, "blob:*", "https://example.com"])
async def test_a_note_whose_data_is_gone_is_passed_over(
    bob: Memory, bus: Bus, dataref: str
) -> None:
    event: Event[None] = Event(id="1", source="/t", type=memory.NOTED, dataref=dataref)
    await bus.publish("memory.bob.note", event)
    await bob.note("there")
    assert texts(await bob.notes()) == ["there"]


async def test_folding_by_hand_gives_the_same(bob: Memory, bus: Bus) -> None:
    id = await bob.note("a")
    await bob.note("b")
    await bob.retract(id)
    notes = Notes()
    async with bus.read(filters=["memory.bob.>"]) as reader:
        changed = [notes.apply(message) async for message in reader]
    assert changed[0] is not None
    assert changed[0].id == id
    assert notes.current() == await bob.notes()
    assert notes.applied == 3


async def test_a_note_is_an_event_that_handlers_can_read(bob: Memory, bus: Bus) -> None:
    await bob.note("a", score=0.25)
    event = typed((await bus.get("LOG", 1)).event(), Noted)
    assert (event.type, event.source) == ("stratum.memory.noted", "/agents/bob")
    assert event.data == Noted("a", score=0.25)


async def test_a_bad_name_is_refused_before_anything_is_stored(bus: Bus, bob: Memory) -> None:
    with pytest.raises(InvalidName, match="agent name"):
        Memory(bus, "b.b")
    with pytest.raises(InvalidName, match="memory kind"):
        await bob.note("x", kind="a b")
    with pytest.raises(InvalidName, match="memory kind"):
        await bob.notes(kind="*")
    assert await head(bus) == 0


async def test_memory_is_there_after_a_kill_of_the_server() -> None:
    with server() as own:
        await fresh(own.url)
        async with connect(own.url, patience_seconds=30) as bus:
            bob = Memory(bus, "bob")
            id = await bob.note("before")
            own.kill()
            await eventually(lambda: not bus.connection.connected)
            own.restart()
            await bus.connection.wait_connected(10)
            await bob.revise(id, text="after")
            assert texts(await bob.notes()) == ["after"]
