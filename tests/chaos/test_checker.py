"""The checker is believed only because it finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.checker import Facts, prove
from tests.chaos.faults import Fault
from tests.chaos.installation import AGENTS, NODE
from tests.chaos.log import Entry

Story = list[Entry]


class Teller:
    """Makes a log by hand."""

    def __init__(self) -> None:
        self.log: Story = []
        self.effects = ""

    def add(
        self, subject: str, type: str, data: Any = None, *, id: str = "", of: str = "", by: str = ""
    ) -> Entry:
        sequence = len(self.log) + 1
        told = Entry(
            sequence, float(sequence), subject, id or f"e{sequence}", type, by, of, of, data or {}
        )
        self.log.append(told)
        return told

    def order(self, id: str) -> None:
        """An order and everything that follows from it."""
        self.add("inbox.clerk.customer.order.placed", "order.placed", id=id)
        self.add("memory.clerk.order", "stratum.memory.noted", of=id)
        self.add("inbox.smith.clerk.part.wanted", "part.wanted", of=id)
        self.add("topic.smith.part.made", "part.made", of=id)
        self.add("inbox.porter.smith.part.ready", "part.ready", of=id)
        self.add("memory.porter.delivery", "stratum.memory.noted", of=id)
        self.add("inbox.words.clerk.text.written", "text.written", of=id)
        self.add("inbox.clerk.words.text.counted", "text.counted", of=id)
        self.add("memory.words.count", "stratum.memory.noted", of=id)
        for agent in (*AGENTS, NODE):
            self.add(f"run.{agent}.r-{id}", "stratum.run.completed", of=id)
        self.effects += f"{id} key-{id}\n"

    def start(self, instance: str, *, command: str = "") -> Entry:
        data = {"instance": instance, "pid": 1, "slot": 1, "supervisor": "s", "command": command}
        return self.add("control.clerk.started", "stratum.control.started", data)

    def end(self, instance: str) -> Entry:
        data = {"instance": instance, "pid": 1, "slot": 1, "supervisor": "s", "held": []}
        return self.add("control.clerk.ended", "stratum.control.ended", data)

    def restart(self, instance: str, incident: str, *, id: str = "restart-1") -> Entry:
        data = {"instance": instance, "incident": incident}
        return self.add("control.clerk.restart", "stratum.control.restart", data, id=id)

    def incident(self, instance: str, *, kind: str = "dead", closed: bool = True) -> Entry:
        data = {"kind": kind, "instance": instance, "evidence": {}}
        subject, type = "control.clerk.incident", "stratum.health.incident"
        opened = self.add(subject, type, data)
        if closed:
            self.add(subject, type, {**data, "status": "closed", "opened": opened.id})
        return opened

    def drop(self, what: str) -> None:
        self.log.remove(self._first(what))

    def repeat(self, what: str) -> None:
        self.log.append(self._first(what))

    def _first(self, what: str) -> Entry:
        """The first event of a type, or under a subject."""
        return next(e for e in self.log if e.type == what or e.subject.startswith(what))


FAULTS = [Fault(kind="kill_agent", agent="clerk", instance="i1", at=20.0)]


@pytest.fixture
def told() -> Teller:
    """Two orders, and an instance that was killed between them."""
    teller = Teller()
    teller.start("i1")
    teller.order("o1")
    ended = teller.end("i1")
    teller.restart("i1", ended.id)
    teller.start("i2", command="restart-1")
    teller.incident("i1")
    teller.order("o2")
    return teller


def wrong(told: Teller, **facts: Any) -> list[str]:
    given: dict[str, Any] = {
        "accepted": {"o1": 2, "o2": 20}, "unknown": [], "faults": FAULTS, "effects": told.effects,
        "agents": (*AGENTS, NODE), **facts,
    }  # fmt: skip
    return prove(told.log, Facts(**given))


def test_a_story_that_is_right_is_proved(told: Teller) -> None:
    assert wrong(told) == []


def test_an_accepted_order_that_is_not_in_the_log_is_lost(told: Teller) -> None:
    [problem] = wrong(told, accepted={"o1": 2, "o2": 20, "o3": 99})
    assert problem == "1 accepted orders are not in the log: o3"
    assert "at another place" in wrong(told, accepted={"o1": 3, "o2": 20})[0]


IN_PYTHON = ("part.wanted", "part.made", "stratum.memory.noted", "stratum.run.completed")
IN_NODE = ("text.written", "text.counted", "memory.words.", "run.words.")


@pytest.mark.parametrize("what", [*IN_PYTHON, *IN_NODE])
@pytest.mark.parametrize("change", [Teller.drop, Teller.repeat])
def test_an_effect_that_is_missing_or_there_twice_is_found(
    told: Teller, what: str, change: Callable[[Teller, str], None]
) -> None:
    change(told, what)
    [problem] = wrong(told)
    assert problem.startswith("order o1 at 2:")


def test_nothing_is_demanded_of_the_agent_in_javascript_where_it_is_left_out(told: Teller) -> None:
    for what in ("text.counted", "memory.words.", "run.words.") * 2:
        told.drop(what)
    assert "run of words 0 times" in wrong(told)[0]
    assert wrong(told, agents=AGENTS) == []


def test_an_effect_outside_with_another_key_or_none_is_found(told: Teller) -> None:
    assert "several keys" in wrong(told, effects=told.effects + "o1 another\n")[0]
    assert "without their effect" in wrong(told, effects="o1 key-o1\n")[0]


def test_a_dead_letter_that_nothing_explains_is_found(told: Teller) -> None:
    origin = {"stream": "LOG", "sequence": 2}
    told.add("dead.clerk.order.placed", "stratum.dead.lettered", {"origin": origin})
    assert wrong(told) == ["1 other messages are dead letters: 2"]


def test_an_incident_that_is_missing_or_there_twice_or_for_nothing_is_found(told: Teller) -> None:
    told.incident("i1")
    assert any("was named 2 times" in problem for problem in wrong(told))
    assert any("nothing of the kind was done" in problem for problem in wrong(told, faults=[]))
    told.log = [each for each in told.log if each.type != "stratum.health.incident"]
    assert wrong(told) == ["kill_agent clerk i1: named dead 0 times"]


def test_an_incident_with_the_wrong_name_is_found(told: Teller) -> None:
    told.incident("i2", kind="stuck")
    assert wrong(told) == [
        f"stuck of clerk i2 at {len(told.log) - 1}: nothing of the kind was done"
    ]


def test_an_incident_that_stays_open_is_found(told: Teller) -> None:
    told.log = [each for each in told.log if each.data.get("status") != "closed"]
    assert "was closed 0 times" in wrong(told)[0]


def test_a_start_without_a_command_is_found(told: Teller) -> None:
    told.end("i2")
    told.start("i3")
    assert "has no command" in wrong(told)[0]
    told.log.pop()
    told.start("i3", command="made-up")
    assert "there is no command made-up" in wrong(told)[0]


def test_a_command_without_a_cause_and_two_for_one_cause_are_found(told: Teller) -> None:
    told.restart("i2", "no-such-event", id="restart-2")
    assert "answers to nothing" in wrong(told)[0]
    told.log.pop()
    ended = next(each.id for each in told.log if each.type == "stratum.control.ended")
    told.restart("i1", ended, id="restart-3")
    assert "led to 2 restarts" in wrong(told)[0]


def test_one_command_that_starts_two_and_two_in_one_place_are_found(told: Teller) -> None:
    told.start("i3", command="restart-1")
    problems = wrong(told)
    assert any("started 2 processes, and was for one" in problem for problem in problems)
    assert any("two processes in one place" in problem for problem in problems)


def test_a_clock_that_jumps_is_no_excuse_for_an_incident(told: Teller) -> None:
    jumped = Fault(kind="clock_jump", agent="clerk", instance="i1", at=1.0, over=99.0)
    assert any("nothing of the kind" in problem for problem in wrong(told, faults=[jumped]))
    assert wrong(told, faults=[*FAULTS, jumped]) == []


def test_a_server_that_was_killed_once_is_named_away_once(told: Teller) -> None:
    killed = Fault(kind="kill_server", agent="server", at=len(told.log) + 0.5, over=99.0)
    assert wrong(told, faults=[*FAULTS, killed]) == ["kill_server server: named away 0 times"]
    for times in (1, 2):
        opened = told.incident("", kind="away")
        assert opened.time <= killed.over
        expected = [] if times == 1 else ["kill_server server: named away 2 times"]
        assert wrong(told, faults=[*FAULTS, killed]) == expected
