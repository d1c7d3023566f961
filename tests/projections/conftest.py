"""A log made by hand, and a projector's file without a server."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from stratum_bus import event as events
from stratum_bus import memory, subject
from stratum_bus.event import Event
from stratum_bus.message import Message, utc
from stratum_projections import SHIPPED, Projection
from stratum_projections.catalog import install
from stratum_projections.checkpoint import Checkpoint
from stratum_projections.fold import Applied, Fold
from stratum_projections.store import Store

START_NS = 1_767_225_600_000_000_000


class Log:
    """Messages as a stream would hold them, one a second."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    def raw(self, to: str, payload: bytes, headers: dict[str, str] | None = None) -> Message:
        sequence = len(self.messages) + 1
        time_ns = START_NS + sequence * 1_000_000_000
        self.messages.append(Message("LOG", sequence, to, time_ns, payload, headers))
        return self.messages[-1]

    def add(self, to: str, type: str, data: Any = None, **fields: Any) -> Event[Any]:
        """An event of our own writer."""
        sequence = len(self.messages) + 1
        fields.setdefault("time", utc(START_NS + sequence * 1_000_000_000))
        fields.setdefault("id", f"e{sequence}")
        fields.setdefault("source", "/test")
        return self.again(to, Event(type=type, data=data, **fields))

    def again(self, to: str, event: Event[Any]) -> Event[Any]:
        """An event as it is, so that it may stand in the log twice."""
        self.raw(to, events.encode(event), events.headers_of(event))
        return event

    def message(self, to: str = "bob", sender: str = "alice", **fields: Any) -> Event[Any]:
        return self.add(subject.inbox(to, sender, "task"), "task", {"n": 1}, **fields)

    def topic(self, sender: str = "alice", **fields: Any) -> Event[Any]:
        return self.add(subject.topic(sender, "news"), "news", {"n": 1}, **fields)

    def completed(self, cause: str, agent: str = "bob", attempt: int = 1) -> Event[Any]:
        run = f"r{len(self.messages) + 1}"
        data = {"agent": agent, "handler": "task", "attempt": attempt, "effects": 0}
        to = subject.run(agent, run)
        return self.add(to, "stratum.run.completed", data, runid=run, causationid=cause)

    def lettered(self, cause: str, agent: str = "bob", attempts: int = 5) -> Event[Any]:
        origin = {"stream": "LOG", "sequence": 1, "subject": f"inbox.{agent}.x.task", "id": cause}
        data = {"agent": agent, "reason": "failed", "error": "boom", "attempts": attempts}
        to = subject.dead(agent, "task")
        return self.add(to, "stratum.dead.lettered", {**data, "origin": origin}, causationid=cause)

    def decided(self, letter: str, what: str = "redriven", agent: str = "bob") -> Event[Any]:
        data = {"letter": letter, "reason": "because"}
        return self.add(subject.dead(agent, "task"), f"stratum.dead.{what}", data)

    def noted(self, agent: str = "alice", text: str = "it rains", **fields: Any) -> Event[Any]:
        to = subject.memory(agent, "note")
        return self.add(to, memory.NOTED, {"text": text, **fields})

    def changed(
        self, note: str, agent: str = "alice", type: str = memory.REVISED, **fields: Any
    ) -> Event[Any]:
        to = subject.memory(agent, "note")
        return self.add(to, type, {"note": note, **fields})


