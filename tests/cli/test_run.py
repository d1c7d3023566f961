"""`stratum run`: runs listed, told, asked for something, replayed, forked and exported."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stratum_agents import Agent, Retry, Run, Terminal
from stratum_agents.history import Story, Summary
from stratum_agents.replay import assert_replays, load
from stratum_agents.testing import Kit, runs
from stratum_bus import Event, dead
from stratum_bus.bus import Bus
from stratum_bus.event import new
from stratum_cli.commands.run import State
from stratum_cli.output import Output
from stratum_cli.story import header

CODE = """
from stratum_agents import Agent

agent = Agent("shop")

def price() -> int:
    return 42

@agent.on("order")
async def order(run, event):
    await run.step("NAME", price)
    await run.send("stock", "reserve", 1)
    await run.wait_for("verdict")

def create():
    return agent
"""
"""An agent of a project; what it does is what `Shop` does with `wait`."""


class Shop:
    """An agent that waits, fails or completes as its event says."""

    def __init__(self) -> None:
        self.agent = Agent("shop")
        self.agent.on("order")(self._order)
        self.tries = 0
        self.broken = True

    async def _order(self, run: Run, event: Event[dict[str, Any]]) -> Any:
        price = await run.step("price", self._price, retry=Retry(first_seconds=0.001))
        await run.send("stock", "reserve", 1)
        match event.data:
            case {"wait": True}:
                await run.wait_for("verdict", timeout_days=7)
            case {"pay": True}:
                await run.step("pay", self._pay)
                await run.remember("note", "paid")
        return price

    async def _price(self) -> int:
        self.tries += 1
        if self.tries == 1:
            try:
                raise ConnectionError("no route")
            except ConnectionError as error:
                raise TimeoutError("no answer") from error
        return 42

    async def _pay(self) -> None:
        if self.broken:
            raise Terminal("no \x1b[31m money")


Act = Callable[[Kit], Awaitable[Any]]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
def do(log: Any, shop: Shop) -> Callable[[Act], Any]:
    """Let the shop work while something is done."""

    def run(act: Act) -> Any:
        async def work(bus: Bus) -> Any:
            async with runs(bus, shop.agent) as kit:
                return await act(kit)

        return log.do(work)

    return run


@pytest.fixture
def waiting(do: Any) -> str:
    return str(do(lambda kit: kit.start("order", {"wait": True})))


def objects(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def settle(do: Any, log: Any) -> None:
    """Let the shop see what stands in the log for it: the last message."""

    async def hand_out(kit: Kit) -> None:
        kit._position = (await kit.bus.connection.api("STREAM.INFO.LOG"))["state"]["last_seq"] - 1
        await kit.settle()

    do(hand_out)


# Listing.


def test_lists_runs_with_how_they_stand(stratum: Any, do: Any, waiting: str) -> None:
    done = do(lambda kit: kit.start("order", {}))
    failed = do(lambda kit: kit.start("order", {"pay": True}))
    listed = {each["run"]: each for each in objects(stratum("run", "list", "--json"))}
    assert list(listed) == [waiting, done, failed]
    assert [listed[run]["state"] for run in listed] == ["waiting", "completed", "failed"]
    assert (listed[waiting]["type"], listed[waiting]["steps"]) == ("order", 1)
    assert listed[waiting]["waits"] == ["wait:verdict"]
    assert "no \\x1b[31m money" in listed[failed]["error"].encode("unicode_escape").decode()
    text = stratum("run", "list").stdout
    assert "for verdict, until 20" in text
    assert "(in 6 d 23 h)" in text
    assert "\x1b" not in text


def test_lists_what_is_asked_for(stratum: Any, do: Any, waiting: str) -> None:
    do(lambda kit: kit.start("order", {}))
    assert [e["run"] for e in objects(stratum("run", "list", "--state", "waiting", "--json"))] == [
        waiting
    ]
    assert len(objects(stratum("run", "list", "--agent", "shop", "--json"))) == 2
    newest = stratum("run", "list", "--limit", "1")
    assert (newest.stdout.count("\n"), "the newest 1 of 2" in newest.stderr) == (2, True)
    nothing = stratum("run", "list", "--state", "parked")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "no parked runs\n")
    unknown = stratum("run", "list", "--agent", "nobody")
    assert (unknown.returncode, "there is no agent nobody" in unknown.stderr) == (3, True)


def test_every_state_that_a_run_can_have_can_be_asked_for(stratum: Any, do: Any, log: Any) -> None:
    from stratum_agents import history
    from stratum_agents.journal import ENDS, PARKED

    states = {history.RUNS, history.WAITS, history.PAUSED, history.DAMAGED, PARKED, *ENDS}
    assert {state.value for state in State} == {*states, "all"}


# What happened in a run.


def test_tells_a_run_line_by_line(stratum: Any, do: Any, waiting: str) -> None:
    result = stratum("run", "show", waiting)
    assert result.returncode == 0, result.stderr
    head, _, story = result.stdout.partition("\n\n")
    fields = {line[:10].strip(): line[12:] for line in head.splitlines()}
    assert list(fields) == [
        "run", "agent", "began by", "state", "waits", "started", "ended", "steps",
    ]  # fmt: skip
    assert fields["began by"].startswith("order, LOG ")
    assert fields["waits"].startswith("for verdict, until 20")
    assert fields["steps"] == "1 done, 1 failed"
    step, failed, sent, waits = story.splitlines()
    assert step.split()[:6] == ["+0.000", "s", "1", "step", "price", "done"]
    assert step.endswith("42")
    said = "TimeoutError: no answer, caused by ConnectionError: no route (test_run.py:"
    assert said in failed
    assert sent.split() == ["2", "→", "reserve", "inbox.stock.shop.reserve"]
    assert "wait for verdict  waiting" in waits


def test_json_has_all_of_a_run(stratum: Any, do: Any, waiting: str) -> None:
    [told] = objects(stratum("run", "show", "last", "--json"))
    assert (told["run"], told["state"], told["failures"]) == (waiting, "waiting", 1)
    assert [entry["kind"] for entry in told["journal"]] == [
        "step.failed", "step.completed", "waiting",
    ]  # fmt: skip
    step, waits = told["timeline"]
    assert (step["what"], step["result"], len(step["attempts"])) == ("step:price", 42, 1)
    assert "Traceback" in step["attempts"][0]["error"]["trace"]
    assert (waits["n"], waits["effects"][0]["n"]) == ("3", "2")


def test_a_failed_run_says_why_and_what_came_of_it(stratum: Any, do: Any) -> None:
    run = do(lambda kit: kit.start("order", {"pay": True}))
    shown = stratum("run", "show", run).stdout
    assert "StepFailed: step 'pay' failed, tried once: Terminal: no \\x1b[31m money" in shown
    assert "caused by   Terminal" in shown
    assert "→ stratum.dead.lettered  dead.shop.order" in shown


def test_a_run_that_was_taken_over_or_forked_says_so(stratum: Any, do: Any) -> None:
    async def crash(kit: Kit) -> str:
        kit.crash(2)
        return await kit.start("order", {"wait": True})

    run = do(crash)
    assert "taken over" in stratum("run", "show", run).stdout
    fork = stratum("run", "fork", run, "--at", "3", "--set", "price=7").stdout.strip()
    settle(do, None)
    shown = stratum("run", "show", fork).stdout
    assert f"fork of     {run} at 3" in shown
    assert "(shared)  7" in shown
    assert "taken over" not in shown.partition("forked from")[2]


def test_a_damaged_run_is_told_as_far_as_it_can_be_read(
    stratum: Any, log: Any, waiting: str
) -> None:
    log.store(f"run.shop.{waiting}", b"\xff")
    shown = stratum("run", "show", waiting)
    assert (shown.returncode, "step price" in shown.stdout) == (0, True)
    assert "is damaged" in shown.stdout
    [listed] = objects(stratum("run", "list", "--json"))
    assert (listed["state"], "utf8" in listed["error"]) == ("damaged", True)
    assert stratum("run", "cancel", waiting).returncode == 1


def test_colours_are_for_a_terminal_and_cut_to_its_width(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    out = Output()
    out.styled([("good", "done"), ("", "  \x1b[31m evil text")])
    assert capfdbinary.readouterr().out == b"done  \\x1b[31m evil text\n"
    out.colours = True
    out.styled([("good", "done"), ("", "  \x1b[31m evil text")])
    assert capfdbinary.readouterr().out.decode() == "\x1b[32mdone\x1b[0m  \\x1b[…\n"


def test_a_run_that_stands_still_says_for_how_long() -> None:
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    summary = Summary("r1", "shop", state="running", instance="i1", changed=now)
    for seconds, said in ((5, "running on i1"), (180, "running on i1, nothing new for 3 min 0 s")):
        told = Story(summary, [], [])
        lines = ["".join(t for _, t in line) for line in header(told, now + timedelta(0, seconds))]
        assert lines[2] == f"state       {said}"


# Following.


def test_follows_a_run_until_it_ends(bus_url: str, do: Any, waiting: str) -> None:
    command = [sys.executable, "-m", "stratum_cli", "--nats-url", bus_url, "run", "tail", waiting]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(5)]
        assert "wait for verdict  waiting" in lines[-1]
        do(lambda kit: kit.signal(waiting, "verdict", {"ok": True}))
        rest = process.stdout.read()
        assert process.wait(timeout=20) == 0
    assert "received  verdict, from /agents/test" in rest
    assert "completed  42" in rest.splitlines()[-1]


def test_following_ends_with_ctrl_c(bus_url: str, waiting: str) -> None:
    command = [sys.executable, "-m", "stratum_cli", "--nats-url", bus_url]
    command += ["run", "tail", waiting, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["kind"] == "step.failed"
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=20) == 130


# Asking for something.


def test_a_run_that_waits_is_sent_what_it_waits_for(
    stratum: Any, log: Any, do: Any, waiting: str
) -> None:
    sent = stratum("send", "shop", "verdict", '{"ok": true}', "--run", waiting)
    assert sent.returncode == 0, sent.stderr
    settle(do, log)
    [told] = objects(stratum("run", "show", waiting, "--json"))
    assert told["state"] == "completed"
    assert stratum("send", "shop", "verdict", "--run", "a b").returncode == 2


def test_a_run_is_cancelled(stratum: Any, log: Any, do: Any, waiting: str) -> None:
    before = log.last_sequence()
    planned = stratum("run", "cancel", waiting, "--dry-run")
    assert (planned.stdout, log.last_sequence()) == (
        f"run {waiting} would be asked to cancel\n", before,
    )  # fmt: skip
    [asked] = objects(stratum("run", "cancel", "last", "--reason", "not needed", "--json"))
    assert (asked["run"], asked["asked"], asked["sequence"]) == (waiting, True, before + 1)
    settle(do, log)
    assert "cancelled" in stratum("run", "show", waiting).stdout
    for verb in ("cancel", "pause", "resume"):
        again = stratum("run", verb, waiting)
        assert (again.returncode, again.stdout) == (5, "")
        assert again.stderr == f"stratum: run {waiting} has ended already: it is cancelled\n"


def test_a_run_is_paused_and_resumed(stratum: Any, log: Any, do: Any, waiting: str) -> None:
    done = stratum("run", "pause", waiting, "--reason", "look first")
    assert done.stdout == f"run {waiting} is asked to pause\n"
    assert "shop is not running: it will see that when it starts" in done.stderr
    settle(do, log)
    [listed] = objects(stratum("run", "list", "--state", "paused", "--json"))
    assert listed["run"] == waiting
    again = stratum("run", "pause", waiting)
    assert (again.returncode, again.stderr) == (5, f"stratum: run {waiting} is paused already\n")
    assert stratum("run", "resume", waiting).returncode == 0
    settle(do, log)
    assert objects(stratum("run", "list", "--state", "waiting", "--json"))
    shown = stratum("run", "show", waiting).stdout
    assert "asked to pause look first" in " ".join(shown.split())
    assert "asked to go on" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("show", "rnone"), 3, "there is no run rnone"),
        (("show", "rnone", "--agent", "shop"), 3, "there is no run rnone of agent shop"),
        (("cancel", "a.b"), 2, "run id 'a.b' is not allowed: it has a dot"),
        (("tail", "*"), 2, "it has a wildcard"),
        (("show", "r1", "--agent", "a b"), 2, "agent name 'a b' is not allowed"),
        (("show", "last"), 3, "there is no run last"),
        (("fork", "rnone"), 2, "--at"),
    ],
)
def test_a_run_that_is_not_there_is_one_sentence(
    stratum: Any, arguments: tuple[str, ...], code: int, said: str
) -> None:
    result = stratum("run", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_id_that_two_agents_have_needs_the_agent(stratum: Any, log: Any) -> None:
    for agent in ("one", "two"):
        log.store(f"run.{agent}.r1", b"{}")
    both = stratum("run", "show", "r1")
    assert (both.returncode, both.stderr) == (
        2, "stratum: one and two have a run r1: say which with --agent\n",
    )  # fmt: skip
    assert stratum("run", "show", "r1", "--agent", "two").returncode == 0


# Forks.


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--at", "9"), 3, "there is no position or step 9 in the journal of run"),
        (("--at", "3", "--set", "price"), 2, "--set 'price' is not of the form KEY=JSON"),
        (("--at", "3", "--set", "price=a b"), 2, "--set price: 'a b' is no JSON"),
        (("--at", "3", "--set", "pay=1"), 3, "there is no step pay that run"),
        (("--at", "1", "--set", "price=1"), 3, "there is no step price that run"),
    ],
)
def test_a_fork_that_cannot_be_is_one_sentence(
    stratum: Any, log: Any, waiting: str, options: tuple[str, ...], code: int, said: str
) -> None:
    before = log.last_sequence()
    result = stratum("run", "fork", waiting, *options)
    assert (result.returncode, result.stdout, log.last_sequence()) == (code, "", before)
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_fork_goes_on_live_under_an_id_of_its_own(
    stratum: Any, log: Any, do: Any, waiting: str
) -> None:
    before = log.last_sequence()
    planned = stratum("run", "fork", waiting, "--at", "3", "--dry-run")
    assert (planned.stdout, log.last_sequence()) == (
        f"run {waiting} would be forked at 3\n", before,
    )  # fmt: skip
    [made] = objects(stratum("run", "fork", waiting, "--at", "3", "--set", "1=7", "--json"))
    assert (made["forked_from"], made["set"]) == (waiting, {"1": 7})
    settle(do, log)
    do(lambda kit: kit.signal(made["run"], "verdict", 1))
    [told] = objects(stratum("run", "show", made["run"], "--json"))
    assert (told["state"], told["timeline"][-1]["result"]) == ("completed", 7)


# Redriving a failed run.


def test_a_dead_letter_of_a_run_goes_on_from_the_step_that_failed(
    stratum: Any, log: Any, do: Any, shop: Shop
) -> None:
    failed = do(lambda kit: kit.start("order", {"pay": True}))
    [letter] = log.do(dead.letters)
    planned = stratum("dead", "redrive", letter.id, "--dry-run")
    assert f"{letter.id} (LOG 1) would be redriven from 3" in planned.stdout
    shop.broken = False
    tries = shop.tries
    [done] = objects(stratum("dead", "redrive", letter.id, "--json"))
    assert (done["failed_run"], done["at"], done["redriven"]) == (failed, "3", True)

    async def settled(kit: Kit) -> None:
        kit._position = letter.sequence
        await kit.settle()

    do(settled)
    [told] = objects(stratum("run", "show", done["run"], "--json"))
    assert (told["state"], told["forked_from"], shop.tries) == ("completed", failed, tries)
    assert stratum("dead", "redrive", letter.id).returncode == 5


# Replays and recordings: the agent comes from stratum.toml, in a process of its own.


@pytest.fixture
def code(project: Path) -> Callable[[str], None]:
    """Write the project's agent, its step under a name."""
    (project / "stratum.toml").write_text('[agents.shop]\ncreate = "shop_code:create"\n')

    def write(name: str) -> None:
        (project / "shop_code.py").write_text(CODE.replace("NAME", name))

    write("price")
    return write


