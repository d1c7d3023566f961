"""Commands and outcomes: what they are called, and that a judgement gives one command."""

from __future__ import annotations

import pytest

from stratum_bus import control
from stratum_bus.bus import Bus
from stratum_bus.control import COMMANDS, Command, Ended, Held, Outcome, Started
from stratum_bus.event import new, typed
from stratum_bus.schema import TYPES


def test_every_word_of_control_is_a_declared_type() -> None:
    for command in COMMANDS:
        assert TYPES[f"stratum.control.{command}"].cls is Command
    for name, cls in (("outcome", Outcome), ("started", Started), ("ended", Ended)):
        assert TYPES[f"stratum.control.{name}"].cls is cls


def test_an_incident_makes_the_id_of_its_command_and_of_its_outcome() -> None:
    first = control.new_command("restart", Command(incident="i-7"), source="/health")
    second = control.new_command("restart", Command(incident="i-7"), source="/health")
    other = control.new_command("park", Command(incident="i-7", sequence=3), source="/health")
    assert first.id == second.id == control.command_id("i-7", "restart")
    assert other.id != first.id
    assert control.outcome_id(first.id) == f"outcome-{first.id}"


def test_a_persons_commands_are_each_their_own() -> None:
    ids = {control.new_command("restart", Command(), source="/people").id for _ in range(3)}
    assert len(ids) == 3


def test_a_command_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no command 'explode'; there are start, stop"):
        control.new_command("explode", Command(), source="/people")


async def test_two_who_see_the_same_incident_give_one_command(bus: Bus) -> None:
    for _ in range(2):
        await control.give(bus, "echo", "restart", Command(incident="i-7"), source="/health")
    async with bus.read(filters=["control.echo.restart"]) as reader:
        given = [message async for message in reader]
    assert len(given) == 1
    event = typed(given[0].event(), Command)
    assert (event.id, event.data.incident, event.source) == ("cmd-restart-i-7", "i-7", "/health")


async def test_an_end_says_what_was_held(bus: Bus) -> None:
    held = [Held(sequence=4, begun=True, deaths=2, mark="r:9"), Held(stream="TIMERS", sequence=1)]
    ended = Ended(instance="1-a", pid=5, code=-9, held=held)
    event = new("stratum.control.ended", ended, source=control.SUPERVISOR_SOURCE)
    await bus.publish("control.echo.ended", event)
    message = await bus.last("control.echo.ended")
    assert message is not None
    assert typed(message.event(), Ended).data.held == held
