"""`stratum agent`: who there is, and one instance run by hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

AGENT = """
from typing import Any

from stratum_agents.agent import Agent


def create() -> Agent:
    agent = Agent("greeter", follows=["guest.arrived"])

    @agent.on("hello")
    async def hello(run: Any, event: Any) -> None:
        await run.send("guest", "welcome", {"to": event.data})

    return agent
"""


def write(project: Path) -> None:
    (project / "my_greeter.py").write_text(AGENT)
    (project / "stratum.toml").write_text('[agents.greeter]\ncreate = "my_greeter:create"\n')


def test_lists_agents_of_the_settings_and_of_the_log(stratum: Any, log: Any, project: Path) -> None:
    write(project)
    log.send("editor", "note", 1, 2, 3)
    log.handle("editor", 3)
    log.send("editor", "note", 4)
    result = stratum("agent", "list", "--json")
    shown = {row["agent"]: row for row in map(json.loads, result.stdout.splitlines())}
    assert (shown["greeter"]["configured"], shown["greeter"]["state"]) == (True, "never ran")
    assert (shown["editor"]["configured"], shown["editor"]["state"]) == (False, "not listening")
    assert shown["editor"]["pending"] == 1


def test_shows_one_agent(stratum: Any, log: Any, project: Path) -> None:
    write(project)
    log.send("editor", "note", 1)
    log.handle("editor", 1, follows=["price.changed"])
    editor = json.loads(stratum("agent", "show", "editor", "--json").stdout)
    assert (editor["pending"], editor["handled_to"]) == (0, 1)
    assert editor["follows"] == ["price.changed"]
    assert "my_greeter:create" in stratum("agent", "show", "greeter").stdout


def test_runs_an_instance_until_it_is_told_to_stop(
    stratum: Any, log: Any, bus_url: str, project: Path
) -> None:
    write(project)
    log.send("greeter", "hello", "world")
    command = [sys.executable, "-P", "-m", "stratum_cli", "--nats-url", bus_url]
    process = subprocess.Popen(
        [*command, "agent", "run", "greeter"], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while not (sent := stratum("outbox", "greeter", "--json").stdout):
        assert time.monotonic() < deadline
    assert json.loads(sent)["event"]["data"] == {"to": "world"}
    shown = json.loads(stratum("agent", "show", "greeter", "--json").stdout)
    assert (shown["state"], shown["follows"]) == ("listening", ["guest.arrived"])
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in err) == (0, False)
    (inbox,) = stratum("inbox", "greeter", "--json").stdout.splitlines()
    assert json.loads(inbox)["state"] == "handled"
