"""What the supervisor decides: the same for the same facts."""

from __future__ import annotations

import os

import pytest

from stratum_agents.supervision.policy import (
    Again,
    GiveUp,
    History,
    Suspect,
    Wanted,
    after_death,
    after_end,
    delay_seconds,
    ending,
    fold,
    most_suspect,
    signal_name,
)
from stratum_bus.control import Command
from stratum_bus.supervision import SupervisorConfig

SETTINGS = SupervisorConfig(restarts=5, restart_seconds=60, healthy_seconds=60, poison_deaths=3)


def ends(
    *times: float, lived: float = 0.1, code: int = -9, settings: SupervisorConfig = SETTINGS
) -> list[Again | GiveUp]:
    """The decisions at ends at these times."""
    history, decisions = History(), []
    for number, now in enumerate(times):
        history, decision = after_end(
            settings, history, instance=f"1-{number}", code=code, lived_seconds=lived, now=now
        )
        decisions.append(decision)
    return decisions


def delays(decisions: list[Again | GiveUp]) -> list[float]:
    return [each.delay_seconds for each in decisions if isinstance(each, Again)]


def test_the_first_restart_is_at_once_and_the_next_are_later_and_later() -> None:
    found = delays(ends(0, 20, 40, 60, 80))
    assert found[0] == 0
    for delay, full in zip(found[1:], (0.2, 0.4, 0.8, 1.6), strict=True):
        assert full / 2 <= delay <= full


def test_the_delay_has_an_upper_limit_and_differs_between_instances() -> None:
    found = {delay_seconds(SETTINGS, 50, f"1-{n}") for n in range(20)}
    assert len(found) == 20
    assert all(15 <= delay <= 30 for delay in found)


def test_who_ran_for_a_healthy_while_starts_over() -> None:
    assert delays(ends(0, 1, 2, 3))[-1] > 0
    assert delays(ends(0, 100, 200, 300, lived=99)) == [0, 0, 0, 0]


def test_too_many_ends_within_the_time_are_given_up_for_good() -> None:
    *before, last = ends(0, 10, 20, 30, 40, 50)
    assert all(isinstance(each, Again) for each in before)
    assert last == GiveUp("it ended 6 times within 60 s", True)


def test_as_many_ends_over_a_longer_time_are_not_given_up() -> None:
    assert all(isinstance(each, Again) for each in ends(*range(0, 600, 13)))


def test_a_mistake_in_the_settings_is_given_up_at_once_until_the_next_start() -> None:
    (decision,) = ends(0, code=os.EX_CONFIG)
    assert isinstance(decision, GiveUp) and not decision.for_good


def test_the_same_facts_give_the_same_decisions() -> None:
    times = [0, 3, 4, 9, 70, 71, 200, 201, 202, 203, 204]
    assert ends(*times) == ends(*times)


def test_a_message_in_hand_at_three_deaths_is_poison() -> None:
    suspects: dict[str, Suspect] = {}
    for deaths in (1, 2):
        suspects, poison = after_death(SETTINGS, suspects, {"LOG-7": "r:0"})
        assert (suspects["LOG-7"].deaths, poison) == (deaths, [])
    suspects, poison = after_death(SETTINGS, suspects, {"LOG-7": "r:0"})
    assert (suspects, poison) == ({}, ["LOG-7"])


def test_a_run_that_moves_on_between_deaths_is_not_poison() -> None:
    suspects: dict[str, Suspect] = {}
    for death in range(10):
        suspects, poison = after_death(SETTINGS, suspects, {"LOG-7": f"r:{death}"})
        assert (suspects["LOG-7"].deaths, poison) == (1, [])


def test_those_that_were_only_beside_it_are_never_parked() -> None:
    """Sixteen are worked on at once and one of them kills; suspects are then handled alone."""
    hand = {f"LOG-{n}": "r:0" for n in range(16)}
    suspects: dict[str, Suspect] = {}
    for _ in range(5):  # other instances die with all of them, again and again
        suspects, poison = after_death(SETTINGS, suspects, hand)
        assert poison == []
    suspects, poison = after_death(SETTINGS, suspects, {"LOG-3": "r:0"})
    assert poison == ["LOG-3"]
    assert len(suspects) == 15


def test_a_limit_of_one_death_still_asks_for_proof() -> None:
    settings = SupervisorConfig(poison_deaths=1)
    suspects, poison = after_death(settings, {}, {"LOG-1": "a:0", "LOG-2": "b:0"})
    assert (poison, sorted(suspects)) == ([], ["LOG-1", "LOG-2"])
    assert after_death(settings, suspects, {"LOG-2": "b:0"})[1] == ["LOG-2"]


def test_when_an_agent_is_given_up_the_one_message_it_died_of_before_is_parked() -> None:
    suspects = {"LOG-1": Suspect(2, "a:0"), "LOG-2": Suspect(1, "b:0")}
    assert most_suspect(suspects, ["LOG-1"]) == ["LOG-1"]
    assert most_suspect(suspects, ["LOG-2"]) == []
    assert most_suspect(suspects, ["LOG-1", "LOG-2"]) == []


@pytest.mark.parametrize(
    ("commands", "instances", "count"),
    [
        ([], 2, 2),
        ([(3, "stop", Command())], 2, 0),
        ([(3, "stop", Command()), (5, "start", Command())], 2, 2),
        ([(5, "stop", Command()), (3, "start", Command())], 2, 0),
        ([(3, "scale", Command(instances=4))], 4, 4),
        ([(3, "scale", Command(instances=4)), (4, "stop", Command())], 4, 0),
        ([(3, "quarantine", Command(incident="i"))], 2, 0),
        ([(3, "quarantine", Command()), (4, "restart", Command(incident="i"))], 2, 0),
        ([(3, "quarantine", Command()), (4, "restart", Command())], 2, 2),
        ([(3, "quarantine", Command()), (4, "resume", Command())], 2, 2),
        ([(3, "scale", Command(instances=0))], 0, 0),
    ],
)
def test_the_state_follows_from_the_commands_in_the_order_of_the_log(
    commands: list[tuple[int, str, Command]], instances: int, count: int
) -> None:
    state = fold(Wanted(2), commands)
    assert (state.instances, state.count) == (instances, count)


def test_endings_are_named() -> None:
    assert [ending(code) for code in (0, 3, -9)] == ["by itself", "exit code 3", "signal SIGKILL"]
    assert [signal_name(code) for code in (0, 3, -15, -250)] == ["", "", "SIGTERM", "250"]
