"""Processes that end: what becomes of them, of what they had in hand, and of what killed them."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from stratum_agents import fork
from stratum_agents.supervision.running import Running
from stratum_bus import dead
from stratum_bus.testing import eventually

WORKER = '[agents.worker]\ncreate = "supervised_agents:create"\n'
MANY = "[supervisor]\nrestarts = 1000\nhealthy_seconds = 0.01\nspares = {spares}\n"
SCRIPT = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"])
with open("told", "a") as out:
    names = ("STRATUM_NATS_URL", "STRATUM_AGENT", "STRATUM_INSTANCE")
    print(*(os.environ[name] for name in names), child.pid, file=out, flush=True)
time.sleep(1000)
"""


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_killed_process_is_replaced_by_a_warm_spare_and_its_run_goes_on(
    supervise: Any,
) -> None:
    async with supervise() as house:
        (first,) = await house.until_ready()
        spares = house.supervisor.keepers["worker"]._common.spares
        await eventually(lambda: spares._pool, within_seconds=15)
        await house.send("job", steps=60)
        await house.until_steps(5)
        os.kill(first.pid, signal.SIGKILL)
        killed = time.monotonic()
        second = await house.until_replaced(first.pid)
        assert second.warm
        after = len(await house.steps())
        await house.until_steps(after + 1)
        assert time.monotonic() - killed < 3
        assert await house.until_steps(60) == [*range(60)]
        events = await house.events("control.worker.>")
    by_id = {each["id"]: each for each in events}
    ended = by_id[f"ended-{first.instance}"]
    assert (ended["data"]["signal"], ended["data"]["code"]) == ("SIGKILL", -9)
    assert [each["begun"] for each in ended["data"]["held"]] == [True]
    restart = by_id[f"cmd-restart-ended-{first.instance}"]
    assert (restart["type"], restart["cause"]) == ("stratum.control.restart", ended["id"])
    started = by_id[f"started-{second.instance}"]
    assert (started["cause"], started["data"]["warm"]) == (restart["id"], True)
    outcome = by_id[f"outcome-{restart['id']}"]["data"]
    assert (outcome["done"], outcome["instance"]) == (True, second.instance)


async def test_what_a_killed_process_held_goes_to_another_one_at_once(supervise: Any) -> None:
    """Not after ack_wait, which is 30 s here."""
    toml = MANY.format(spares=0) + WORKER + "instances = 2\n"
    async with supervise(toml) as house:
        await house.until_ready()
        for _ in range(8):
            await house.send("job", steps=15, seconds=0.05)
        await house.until_steps(20)
        victim = next(each for each in house.running() if each.left())
        assert victim.left()
        os.kill(victim.pid, signal.SIGKILL)
        steps = await house.until_steps(8 * 15, within_seconds=12)
    assert sorted(steps) == sorted([*range(15)] * 8)


async def test_what_a_stopped_process_never_took_from_its_connection_goes_to_another_one(
    supervise: Any,
) -> None:
    async with supervise(MANY.format(spares=0) + WORKER + "instances = 2\n") as house:
        stopped, _ = await house.until_ready()
        os.kill(stopped.pid, signal.SIGSTOP)
        for _ in range(40):  # more than it had asked for
            await house.send("job", steps=1)
        assert 1 <= len(await house.until_steps(1)) < 40
        os.kill(stopped.pid, signal.SIGKILL)
        assert len(await house.until_steps(40, within_seconds=12)) == 40


