"""What the shipped projections say of a log."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from stratum_bus import memory, subject
from stratum_bus.memory import Notes
from stratum_bus.message import Message

Open = Callable[..., Any]


def state(tables: Any, id: str) -> str:
    return str(tables.one(f"select state from messages where id = '{id}'")["state"])


def test_a_message_is_sent_and_then_handled(tables: Any, log: Any) -> None:
    sent = log.message(subject="paper-7", correlationid="c1")
    tables.apply(log.messages)
    before = tables.one("select * from messages")
    assert (before["receiver"], before["sender"], before["type"]) == ("bob", "alice", "task")
    assert (before["state"], before["about"], before["handled_seq"]) == ("sent", "paper-7", None)
    log.message("carol")
    end = log.completed(sent.id, attempt=2)
    tables.apply(log.messages[1:])
    after = tables.one("select * from messages where seq = 1")
    assert (after["state"], after["handled_seq"], after["attempts"]) == ("handled", 3, 2)
    assert (after["run"], after["latency_seconds"]) == (end.runid, 2.0)
    assert after["handled"] == "2026-01-01T00:00:03+00:00"
    assert state(tables, "e2") == "sent"


def test_a_message_stored_twice_is_one_row_with_the_first_sequence(tables: Any, log: Any) -> None:
    sent = log.message()
    log.completed(sent.id)
    log.again("inbox.bob.alice.task", sent)
    tables.apply(log.messages)
    tables_of_one = tables.one("select seq, state from messages")
    assert tables_of_one == {"seq": 1, "state": "handled"}
    log.again("inbox.bob.alice.task", sent)
    tables.apply(log.messages[3:])
    assert tables.one("select seq, state from messages") == tables_of_one
    assert tables.one("select count(*) n from events where id = 'e1'") == {"n": 3}


@pytest.mark.parametrize("decision", ["redriven", "dropped"])
def test_a_dead_message_says_what_was_decided(decision: str, tables: Any, log: Any) -> None:
    sent = log.message()
    letter = log.lettered(sent.id, attempts=5)
    tables.apply(log.messages)
    row = tables.one("select state, dead_seq, attempts from messages")
    assert row == {"state": "dead", "dead_seq": 2, "attempts": 5}
    log.decided(letter.id, decision)
    tables.apply(log.messages[2:])
    assert state(tables, sent.id) == decision
    dead = tables.one("select * from dead_letters")
    assert (dead["state"], dead["decision"], dead["decided_seq"]) == (decision, "because", 3)
    assert (dead["letter"], dead["receiver"], dead["type"]) == (letter.id, "bob", "task")
    assert (dead["reason"], dead["error"], dead["attempts"]) == ("failed", "boom", 5)
    assert (dead["message"], dead["origin_seq"], dead["origin_stream"]) == (sent.id, 1, "LOG")


def test_the_first_decision_about_a_letter_counts(tables: Any, log: Any) -> None:
    letter = log.lettered(log.message().id)
    log.decided(letter.id, "dropped")
    log.decided(letter.id, "redriven")
    log.decided("unknown", "redriven")
    tables.apply(log.messages)
    row = tables.one("select state, decided_seq from dead_letters")
    assert row == {"state": "dropped", "decided_seq": 3}


def test_an_outcome_before_its_message_is_none(open_tables: Open, log: Any) -> None:
    log.completed("e3")
    log.lettered("e3")
    log.message(id="e3")
    one, by_one = open_tables("one"), open_tables("by_one")
    one.apply(log.messages)
    for message in log.messages:
        by_one.apply([message])
    assert state(one, "e3") == state(by_one, "e3") == "sent"


def test_a_topic_is_dead_while_one_of_its_readers_has_an_open_letter(tables: Any, log: Any) -> None:
    said = log.topic()
    letter = log.lettered(said.id, "bob")
    log.completed(said.id, "carol")
    tables.apply(log.messages)
    assert tables.one("select state, receiver from messages") == {"state": "dead", "receiver": None}
    log.decided(letter.id, "dropped")
    log.completed(said.id, "dave")
    tables.apply(log.messages[3:])
    row = tables.one("select state, handled_seq from messages")
    assert row == {"state": "handled", "handled_seq": 3}


def test_agents_are_counted(tables: Any, log: Any) -> None:
    sent = log.message("bob", "alice")
    log.topic("alice")
    log.noted("bob")
    log.completed(sent.id, "bob")
    log.lettered(log.message("carol", "alice").id, "carol")
    tables.apply(log.messages[:2])
    tables.apply(log.messages[2:])
    rows = tables.rows(
        "select name, sent, received, notes, runs, failed, dead, last_seq from agents order by name"
    )
    assert [list(row.values()) for row in rows] == [
        ["alice", 3, 0, 0, 0, 0, 0, 5],
        ["bob", 0, 1, 1, 1, 0, 0, 4],
        ["carol", 0, 1, 0, 0, 0, 1, 6],
    ]
    seen = {r["name"]: r for r in tables.rows("select name, first_seen, last_seen from agents")}
    assert seen["alice"]["first_seen"] == "2026-01-01T00:00:01+00:00"
    assert seen["bob"]["first_seen"] == "2026-01-01T00:00:03+00:00"
    assert seen["bob"]["last_seen"] == "2026-01-01T00:00:04+00:00"


def test_what_is_stored_twice_counts_once_for_an_agent(tables: Any, log: Any) -> None:
    sent = log.message("bob", "alice")
    log.again("inbox.bob.alice.task", sent)
    tables.apply(log.messages[:1])
    tables.apply(log.messages[1:])
    assert tables.rows("select name, sent, received, last_seq from agents order by name") == [
        {"name": "alice", "sent": 1, "received": 0, "last_seq": 1},
        {"name": "bob", "sent": 0, "received": 1, "last_seq": 1},
    ]


def test_an_agent_that_was_only_written_to_was_never_seen(tables: Any, log: Any) -> None:
    log.message("ghost", "alice")
    tables.apply(log.messages)
    row = tables.one("select first_seen, received from agents where name = 'ghost'")
    assert row == {"first_seen": None, "received": 1}


def test_a_note_its_revisions_and_its_end(tables: Any, log: Any) -> None:
    note = log.noted(text="it rains", tags=["sky"], about="berlin", score=0.5, data={"mm": 3})
    log.changed(note.id, score=0.75, text="it pours")
    log.changed(note.id, about=None, tags=[])
    tables.apply(log.messages)
    row = tables.one("select * from memory")
    assert (row["note"], row["agent"], row["kind"]) == (note.id, "alice", "note")
    assert (row["text"], row["score"], row["about"], row["tags"]) == ("it pours", 0.75, None, [])
    assert json.loads(row["data"]) == {"mm": 3}
    assert (row["revisions"], row["first_seq"], row["last_seq"]) == (2, 1, 3)
    assert (row["time"], row["changed"]) == (
        "2026-01-01T00:00:01+00:00", "2026-01-01T00:00:03+00:00",
    )  # fmt: skip
    log.changed(note.id, type=memory.RETRACTED, reason="it stopped")
    log.changed(note.id, text="after the end")
    tables.apply(log.messages[3:])
    row = tables.one("select text, retracted, revisions, last_seq from memory")
    assert row == {"text": "it pours", "retracted": True, "revisions": 3, "last_seq": 4}


def test_a_change_stored_twice_counts_once(tables: Any, log: Any) -> None:
    note = log.noted(text="a")
    first = log.changed(note.id, text="b")
    log.changed(note.id, text="c")
    log.again("memory.alice.note", first)
    tables.apply(log.messages[:3])
    tables.apply(log.messages[3:])
    assert tables.one("select text, revisions from memory") == {"text": "c", "revisions": 2}


def test_a_note_of_another_agent_is_not_changed(tables: Any, log: Any) -> None:
    note = log.noted("alice", text="mine")
    log.changed(note.id, "bob", text="yours")
    tables.apply(log.messages)
    assert tables.one("select agent, text, revisions from memory") == {
        "agent": "alice", "text": "mine", "revisions": 0,
    }  # fmt: skip


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_of_two_notes_of_one_id_the_first_counts(cut: int, tables: Any, log: Any) -> None:
    log.noted("alice", text="first", note="n1")
    log.noted("alice", text="second", note="n1")
    log.noted("bob", text="his own", note="n1")
    log.changed("n1", "alice", text="revised")
    log.noted("alice", text="takes the id of an event to come", note="e6")
    log.noted("alice", text="is e6 itself")
    log.changed("e6", "alice", score=1.0)
    for start in range(0, len(log.messages), cut):
        tables.apply(log.messages[start : start + cut])
    rows = tables.rows("select agent, note, text, score, first_seq from memory order by first_seq")
    assert [list(row.values()) for row in rows] == [
        ["alice", "n1", "revised", None, 1],
        ["bob", "n1", "his own", None, 3],
        ["alice", "e6", "takes the id of an event to come", 1.0, 5],
    ]


def test_a_note_in_bare_json_is_a_note(tables: Any, log: Any) -> None:
    log.raw("memory.alice.idea", b'{"text": "from a shell"}')
    tables.apply(log.messages)
    row = tables.one("select note, kind, text from memory")
    assert row == {"note": "LOG-1", "kind": "idea", "text": "from a shell"}


@pytest.mark.parametrize("seed", range(6))
def test_memory_agrees_with_the_fold_of_the_bus(
    seed: int, tables: Any, random_log: Callable[[int, int], list[Message]]
) -> None:
    """Stored-twice changes are left out: the bus counts them again."""
    seen: set[str] = set()
    messages = []
    for message in random_log(seed, 500):
        fresh = message.id not in seen or not message.id
        seen.add(message.id)
        if message.subject.startswith("memory.") and fresh:
            messages.append(message)
    tables.apply(messages)
    folds = {"alice": Notes(), "bob": Notes()}
    for message in messages:
        folds[subject.parse(message.subject).agent].apply(message)
    expected = {
        (agent, note.id): {
            "text": note.text, "data": note.data, "tags": list(note.tags), "about": note.about,
            "score": note.score, "valid_to": note.valid_to, "time": note.time,
            "changed": note.changed, "revisions": note.revision, "retracted": note.retracted,
            "first_seq": note.first_sequence, "last_seq": note.last_sequence,
        }
        for agent, fold in folds.items()
        for note in fold.by_id.values()
    }  # fmt: skip
    found = {}
    for row in tables.store.arrow("select * from memory").to_pylist():
        row["data"] = msgspec.json.decode(row["data"]) if row["data"] else None
        key = row["agent"], row["note"]
        found[key] = {name: row[name] for name in next(iter(expected.values()))}
    assert found == expected
    assert len(found) > 20
    assert sum(row["revisions"] for row in found.values()) > 20


def test_times_of_validity_are_kept_in_utc(tables: Any, log: Any) -> None:
    log.noted(valid_from="2026-01-01T00:00:00", valid_to="2026-02-01T02:00:00+02:00")
    tables.apply(log.messages)
    [row] = tables.store.arrow("select valid_from, valid_to from memory").to_pylist()
    assert row == {
        "valid_from": datetime(2026, 1, 1, tzinfo=UTC), "valid_to": datetime(2026, 2, 1, tzinfo=UTC),
    }  # fmt: skip