class Tables:
    """An open file and its fold."""

    def __init__(self, path: Path, projections: Sequence[Projection] = SHIPPED) -> None:
        self.path = path
        self.store = Store.open(path)
        self.checkpoint: Checkpoint
        self.checkpoint, self.fresh = install(self.store, projections)
        self.fold = Fold(self.store, self.checkpoint, projections)

    def apply(self, messages: Sequence[Message]) -> Applied:
        return self.fold.apply(messages)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Rows with times as ISO text."""
        return [
            {k: v.isoformat() if hasattr(v, "isoformat") else v for k, v in row.items()}
            for row in self.store.arrow(sql).to_pylist()
        ]

    def one(self, sql: str) -> dict[str, Any]:
        [row] = self.rows(sql)
        return row

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """All that the file holds, in one order, but for the epochs: they count openings."""
        core = "select table_name from duckdb_tables() where schema_name = 'main' and not temporary"
        views = "select unnest(tables) from projections"
        names = [name for sql in (core, views) for (name,) in self.store.execute(sql)]
        columns = {"checkpoint": "* exclude (epoch, created)", "projections": "* exclude (home)"}
        return {
            name: sorted(self.rows(f"select {columns.get(name, '*')} from {name}"), key=repr)
            for name in sorted(names)
        }


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def open_tables(tmp_path: Path) -> Iterator[Callable[..., Tables]]:
    """Opens files, each name its own, and closes them at the end."""
    opened: list[Tables] = []

    def open_file(name: str = "main", projections: Sequence[Projection] = SHIPPED) -> Tables:
        opened.append(Tables(tmp_path / f"{name}.duckdb", projections))
        return opened[-1]

    yield open_file
    for tables in opened:
        tables.store.close()


@pytest.fixture
def tables(open_tables: Callable[..., Tables]) -> Tables:
    return open_tables()


@pytest.fixture
def random_log() -> Callable[[int, int], list[Message]]:
    """Makes a log of everything that may happen, in an order that makes no sense."""
    return _random_log


def _random_log(seed: int, length: int) -> list[Message]:
    chance, log = random.Random(seed), Log()
    made: dict[str, list[tuple[str, Event[Any]]]] = {
        kind: [] for kind in ("message", "letter", "note", "change")
    }

    def some(kind: str) -> str:
        """The id of an earlier one, or of one that may never come."""
        known = [event.id for _, event in made[kind]]
        return chance.choice(known[-6:]) if known and chance.random() < 0.95 else "e7"

    def keep(kind: str, event: Event[Any]) -> None:
        made[kind].append((log.messages[-1].subject, event))

    def change(type: str = memory.REVISED) -> None:
        fields = {
            "text": "other", "score": chance.choice([None, 0.5, 1]), "tags": ["x", "y"],
            "about": chance.choice([None, "a"]), "data": {"k": [1, None]},
            "valid_to": "2026-05-01T00:00:00+02:00",
        }  # fmt: skip
        given = {name: fields[name] for name in chance.sample(sorted(fields), chance.randrange(3))}
        note, owner = some("note"), who()
        for to, event in made["note"]:
            if event.id == note and chance.random() < 0.9:
                owner = subject.parse(to).agent
        if type == memory.RETRACTED:
            given = {"reason": "wrong"}
        keep("change", log.changed(note, owner, type, **given))

    def repeat() -> None:
        if known := [event for kind in made.values() for event in kind]:
            log.again(*chance.choice(known))

    def who() -> str:
        return chance.choice(["alice", "bob"])

    steps: list[Callable[[], object]] = [
        lambda: keep("message", log.message(who(), who())),
        lambda: keep("message", log.topic(who())),
        lambda: log.completed(some("message"), who(), chance.randrange(1, 4)),
        lambda: log.completed(some("message"), who()),
        lambda: keep("letter", log.lettered(some("message"), who())),
        lambda: log.decided(some("letter"), chance.choice(["redriven", "dropped"])),
        lambda: keep("note", log.noted(who(), "a note", tags=["x"], score=0.25)),
        change,
        change,
        change,
        lambda: change(memory.RETRACTED) if chance.random() < 0.5 else change(),
        repeat,
        lambda: log.raw("memory.alice.note", chance.choice([b'{"text":5}', b"[1]", b"{", b"\xff"])),
        lambda: log.raw("inbox.bob.shell.task", chance.choice([b'{"q":1}', b"", b"NaN", b'"x"'])),
    ]  # fmt: skip
    while len(log.messages) < length:
        chance.choice(steps)()
    return log.messages