async def test_a_message_that_kills_is_parked_and_the_next_ones_are_handled(
    supervise: Any,
) -> None:
    async with supervise() as house:
        await house.until_ready()
        poison = await house.send("poison")
        await house.send("job", steps=3)
        assert await house.until_steps(3) == [0, 1, 2]
        (letter,) = await eventually(lambda: dead.letters(house.bus, "worker"))
        info = await house.bus.connection.api("CONSUMER.INFO.LOG.worker")
        events = await house.events("control.worker.>")
    assert (letter.letter.reason, letter.letter.attempts) == ("poison", 3)
    assert letter.letter.origin.sequence == poison
    assert info["num_ack_pending"] == 0
    ended = [each["data"] for each in events if each["type"].endswith(".ended")]
    held = [each for end in ended for each in end.get("held", []) if each["sequence"] == poison]
    assert [each["deaths"] for each in held] == [1, 2, 3]
    assert len([each for each in events if each["type"].endswith(".restart")]) == 3
    (park,) = [each for each in events if each["type"].endswith(".park")]
    assert park["data"]["sequence"] == poison
    outcomes = {each["data"]["command"]: each["data"] for each in events if "outcome" in each["id"]}
    assert outcomes[park["id"]]["done"]


async def test_those_beside_a_message_that_kills_are_not_parked(supervise: Any) -> None:
    async with supervise(MANY.format(spares=1) + WORKER) as house:
        await house.until_ready()
        for _ in range(3):
            await house.send("job", steps=3, seconds=0.1)
        await house.send("poison", after=0.05)
        assert len(await house.until_steps(9, within_seconds=30)) == 9
        (letter,) = await eventually(lambda: dead.letters(house.bus, "worker"))
    assert letter.letter.reason == "poison"


async def test_the_run_of_a_parked_message_goes_on_where_it_stood_when_a_person_says_so(
    supervise: Any, tmp_path: Path
) -> None:
    mended = tmp_path / "mended"
    async with supervise(MANY.format(spares=1) + WORKER) as house:
        await house.until_ready()
        sequence = await house.send("half", mended=str(mended))
        for _ in range(3):
            (one,) = await house.until_ready()
            await until_begun(one, sequence)
            await eventually(lambda: house.events("run.worker.>"))
            os.kill(one.pid, signal.SIGKILL)
            await house.until_replaced(one.pid)
        (letter,) = await eventually(lambda: dead.letters(house.bus, "worker"))
        assert letter.letter.origin.sequence == sequence
        entries = await house.events("run.worker.>")
        kinds = [each["type"].removeprefix("stratum.run.") for each in entries]
        assert (kinds[0], kinds[-1]) == ("step.completed", "parked")
        mended.touch()
        await house.until_ready()
        await fork.request(house.bus, "worker", letter.letter.run, "run.resume")
        assert await house.until_steps(2) == [0, 1]
        steps = [each for each in await house.events("run.worker.>") if "step" in each["type"]]
    assert len(steps) == 2  # nothing was done again


async def until_begun(instance: Running, sequence: int) -> None:
    await eventually(
        lambda: any(left.begun and left.sequence == sequence for left in instance.left())
    )


async def test_too_many_ends_are_given_up_and_told_to_a_person(
    supervise: Any, tmp_path: Path
) -> None:
    notify = [sys.executable, "-c", f"open({str(tmp_path / 'told')!r}, 'a').write(input() + '\\n')"]
    toml = (
        "[supervisor]\nrestarts = 2\nfirst_delay_seconds = 0.01\nspares = 0\n"
        f'human = "ada"\nnotify_command = {notify!r}\n'
        '[agents.worker]\ncreate = "supervised_agents:failing"\n'
    )
    async with supervise(toml) as house:
        (told,) = await eventually(
            lambda: house.events("inbox.ada.supervisor.escalation"), within_seconds=15
        )
        assert "it ended 3 times within 60 s" in told["data"]["text"]
        assert "stratum agent start worker" in told["data"]["text"]
        assert house.running() == []
        events = await house.events("control.worker.>")
        assert len([each for each in events if each["type"].endswith(".restart")]) == 2
        (quarantine,) = [each for each in events if each["type"].endswith(".quarantine")]
        assert (await house.outcome(quarantine["id"])).done
        await eventually(lambda: (tmp_path / "told").exists() and (tmp_path / "told").read_text())
        assert told["data"]["text"] in (tmp_path / "told").read_text()
    async with supervise(WORKER) as house:
        assert house.running() == []
        assert any("worker: quarantined since" in line for line in house.lines)
        assert (await house.order("start")).done
        await house.until_ready()


