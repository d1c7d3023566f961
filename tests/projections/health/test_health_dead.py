"""dead: who is silent, whose process ended, and when that is over."""

from __future__ import annotations

from typing import Any

from stratum_bus.heartbeat import HEALTH, STOPPING, SUPERVISOR


def test_who_beats_is_well(world: Any) -> None:
    world.alive("a")
    world.run(60)
    assert world.incidents() == []


def test_silence_is_noticed_within_two_seconds_of_the_last_beat(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.run(2)
    [incident] = world.incidents()
    assert (incident.kind, incident.agent, incident.instance) == ("dead", "a", "i1")
    last = [m for m in world.health if m.subject == "health.a.i1"][-1]
    assert incident.evidence["last_beat"] == last.sequence
    assert world.commands() == []


def test_who_stays_silent_is_restarted_once(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.run(30)
    assert world.shown() == [("dead", "a", "i1", "open")]
    assert world.commands() == [("a", "restart", "i1")]


def test_who_beats_again_was_not_dead_and_is_not_restarted(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.run(3)
    one.silent = False
    world.run(10)
    assert world.shown() == [("dead", "a", "i1", "closed")]
    assert (world.commands(), world.over()) == ([], ["it beats again"])
    one.silent = True
    world.run(3)
    assert [status for *_, status in world.shown()] == ["closed", "open"]


def test_an_end_that_its_supervisor_saw_is_named_at_once_and_needs_no_command(world: Any) -> None:
    one = world.started("a", "i1")
    world.run(5)
    world.ended(one)
    world.run(0.25)
    [incident] = world.incidents()
    assert (incident.kind, incident.evidence["code"]) == ("dead", -9)
    world.started("a", "i2")
    world.run(10)
    assert world.shown() == [("dead", "a", "i1", "closed")]
    assert world.over() == ["i2 has taken its place"]
    assert world.commands() == []


def test_a_beat_that_comes_after_the_end_changes_nothing(world: Any) -> None:
    one = world.started("a", "i1")
    world.run(5)
    world.ended(one)
    world.run(1)
    one.silent = False
    world.run(0.5)
    one.silent = True
    world.started("a", "i2")
    world.run(30)
    assert world.shown() == [("dead", "a", "i1", "closed")]


def test_an_end_that_was_wanted_is_no_incident(world: Any) -> None:
    one = world.started("a", "i1")
    world.run(5)
    world.ended(one, wanted=True, code=0, signal="")
    world.run(30)
    assert world.incidents() == []


def test_who_said_that_it_stops_is_not_missed(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.state = STOPPING
    world.run(1)
    one.silent = True
    world.run(120)
    assert world.incidents() == []


def test_of_several_instances_without_a_supervisor_as_many_must_be_back(world: Any) -> None:
    one, two = world.alive("a", "i1"), world.alive("a", "i2")
    world.run(5)
    one.silent = two.silent = True
    world.run(4)
    assert len(world.shown()) == 2
    world.alive("a", "i3")
    world.run(2)
    assert [status for *_, status in world.shown()] == ["open", "open"]
    world.alive("a", "i4")
    world.run(2)
    assert [status for *_, status in world.shown()] == ["closed", "closed"]


def test_who_is_missed_and_never_comes_back_is_forgotten_when_a_person_says_so(world: Any) -> None:
    world.started("a", "i1")
    elsewhere = world.alive("a", "by-hand")
    world.run(5)
    elsewhere.silent = True
    world.run(400)
    assert world.shown() == [("dead", "a", "by-hand", "open")]
    assert ("a", "escalate", "") in world.commands()
    world.command("a", "restart")
    world.run(60)
    assert world.shown() == [("dead", "a", "by-hand", "closed")]
    assert world.over() == ["a person had the agent start again"]


def test_a_stopped_agent_is_not_missed(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    world.command("a", "stop")
    one.silent = True
    world.run(30)
    assert world.incidents() == []


def test_a_death_is_over_when_the_agent_is_stopped_by_a_person(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.run(3)
    world.command("a", "stop")
    world.run(1)
    assert world.over() == ["the agent was stopped by command"]


def test_a_supervisor_is_not_told_to_restart_itself(world: Any) -> None:
    one = world.alive("supervisor", "s1", SUPERVISOR)
    world.run(5)
    one.silent = True
    world.run(30)
    assert (world.shown()[0][0], world.commands()) == ("dead", [])
    world.alive("supervisor", "s2", SUPERVISOR)
    world.run(2)
    assert world.over() == ["s2 runs in its place"]


def test_after_the_server_was_away_nobody_is_called_dead_before_all_could_be_heard(
    world: Any,
) -> None:
    world.alive("a")
    world.run(5)
    world.now_ns += 60_000_000_000
    world.tick()
    world.run(10)
    assert world.incidents() == []


def test_a_clock_that_jumps_kills_nobody(world: Any) -> None:
    one = world.alive("a")
    one.takes(7)
    world.run(5)
    for jump in (3600, -7200, 86_400):
        world.now_ns += jump * 1_000_000_000
        world.run(20)
    assert world.incidents() == []
    one.silent = True
    world.run(3)
    assert world.shown() == [("dead", "a", "i1", "open")]


def test_what_never_beat_since_its_start_is_dead_only_where_its_like_beat(world: Any) -> None:
    world.started("foreign", "f1").silent = True
    one = world.started("a", "i1")
    world.run(5)
    world.ended(one)
    world.started("a", "i2").silent = True
    world.run(60)
    assert ("dead", "a", "i2", "open") in world.shown()
    assert not [each for each in world.shown() if each[1] == "foreign"]


def test_the_health_projector_itself_is_judged_by_what_was_seen_of_it(world: Any) -> None:
    other = world.alive("health", "h2", HEALTH)
    world.run(5)
    world.ended(other)
    world.started("health", "h3")
    world.run(2)
    assert world.shown() == [("dead", "health", "h2", "closed")]


def test_what_died_with_its_supervisor_is_no_incident_once_its_place_is_taken(world: Any) -> None:
    one = world.started("a", "i1", slot=2)
    world.run(5)
    one.silent = True
    world.run(0.5)
    world.started("a", "i2", slot=2)
    world.run(60)
    assert world.incidents() == []


def test_a_successor_that_came_before_the_silence_was_noticed_is_one_in_its_place(
    world: Any,
) -> None:
    one = world.alive("supervisor", "s1", SUPERVISOR)
    world.run(5)
    one.silent = True
    world.run(0.5)
    world.alive("supervisor", "s2", SUPERVISOR)
    world.run(5)
    assert world.shown() == [("dead", "supervisor", "s1", "closed")]


def test_of_supervisors_that_died_one_shortly_after_the_other_none_is_missed_for_ever(
    world: Any,
) -> None:
    for number in range(4):
        one = world.alive("supervisor", f"s{number}", SUPERVISOR)
        world.run(1)
        one.silent = True
    world.alive("supervisor", "last", SUPERVISOR)
    world.run(5)
    assert [status for *_, status in world.shown()] == ["closed"] * 4
    assert all(over.endswith("runs in its place") for over in world.over())
