"""Commands: what is asked for is done once, and it is said what became of it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from stratum_bus import control, dead
from stratum_bus.control import Command
from stratum_bus.testing import eventually

WORKER = '[supervisor]\nspares = 0\n[agents.worker]\ncreate = "supervised_agents:create"\n'
SLEEPER = '[agents.worker]\ncommand = ["sleep", "1000"]\n'


async def test_restart_starts_all_instances_again_and_says_so(supervise: Any) -> None:
    async with supervise(SLEEPER + "instances = 2\n") as house:
        before = house.pids()
        outcome = await house.order("restart", reason="new code")
        assert (outcome.done, outcome.detail) == (True, "2 instances started again")
        assert not set(before) & set(house.pids())
        assert (outcome.pid, outcome.instance) == (house.pids()[0], house.running()[0].instance)
        ended = [each["data"] for each in await house.events("control.worker.ended")]
    assert [each["wanted"] for each in ended] == [True, True]


async def test_restart_of_one_instance_leaves_the_others(supervise: Any) -> None:
    async with supervise(SLEEPER + "instances = 2\n") as house:
        first, second = house.running()
        outcome = await house.order("restart", instance=second.instance)
        assert outcome.done
        assert house.pids()[0] == first.pid
        assert house.pids()[1] == outcome.pid != second.pid


async def test_a_restart_for_an_instance_that_is_gone_starts_nothing(supervise: Any) -> None:
    """Its supervisor saw the end itself: there is one restart for a death and not two."""
    async with supervise(SLEEPER) as house:
        (first,) = house.running()
        os.kill(first.pid, signal.SIGKILL)
        second = await house.until_replaced(first.pid)
        outcome = await house.order("restart", instance=first.instance, incident="dead-1")
        assert (outcome.done, outcome.detail) == (
            True, f"instance {first.instance} does not run any more",
        )  # fmt: skip
        assert house.pids() == [second.pid]


async def test_a_restart_lets_what_is_in_hand_be_finished(supervise: Any) -> None:
    async with supervise(WORKER) as house:
        await house.until_ready()
        await house.send("job", steps=10, seconds=0.05)
        await house.until_steps(2)
        assert (await house.order("restart")).done
        assert await house.until_steps(10) == [*range(10)]
        (ended,) = await house.events("control.worker.ended")
        resumed = [e for e in await house.events("run.worker.>") if e["type"].endswith("resumed")]
    assert (ended["data"]["code"], ended["data"].get("held", []), resumed) == (0, [], [])


async def test_a_process_that_does_not_answer_is_killed_soon(supervise: Any) -> None:
    async with supervise(WORKER) as house:
        (first,) = await house.until_ready()
        await house.send("block")
        beats = house.supervisor.beats
        await eventually(lambda: not beats.answers(first.instance), within_seconds=10)
        began = time.monotonic()
        outcome = await house.order("restart", instance=first.instance, incident="blocked-1")
        assert outcome.done
        assert time.monotonic() - began < 5  # its grace would be 12 s
        (ended,) = await house.events("control.worker.ended")
    assert (ended["data"]["killed"], ended["data"]["signal"]) == (True, "SIGKILL")
    assert [held["deaths"] for held in ended["data"]["held"]] == [1]


async def test_stop_holds_also_for_the_next_supervisor_until_start(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        (pid,) = house.pids()
        outcome = await house.order("stop", reason="lunch")
        assert (outcome.done, outcome.detail) == (True, "1 ended, 0 instances are to run")
        assert house.pids() == []
        await house.order("restart", incident="dead-1")
        assert house.pids() == []
    async with supervise(SLEEPER) as house:
        assert house.pids() == []
        assert any("worker: stopped since" in line and "(lunch)" in line for line in house.lines)
        outcome = await house.order("start")
        assert outcome.done and [outcome.pid] == house.pids() != [pid]


async def test_a_persons_restart_starts_what_was_stopped(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        await house.order("stop")
        assert (await house.order("restart")).done
        assert len(house.pids()) == 1


async def test_scale_goes_before_the_settings(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        (first,) = house.pids()
        assert (await house.order("scale", instances=3)).detail == "3 instances are to run"
        await eventually(lambda: len(house.pids()) == 3)
        assert house.pids()[0] == first
        assert (await house.order("scale", instances=2)).detail == "1 ended, 2 instances are to run"
        assert len(house.pids()) == 2
    async with supervise(SLEEPER) as house:
        await eventually(lambda: len(house.pids()) == 2)


async def test_pause_holds_messages_back_and_resume_hands_them_out(supervise: Any) -> None:
    async with supervise(WORKER) as house:
        await house.until_ready()
        assert (await house.order("pause")).done
        (pid,) = house.pids()
        await house.send("job", steps=1)
        assert (await house.order("restart")).pid != pid  # a new process is held back as well
        await house.until_ready()
        assert await house.steps() == []
        assert (await house.order("resume")).done
        assert await house.until_steps(1) == [0]


async def test_park_makes_a_dead_letter_and_doing_it_twice_changes_nothing(supervise: Any) -> None:
    async with supervise(WORKER) as house:
        await house.until_ready()
        await house.order("pause")
        sequence = await house.send("job", steps=1)
        for _ in range(2):
            outcome = await house.order("park", sequence=sequence, reason="it is spam")
            assert (outcome.done, outcome.detail) == (True, f"LOG-{sequence} is a dead letter")
        (letter,) = await dead.letters(house.bus, "worker")
        assert (letter.letter.reason, letter.letter.error) == ("poison", "it is spam")
        assert not (await house.order("park", sequence=99_999)).done
        assert not (await house.order("park")).done


async def test_escalate_puts_it_into_the_inbox_of_a_person_once(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        for _ in range(2):
            await control.give(
                house.bus, "LOG", "escalate", Command(text="it is full", incident="full-1"),
                source="/health",
            )  # fmt: skip
        outcome = await house.outcome(control.command_id("full-1", "escalate"), "LOG")
        assert (outcome.done, outcome.detail) == (True, "it is in the inbox of operator")
        await house.order("escalate", to="ada", text="look at it")
        (told,) = await house.events("inbox.operator.supervisor.escalation")
        assert (told["data"]["agent"], told["data"]["text"]) == ("LOG", "it is full")
        (to_ada,) = await house.events("inbox.ada.supervisor.escalation")
        assert to_ada["data"]["text"] == "look at it"


async def test_quarantine_ends_it_until_a_person_starts_it(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        assert (await house.order("quarantine", incident="i-1", reason="it leaks")).done
        assert house.pids() == []
        assert not (await house.order("restart", incident="i-2")).done
        assert (await house.order("resume")).done
        assert len(house.pids()) == 1


async def test_what_is_not_readable_is_answered_and_the_next_is_executed(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        await house.bus.connection.request("control.worker.scale", b'{"instances": "many"}')
        answers: list[Any] = await eventually(lambda: house.events("control.worker.outcome"))
        assert not answers[0]["data"]["done"]
        assert "Expected `int`, got `str`" in answers[0]["data"]["detail"]
        assert (await house.order("restart")).done


async def test_a_command_from_a_shell_needs_no_envelope(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        await house.bus.connection.request("control.worker.scale", b'{"instances": 2}')
        await eventually(lambda: len(house.pids()) == 2)


async def test_commands_for_agents_of_others_are_left_to_others(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        await control.give(house.bus, "stranger", "restart", source="/people")
        await house.order("restart")
        assert await house.events("control.stranger.outcome") == []


async def test_a_restart_that_was_asked_for_before_the_start_is_not_done_again(
    supervise: Any, bus: Any
) -> None:
    given = await control.give(bus, "worker", "restart", source="/people")
    async with supervise(SLEEPER) as house:
        outcome = await house.outcome(given.id)
        assert (outcome.done, outcome.detail) == (True, "all were started after it was asked for")
        assert len(await house.events("control.worker.started")) == 1


async def test_a_start_right_after_giving_up_waits_for_what_is_still_ending(
    supervise: Any, tmp_path: Path
) -> None:
    script = "trap 'sleep 1; exit 0' TERM; touch $STRATUM_INSTANCE; while :; do sleep 0.05; done"
    slow = f'["sh", "-c", "{script}"]'
    toml = f"[supervisor]\nrestarts = 1\n[agents.worker]\ncommand = {slow}\ninstances = 2\n"
    async with supervise(toml) as house:
        first, second = house.running()
        await eventually((tmp_path / second.instance).exists)
        os.kill(first.pid, signal.SIGKILL)
        await eventually(lambda: len(house.pids()) == 2 and first.pid not in house.pids())
        os.kill(house.pids()[0], signal.SIGKILL)
        await eventually(lambda: house.supervisor.keepers["worker"].state.quarantined)
        assert second.child.exit_code is None  # it takes its time
        assert (await house.order("start")).done
        await eventually(lambda: len(house.pids()) == 2)
        assert second.pid not in house.pids()


async def test_a_restart_does_not_wait_for_the_delay_of_another(supervise: Any) -> None:
    toml = "[supervisor]\nfirst_delay_seconds = 1000.0\nmax_delay_seconds = 1000.0\n" + SLEEPER
    async with supervise(toml) as house:
        (first,) = house.pids()
        os.kill(first, signal.SIGKILL)
        second = await house.until_replaced(first)
        os.kill(second.pid, signal.SIGKILL)
        await eventually(lambda: any("again in" in line for line in house.lines))
        assert house.pids() == []
        outcome = await house.order("restart")
        assert outcome.done and [outcome.pid] == house.pids()
        os.kill(outcome.pid, signal.SIGKILL)  # a person's restart begins to count anew
        third = await house.until_replaced(outcome.pid)
        os.kill(third.pid, signal.SIGKILL)
        await eventually(lambda: not house.pids())
        assert (await house.order("stop")).done
        (last,) = (await house.events("control.worker.restart"))[-1:]
        outcome = await house.outcome(last["id"])
        assert (outcome.done, outcome.detail) == (False, "it was ended meanwhile")


async def test_an_empty_command_from_a_shell_is_one(supervise: Any) -> None:
    async with supervise(SLEEPER) as house:
        (pid,) = house.pids()
        await house.bus.connection.request("control.worker.restart", b"null")
        await house.until_replaced(pid)