async def test_a_mistake_in_the_settings_is_not_tried_again_until_the_next_start(
    supervise: Any,
) -> None:
    toml = '[agents.worker]\ncreate = "supervised_agents:nothing"\n'
    async with supervise(toml) as house:
        await eventually(lambda: house.events("inbox.operator.>"), within_seconds=15)
        assert len([line for line in house.lines if "started" in line]) == 1
        assert not await house.events("control.worker.quarantine")
    async with supervise(WORKER) as house:
        await house.until_ready()


@pytest.mark.skipif(sys.platform != "linux", reason="ends are seen at /proc")
async def test_any_program_can_be_an_agent_and_ends_with_all_it_started(
    supervise: Any, tmp_path: Path, bus_url: str
) -> None:
    (tmp_path / "other.py").write_text(SCRIPT)
    command = [sys.executable, "other.py"]
    toml = f"[agents.other]\ncommand = {command!r}\ninstances = 2\n"
    told = tmp_path / "told"

    def lines(count: int) -> list[list[str]]:
        found = [line.split() for line in told.read_text().splitlines()] if told.exists() else []
        return found if len(found) >= count else []

    async with supervise(toml) as house:
        started = await eventually(lambda: lines(2), within_seconds=15)
        assert {(url, name) for url, name, _, _ in started} == {(bus_url, "other")}
        instances = {each.instance for each in house.running("other")}
        assert {instance for _, _, instance, _ in started} == instances
        victim = house.running("other")[0]
        its_child = next(int(row[3]) for row in started if row[2] == victim.instance)
        os.kill(victim.pid, signal.SIGKILL)
        last = (await eventually(lambda: lines(3), within_seconds=15))[2]
        assert last[2] not in instances
        await eventually(lambda: gone(its_child))
    children = [int(row[3]) for row in lines(3)]
    await eventually(lambda: all(map(gone, children)))


async def test_with_rest_for_one_those_behind_it_are_started_again_too(supervise: Any) -> None:
    agents = "".join(f'[agents.{name}]\ncommand = ["sleep", "1000"]\n' for name in ("a", "b", "c"))
    async with supervise(f'[supervisor]\nstrategy = "rest-for-one"\n{agents}') as house:
        before = {name: house.pids(name)[0] for name in "abc"}
        os.kill(before["b"], signal.SIGKILL)
        for name in "bc":
            await house.until_replaced(before[name], name)
        assert house.pids("a") == [before["a"]]
        (restart,) = await eventually(lambda: house.events("control.c.restart"))
        assert restart["data"]["reason"] == "rest-for-one: b ended"
        assert (await house.outcome(restart["id"], "c")).pid == house.pids("c")[0]


async def test_with_one_for_one_the_others_stay(supervise: Any) -> None:
    agents = "".join(f'[agents.{name}]\ncommand = ["sleep", "1000"]\n' for name in ("a", "b"))
    async with supervise(agents) as house:
        before = {name: house.pids(name)[0] for name in "ab"}
        os.kill(before["a"], signal.SIGKILL)
        await house.until_replaced(before["a"], "a")
        assert house.pids("b") == [before["b"]]


async def test_a_folder_or_program_that_is_not_there_ends_nothing_else(supervise: Any) -> None:
    toml = WORKER + '[agents.ghost]\ncommand = ["/no/such/program"]\n'
    async with supervise(toml) as house:
        await house.until_ready()
        await eventually(lambda: not house.running("ghost"), within_seconds=15)
        assert any("ghost: ended" in line and "given up" in line for line in house.lines)
        await house.send("job", steps=1)
        await house.until_steps(1)
