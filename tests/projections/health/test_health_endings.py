"""poison, crash_loop, looping: what no restart mends."""

from __future__ import annotations

from typing import Any

import pytest

from stratum_bus.control import Held
from stratum_projections.health.observed import Repetition


def die(world: Any, times: int, *, begun: bool = True, sequence: int = 7) -> None:
    """An agent dies a few times, each time with the same message in hand."""
    for number in range(1, times + 1):
        one = world.started("a", f"i{number}")
        world.run(1)
        held = Held(sequence=sequence, begun=begun, deaths=number if begun else 0)
        world.ended(one, held=[held])
        world.run(0.5)


def test_a_message_that_killed_three_instances_is_poison_and_is_parked_once(world: Any) -> None:
    die(world, 3)
    world.started("a", "i4")
    world.run(5)
    poison = [each for each in world.incidents() if each.kind == "poison"]
    assert [(each.about, each.severity) for each in poison] == [("LOG-7", "critical")]
    assert world.commands() == [("a", "park", "")]
    world.obeys("a", "park")
    world.run(2)
    assert {status for *_, status in world.shown()} == {"closed"}
    assert "it is parked: as told" in world.over()


def test_what_its_supervisor_parked_by_itself_is_not_parked_again(world: Any) -> None:
    die(world, 3)
    world.command("a", "park", sequence=7)
    world.obeys("a", "park")
    world.started("a", "i4")
    world.run(30)
    assert world.commands() == []
    assert ("poison", "a", "LOG-7", "closed") in world.shown()


def test_a_message_at_which_one_after_the_other_gets_stuck_is_poison(world: Any) -> None:
    for number in range(1, 4):
        one = world.started("a", f"i{number}")
        one.takes(7, step="2")
        world.run(601)
        world.ended(one, wanted=True, code=0, signal="")
        world.run(1)
    world.started("a", "i4")
    world.run(5)
    assert world.commands() == [*[("a", "restart", f"i{n}") for n in (1, 2, 3)], ("a", "park", "")]
    world.obeys("a", "park")
    world.run(600)
    assert ("poison", "a", "LOG-7", "closed") in world.shown()
    assert len(world.commands()) == 4


def test_a_message_that_gets_further_each_time_is_no_poison(world: Any) -> None:
    for number in range(1, 6):
        one = world.started("a", f"i{number}")
        one.takes(7, step=str(number))
        world.run(601)
        world.ended(one, wanted=True, code=0, signal="")
    world.run(5)
    assert {kind for kind, *_ in world.shown()} == {"stuck"}


def test_two_deaths_make_no_poison_and_neither_does_what_was_not_begun(world: Any) -> None:
    die(world, 2)
    die(world, 4, begun=False, sequence=9)
    world.run(5)
    assert not [each for each in world.shown() if each[0] == "poison"]


def test_an_agent_that_ends_again_and_again_is_quarantined_and_a_person_is_told(world: Any) -> None:
    die(world, 6, begun=False)
    world.run(2)
    assert ("crash_loop", "a", "", "open") in world.shown()
    assert world.commands() == [("a", "quarantine", ""), ("a", "escalate", "")]
    world.run(120)
    assert ("crash_loop", "a", "", "open") in world.shown()
    world.command("a", "start")
    world.started("a", "i9")
    world.run(70)
    assert ("crash_loop", "a", "", "closed") in world.shown()
    assert "i9 has held for 60 s" in world.over()
    assert len(world.commands()) == 2


def test_deaths_by_poison_are_no_crash_loop(world: Any) -> None:
    die(world, 9)
    world.run(2)
    assert {kind for kind, *_ in world.shown()} == {"dead", "poison"}


def test_deaths_far_apart_are_no_crash_loop(world: Any) -> None:
    for number in range(8):
        one = world.started("a", f"i{number}")
        world.run(20)
        world.ended(one)
    world.run(5)
    assert {kind for kind, *_ in world.shown()} == {"dead"}


def test_a_quarantine_that_its_supervisor_gave_is_not_given_again(world: Any) -> None:
    die(world, 6, begun=False)
    world.command("a", "quarantine")
    world.run(5)
    assert ("crash_loop", "a", "", "open") in world.shown()
    assert world.commands() == []


def test_a_projector_that_ends_again_and_again_is_not_given_up(world: Any) -> None:
    for number in range(8):
        one = world.started("projector", f"p{number}")
        world.run(1)
        world.ended(one, code=1, signal="")
    world.run(5)
    assert ("crash_loop", "projector", "", "open") in world.shown()
    assert world.commands() == [("projector", "escalate", "")]


@pytest.mark.parametrize("command", ["start", "restart", "resume"])
def test_what_a_person_starts_again_is_not_given_up_for_what_was_before(
    world: Any, command: str
) -> None:
    die(world, 6, begun=False)
    world.command("a", "quarantine")
    world.run(5)
    world.command("a", command)
    world.started("a", "i9")
    world.run(70)
    assert world.commands() == []
    assert ("crash_loop", "a", "", "closed") in world.shown()


def test_a_run_that_repeats_one_call_is_cancelled_and_no_instance_is_restarted(world: Any) -> None:
    one = world.alive("a")
    one.takes(7, run="r7", step="1")
    world.repetitions = [Repetition("a", "r7", "step:search", 24, 30, 11, 60)]
    world.run(2)
    assert world.incidents() == []
    world.repetitions = [Repetition("a", "r7", "step:search", 25, 30, 11, 62)]
    world.run(2)
    [incident] = world.incidents()
    assert (incident.kind, incident.about, incident.evidence["times"]) == ("looping", "r7", 25)
    assert [(agent, name) for agent, name, _ in world.commands()] == [("a", "run.cancel")]
    [cancel] = world.events("a", "run.cancel")
    assert b'"run":"r7"' in bytes(cancel.data)
    world.repetitions, one.in_hand = [], []
    world.run(2)
    assert world.over() == ["nobody works on the run any more"]


def test_what_stays_open_is_told_to_a_person_once(world: Any) -> None:
    one = world.alive("a")
    world.run(5)
    one.silent = True
    world.run(1000)
    assert world.commands() == [("a", "restart", "i1"), ("a", "escalate", "")]
    [told] = world.events("a", "escalate")
    assert b"though restart was given" in bytes(told.data)
