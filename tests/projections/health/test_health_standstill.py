"""stuck, blocked, silent, stalled, behind: who lives and does not move."""

from __future__ import annotations

from typing import Any

import pytest

from stratum_bus.heartbeat import BLOCKED, IDLE, PROJECTOR, STOPPING
from stratum_bus.thresholds import (
    AgentHealth,
    Behind,
    Blocked,
    HealthConfig,
    Silent,
    Stalled,
    Stuck,
)
from stratum_projections.health.observed import Position


@pytest.fixture
def config() -> HealthConfig:
    return HealthConfig(
        stuck=Stuck(6), blocked=Blocked(3), silent=Silent(5), stalled=Stalled(5), behind=Behind(100, 5),
        agents={"slow": AgentHealth(stuck=Stuck(1000))},
    )  # fmt: skip


def test_work_that_does_not_move_is_stuck_within_twice_the_deadline(world: Any) -> None:
    one = world.started("a", "i1")
    one.takes(7, step="2")
    world.run(7)
    [incident] = world.incidents()
    assert (incident.kind, incident.evidence["message"], incident.evidence["step"]) == (
        "stuck", "LOG-7", "2",
    )  # fmt: skip
    assert world.commands() == [("a", "restart", "i1")]
    world.ended(one, wanted=True, killed=True)
    world.started("a", "i2")
    world.run(5)
    assert world.shown() == [("stuck", "a", "i1", "closed")]
    assert world.over() == ["i2 has taken its place"]


def test_a_run_that_takes_steps_is_not_stuck_however_long_it_lasts(world: Any) -> None:
    one = world.alive("a")
    for step in range(20):
        one.takes(7, step=str(step))
        world.run(4)
    assert world.incidents() == []


def test_one_message_that_hangs_is_seen_though_others_pass_it_by(world: Any) -> None:
    one = world.alive("a")
    one.takes(7, step="1")
    for sequence in range(8, 20):
        one.in_hand = one.in_hand[:1]
        one.takes(sequence)
        one.progress += 1
        world.run(1)
    [incident] = world.incidents()
    assert (incident.kind, incident.evidence["message"]) == ("stuck", "LOG-7")


def test_stuck_is_over_where_it_goes_on(world: Any) -> None:
    one = world.alive("a")
    one.takes(7, step="1")
    world.run(8)
    one.takes(7, step="2")
    world.run(1)
    assert world.over() == ["it goes on"]


def test_who_gives_a_message_back_because_it_stops_did_not_go_on(world: Any) -> None:
    one = world.started("a", "i1")
    one.takes(7, step="1")
    world.run(7)
    one.state, one.in_hand = STOPPING, []
    world.run(1)
    assert world.shown() == [("stuck", "a", "i1", "open")]
    world.ended(one, wanted=True, code=0, signal="")
    world.started("a", "i2")
    world.run(1)
    assert world.over() == ["i2 has taken its place"]


def test_a_message_that_waits_behind_others_is_not_stuck(world: Any) -> None:
    one = world.alive("a")
    one.takes(7)
    one.in_hand = [type(one.in_hand[0])(sequence=7, subject="inbox.a.x.task")]
    world.run(30)
    assert world.incidents() == []


def test_an_agent_may_have_a_deadline_of_its_own(world: Any) -> None:
    world.alive("slow").takes(7)
    world.run(30)
    assert world.incidents() == []


def test_the_log_says_that_an_agent_is_stuck_whatever_its_beats_say(world: Any) -> None:
    one = world.alive("a")
    for _ in range(10):
        one.progress += 1
        world.positions = [Position("a", "LOG", 20, 3, 50, 40, 33)]
        world.run(1)
    [incident] = world.incidents()
    assert (incident.kind, incident.agent, incident.instance) == ("stuck", "a", "")
    assert incident.evidence["delivered"] == 50
    assert world.commands() == [("a", "restart", "")]
    world.positions = [Position("a", "LOG", 19, 3, 51, 40, 33)]
    world.run(1)
    assert world.over() == ["its consumer moves again"]


def test_what_its_beats_say_goes_before_what_its_consumer_says(world: Any) -> None:
    """The message is named, and so may be found to be poison."""
    world.positions = [Position("a", "LOG", 0, 1, 50, 49)]
    world.started("a", "i1")
    world.run(1)
    world.instances[-1].takes(50)
    world.run(12)
    assert world.shown() == [("stuck", "a", "i1", "open")]
    assert world.incidents()[0].evidence["message"] == "LOG-50"


