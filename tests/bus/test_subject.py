"""The subject grammar: what is built is parsed back, what is outside it is refused with its rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stratum_bus import subject
from stratum_bus.errors import InvalidName

DIGEST = "0" * 64
LONG = "x" * 300

BUILT: list[tuple[str, dict[str, str]]] = [
    (
        subject.inbox("bob", "alice", "paper.published"),
        {"role": "inbox", "to": "bob", "sender": "alice", "type": "paper.published"},
    ),
    (subject.topic("alice", "a.b.c"), {"role": "topic", "sender": "alice", "type": "a.b.c"}),
    (subject.memory("bob", "note"), {"role": "memory", "agent": "bob", "kind": "note"}),
    (subject.run("bob", "r1"), {"role": "run", "agent": "bob", "run": "r1"}),
    (subject.control("bob", "restart"), {"role": "control", "agent": "bob", "type": "restart"}),
    (subject.dead("bob", "a.b"), {"role": "dead", "agent": "bob", "type": "a.b"}),
    (subject.blob(DIGEST), {"role": "blob", "digest": DIGEST}),
    (
        subject.timer("bob", "r1", "s1"),
        {"role": "timer", "agent": "bob", "run": "r1", "name": "s1"},
    ),
    (subject.fire("bob", "r1", "s1"), {"role": "fire", "agent": "bob", "run": "r1", "name": "s1"}),
    (subject.health("bob", "i-1"), {"role": "health", "agent": "bob", "instance": "i-1"}),
]


@pytest.mark.parametrize(("built", "fields"), BUILT, ids=[built for built, _ in BUILT])
def test_what_is_built_is_parsed_back(built: str, fields: dict[str, str]) -> None:
    assert subject.parse(built) == subject.Subject(**fields)
    assert subject.writable(built) == built
    assert subject.stream_of(built) == subject.STREAM_OF_ROLE[fields["role"]]


def test_every_role_has_a_builder_and_a_stream() -> None:
    assert {subject.parse(built).role for built, _ in BUILT} == set(subject.ROLES)
    assert set(subject.STREAM_OF_ROLE) == set(subject.ROLES)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("", "at least one character"),
        ("a.b", "a dot"),
        ("a b", "a space"),
        ("a*", "a wildcard"),
        (">", "a wildcard"),
        ("é", "'é'"),
        ("a\n", "'\\n'"),
        ("\udcff", "'\\udcff'"),
        ("\u0661", "'\u0661'"),
        (LONG, "300 characters, at most 64"),
        (5, "at least one character"),
        (None, "at least one character"),
    ],
)
def test_a_bad_name_is_refused_with_the_rule_it_broke(name: str, rule: str) -> None:
    one_token: list[tuple[str, Callable[[str], object]]] = [
        ("agent name", lambda n: subject.inbox(n, "alice", "task")),
        ("sender name", lambda n: subject.inbox("bob", n, "task")),
        ("sender name", lambda n: subject.topic(n, "task")),
        ("agent name", lambda n: subject.memory(n, "note")),
        ("memory kind", lambda n: subject.memory("bob", n)),
        ("agent name", lambda n: subject.run(n, "r1")),
        ("run id", lambda n: subject.run("bob", n)),
        ("agent name", lambda n: subject.control(n, "restart")),
        ("agent name", lambda n: subject.dead(n, "task")),
        ("digest", lambda n: subject.blob(n)),
        ("agent name", lambda n: subject.timer(n, "r1", "s1")),
        ("run id", lambda n: subject.timer("bob", n, "s1")),
        ("timer name", lambda n: subject.timer("bob", "r1", n)),
        ("timer name", lambda n: subject.fire("bob", "r1", n)),
        ("agent name", lambda n: subject.health(n, "i")),
        ("instance", lambda n: subject.health("bob", n)),
        ("agent name", lambda n: subject.inbox_filters(n)),
        ("agent name", lambda n: subject.outbox_filters(n)),
    ]
    for what, build in one_token:
        with pytest.raises(InvalidName) as refused:
            build(name)
        assert refused.value.what == what
        assert refused.value.value == name
        assert rule in str(refused.value)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 250


@pytest.mark.parametrize(
    ("type", "rule"),
    [
        ("", "at least one character"),
        (".", "joined by single dots"),
        ("a.", "joined by single dots"),
        ("a..b", "joined by single dots"),
        ("a b", "joined by single dots"),
        ("a.*", "joined by single dots"),
        ("a.>", "joined by single dots"),
        ("a\n", "joined by single dots"),
        ("a." + "b" * 65, "joined by single dots"),
        ("a." * 80 + "a", "161 characters, at most 160"),
    ],
)
def test_a_bad_event_type_is_refused_with_the_rule_it_broke(type: str, rule: str) -> None:
    for build in (
        lambda t: subject.inbox("bob", "alice", t),
        lambda t: subject.topic("alice", t),
        lambda t: subject.control("bob", t),
        lambda t: subject.dead("bob", t),
        lambda t: subject.inbox_filters("bob", (t,)),
    ):
        with pytest.raises(InvalidName, match=rule):
            build(type)


def test_the_longest_names_are_taken() -> None:
    token, type = "x" * 64, ".".join(["y" * 39] * 4)
    built = subject.inbox(token, token, type + "y")
    assert subject.parse(built).type == type + "y"
    assert subject.writable(built) == built


@pytest.mark.parametrize(
    ("foreign", "rule"),
    [
        ("", "must start with one of"),
        ("orders.new", "must start with one of inbox, topic"),
        ("inbox.bob", "must have the form inbox.<to>.<sender>.<type>"),
        ("inbox.bob.alice", "must have the form inbox.<to>.<sender>.<type>"),
        ("topic.alice", "must have the form topic.<sender>.<type>"),
        ("memory.bob", "must have the form memory.<agent>.<kind>"),
        ("memory.bob.note.more", "must have the form memory.<agent>.<kind>"),
        ("run.bob.r1.more", "must have the form run.<agent>.<run>"),
        ("inbox..alice.task", "must have the form"),
    ],
)
def test_a_subject_outside_the_grammar_is_neither_parsed_nor_written(
    foreign: str, rule: str
) -> None:
    with pytest.raises(InvalidName, match=rule):
        subject.parse(foreign)
    with pytest.raises(InvalidName, match=rule):
        subject.writable(foreign)


@pytest.mark.parametrize(
    ("foreign", "rule"),
    [
        ("inbox.*.alice.task", "a wildcard"),
        ("inbox.bob.alice.>", "joined by single dots"),
        ("inbox.bob.al ice.task", "a space"),
        ("inbox.bob.alice.task..now", "joined by single dots"),
        ("memory.bob.ünï", "'ü'"),
        ("blob." + LONG, "300 characters"),
    ],
)
def test_what_a_foreign_client_may_have_used_is_parsed_but_not_written(
    foreign: str, rule: str
) -> None:
    assert subject.parse(foreign).role == foreign.partition(".")[0]
    with pytest.raises(InvalidName, match=rule):
        subject.writable(foreign)


def test_an_agent_receives_its_inbox_and_each_topic_it_follows_once() -> None:
    assert subject.inbox_filters("bob") == ["inbox.bob.>"]
    assert subject.inbox_filters("bob", ("a.b", "c", "a.b")) == [
        "inbox.bob.>",
        "topic.*.a.b",
        "topic.*.c",
    ]
    assert subject.outbox_filters("bob") == ["inbox.*.bob.>", "topic.bob.>"]


@pytest.mark.parametrize(
    ("filter", "of", "taken"),
    [
        ("inbox.bob.>", "inbox.bob.alice.task", True),
        ("inbox.bob.>", "inbox.bobby.alice.task", False),
        ("inbox.bob.>", "inbox.bob", False),
        ("inbox.*.bob.>", "inbox.alice.bob.a.b", True),
        ("topic.*.a.b", "topic.alice.a.b", True),
        ("topic.*.a.b", "topic.alice.a.b.c", False),
        ("topic.*.a.b", "topic.alice.a", False),
        (">", "anything.at.all", True),
    ],
)
def test_matching_is_the_servers(filter: str, of: str, taken: bool) -> None:
    assert subject.matches(filter, of) is taken