def test_the_code_of_today_is_replayed(process: Any, code: Any, waiting: str) -> None:
    agrees = process("run", "replay", waiting)
    assert (agrees.returncode, agrees.stdout) == (
        0, f"run {waiting} agrees: 3 calls are as they were journaled\n",
    )  # fmt: skip
    code("cost")
    differs = process("run", "replay", waiting)
    assert (differs.returncode, differs.stderr) == (1, "")
    lines = dict(line.split("  ", 1) for line in differs.stdout.splitlines())
    said = {key: value.strip() for key, value in lines.items()}
    assert said.pop("advice").startswith("The handler was changed")
    assert said == {
        "differs at": "1",
        "journaled": "step:price",
        "asked for": "step:cost",
        "probably": "step:price was renamed to step:cost, or step:cost was added before it",
    }
    as_json = process("run", "replay", waiting, "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["agrees"]) == (1, False)


def test_a_replay_needs_the_agent_in_the_settings(process: Any, waiting: str) -> None:
    result = process("run", "replay", waiting)
    assert (result.returncode, result.stdout) == (2, "")
    assert "agents.shop: expected a table for this agent" in result.stderr


def test_a_run_is_exported_as_a_recording(
    stratum: Any, shop: Shop, waiting: str, project: Path
) -> None:
    written = stratum("run", "export", waiting, "-o", "run.jsonl")
    assert (written.returncode, written.stdout) == (0, "")
    assert f"3 entries of run {waiting} are in run.jsonl" in written.stderr
    printed = stratum("run", "export", waiting)
    assert printed.stdout == (project / "run.jsonl").read_text()
    assert load(project / "run.jsonl").run == waiting
    assert_replays(shop.agent, project / "run.jsonl")
    nowhere = stratum("run", "export", waiting, "-o", "no/such/folder.jsonl")
    assert nowhere.stderr == "stratum: No such file or directory: no/such/folder.jsonl\n"


def test_a_run_begun_by_what_cannot_be_read_is_still_told(stratum: Any, log: Any) -> None:
    event = new("stratum.run.signalled", {"name": "x"}, source="/agents/shop", id="r1-in-1")

    async def store(bus: Bus) -> None:
        await bus.publish("run.shop.r1", event)

    log.do(store)
    shown = stratum("run", "show", "r1")
    assert (shown.returncode, "state       new" in shown.stdout) == (0, True)
    for verb in ("export", "replay"):
        refused = stratum("run", verb, "r1")
        assert (refused.returncode, "there is no run r1" in refused.stderr) == (3, True)