def test_a_consumer_whose_runs_get_entries_is_not_stuck(world: Any) -> None:
    world.alive("a")
    for entry in range(30):
        world.positions = [Position("a", "LOG", 20, 3, 50, 40, entry)]
        world.run(1)
    assert world.incidents() == []


def test_a_blocked_loop_is_named_so_and_not_stuck(world: Any) -> None:
    one = world.started("a", "i1")
    one.takes(7)
    world.run(2)
    for seconds in range(1, 12):
        one.state, one.lag = BLOCKED, float(seconds)
        world.run(1)
    assert world.shown() == [("blocked", "a", "i1", "open")]
    assert world.incidents()[0].evidence["begun"] == ["LOG-7"]
    assert world.commands() == [("a", "restart", "i1")]
    world.ended(one, wanted=True, killed=True)
    world.started("a", "i2")
    world.run(5)
    assert world.shown() == [("blocked", "a", "i1", "closed")]


def test_a_loop_that_answers_again_is_not_blocked_any_more(world: Any) -> None:
    one = world.alive("a")
    world.run(2)
    one.state, one.lag = BLOCKED, 3.5
    world.run(1)
    one.state, one.lag = IDLE, 0.0
    world.run(1)
    assert world.over() == ["its event loop answers again"]


def test_a_consumer_that_hands_nothing_out_while_messages_wait_is_silent(world: Any) -> None:
    world.alive("a")
    for pending in range(1, 9):
        world.positions = [Position("a", "LOG", pending, 0, 50, 50)]
        world.run(1)
    assert world.shown() == [("silent", "a", "", "open")]
    assert world.commands() == [("a", "restart", "")]
    world.positions = []
    world.run(1)
    assert world.over() == ["messages are handed out again"]


@pytest.mark.parametrize("command", ["pause", "stop", "quarantine"])
def test_nothing_is_expected_of_an_agent_that_rests(world: Any, command: str) -> None:
    world.alive("a")
    world.command("a", command)
    world.positions = [Position("a", "LOG", 9, 0, 50, 50)]
    world.run(30)
    assert world.incidents() == []


def test_who_just_started_has_time_to_begin(world: Any) -> None:
    world.positions = [Position("a", "LOG", 9, 0, 50, 50)]
    world.run(4)
    world.alive("a")
    world.run(4)
    assert world.incidents() == []
    world.run(4)
    assert world.shown() == [("silent", "a", "", "open")]


def test_a_dead_agent_is_not_also_silent(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.positions = [Position("a", "LOG", 9, 2, 50, 40)]
    world.run(60)
    assert world.shown() == [("dead", "a", "i1", "open")]


def test_a_projector_that_stands_still_behind_the_log_is_stalled(world: Any) -> None:
    one = world.alive("projector", "p1", PROJECTOR)
    world.head = one.progress = 50
    world.run(20)
    world.head = 53
    world.run(7)
    assert world.shown() == [("stalled", "projector", "p1", "open")]
    assert world.commands() == [("projector", "restart", "p1")]
    one.progress = 53
    world.run(1)
    assert world.over() == ["it goes on"]


def test_a_projector_that_says_that_nothing_is_left_is_not_believed(world: Any) -> None:
    one = world.alive("projector", "p1", PROJECTOR)
    one.pending, world.head = 0, 60
    world.run(7)
    assert world.shown() == [("stalled", "projector", "p1", "open")]


def test_a_projector_that_follows_at_some_distance_is_well(world: Any) -> None:
    one = world.alive("projector", "p1", PROJECTOR)
    for head in range(100, 140):
        one.progress, world.head = head - 9, head
        world.run(1)
    one.progress = world.head
    world.run(30)
    assert world.incidents() == []


def test_a_projector_that_works_far_behind_is_behind_and_not_stalled(world: Any) -> None:
    one = world.alive("projector", "p1", PROJECTOR)
    world.head = 2000
    for left in range(1000, 400, -50):
        one.progress = 2000 - left
        world.run(1)
    assert world.shown() == [("behind", "projector", "p1", "open")]
    assert world.commands() == []
    one.progress = 1990
    world.run(1)
    assert world.over() == ["fewer than 100 events are left"]
