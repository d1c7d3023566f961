"""`stratum up` and `down`: everything on one machine, one at a time, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stratum_bus.server import free_port
from stratum_cli.main import main

AGENT = """
from typing import Any

from stratum_agents.agent import Agent


def create() -> Agent:
    agent = Agent("greeter")

    @agent.on("hello")
    async def hello(run: Any, event: Any) -> None:
        await run.send("guest", "welcome", event.data)

    return agent
"""
SECONDS = 30.0


class Project:
    """A folder with a stratum.toml, and the command line in it."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.folder = folder
        self.capture = capture
        self.port, self.http_port = free_port(), free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "up_greeter.py").write_text(AGENT)
        (folder / "stratum.toml").write_text(
            f"[server]\nport = {self.port}\n[supervisor]\nhttp_port = {self.http_port}\n"
            '[agents.greeter]\ncreate = "up_greeter:create"\n'
            '[agents.other]\ncommand = ["sleep", "1000"]\n'
        )

    def stratum(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run a command line; in this process, since a test runs many."""
        self.capture.readouterr()
        exit_code = main(arguments)
        out, err = self.capture.readouterr()
        assert code is None or exit_code == code, err
        return subprocess.CompletedProcess(arguments, exit_code, out.decode(), err.decode())

    def up(self) -> subprocess.Popen[bytes]:
        """In the foreground; its output is in `log`."""
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "stratum_cli", "up"],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.processes.append(process)
        until(lambda: "\nready" in self.log() or process.poll() is not None)
        assert process.poll() is None, self.log()
        return process

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def children(self) -> dict[str, int]:
        """The last process of each name that was started."""
        found = re.findall(r"^(\w+): started.*\(pid (\d+)\)$", self.log(), re.MULTILINE)
        return {name: int(pid) for name, pid in found}

    def alive(self) -> list[str]:
        """The command lines of all processes that work in this folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    here = (entry / "cwd").readlink() == self.folder
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if here and command:
                    found.append(command)
        return found

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


def until(check: Callable[[], Any], within_seconds: float = SECONDS) -> Any:
    give_up = time.monotonic() + within_seconds
    while not (found := check()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


@pytest.fixture
def own(project: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Iterator[Project]:
    """Whatever a test leaves running is ended."""
    made = Project(project.resolve(), capfdbinary)
    yield made
    made.stratum("down", code=None)
    for process in made.processes:
        process.kill()
        process.wait()


linux = pytest.mark.skipif(sys.platform != "linux", reason="processes are seen at /proc")


@linux
def test_up_runs_everything_until_it_is_told_to_stop(own: Project) -> None:
    process = own.up()
    assert set(own.children()) >= {"projector", "greeter", "other"}
    until(lambda: "health" in own.children())
    own.stratum("send", "greeter", "hello", '"you"')
    until(lambda: own.stratum("outbox", "greeter", "--json").stdout)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert own.alive() == []
    stopped = re.findall(r"^(\w+): stopped$", own.log(), re.MULTILINE)
    assert set(stopped[:2]) == {"greeter", "other"}  # agents first
    assert set(stopped[2:]) == {"projector", "health"}
    assert "Traceback" not in own.log()


@linux
def test_a_second_ctrl_c_does_not_wait_for_who_does_not_stop(own: Project) -> None:
    process = own.up()
    os.kill(own.children()["greeter"], signal.SIGSTOP)
    process.send_signal(signal.SIGINT)
    until(lambda: "other: stopped" in own.log())
    process.send_signal(signal.SIGINT)
    process.wait(SECONDS)
    until(lambda: own.alive() == [])
    assert "greeter: stopped" not in own.log()  # its grace was not over
    assert "Traceback" not in own.log()


@linux
def test_up_detached_returns_when_all_is_ready_and_down_ends_it(own: Project) -> None:
    up = [sys.executable, "-m", "stratum_cli", "up", "--detach"]
    done = subprocess.run(up, cwd=own.folder, capture_output=True, check=True, timeout=SECONDS)
    assert b"ready at nats://127.0.0.1" in done.stderr
    own.stratum("send", "greeter", "hello", '"you"')
    until(lambda: own.stratum("outbox", "greeter", "--json").stdout)
    assert "already runs" in own.stratum("up", "--detach", code=1).stderr
    assert own.stratum("down").stderr.strip() == "stopped"
    until(lambda: own.alive() == [])
    assert "nothing runs on" in own.stratum("down").stderr


def test_a_second_up_on_the_folder_is_refused_and_disturbs_nothing(own: Project) -> None:
    first = own.up()
    second = own.stratum("up", code=1)
    assert f"already runs on {own.folder}/.stratum (process {first.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert first.poll() is None
    assert own.get("/healthz")[0] == 200


def test_a_folder_that_cannot_be_used_is_said_in_one_line(own: Project) -> None:
    (own.folder / ".stratum").write_text("a file")
    for arguments in (("up",), ("up", "--detach")):
        done = own.stratum(*arguments, code=1)
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


@linux
def test_kill_9_of_up_leaves_nothing_behind_and_the_next_one_starts_anew(own: Project) -> None:
    first = own.up()
    before = own.children()
    os.kill(before["greeter"], signal.SIGSTOP)  # also what cannot react ends
    first.kill()
    first.wait()
    killed = time.monotonic()
    until(lambda: not own.alive(), within_seconds=10)
    own.up()
    assert time.monotonic() - killed < 12
    after = own.children()
    assert not set(before.values()) & set(after.values())
    until(lambda: sum("stratum_agents greeter" in command for command in own.alive()) == 1)
    assert sum("sleep 1000" in command for command in own.alive()) == 1
    own.stratum("send", "greeter", "hello", '"you"')
    until(lambda: own.stratum("outbox", "greeter", "--json").stdout)


def test_agents_are_commanded_from_another_terminal(own: Project) -> None:
    own.up()
    before = own.children()["greeter"]
    would = own.stratum("agent", "restart", "greeter", "--dry-run")
    assert would.stdout.strip() == "greeter: restart would be given"
    done = json.loads(own.stratum("agent", "restart", "greeter", "--json").stdout)
    assert (done["done"], done["detail"]) == (True, "1 instance started again")
    assert own.children()["greeter"] == done["pid"] != before
    assert "3 instances are to run" in own.stratum("agent", "scale", "other", "3").stdout
    assert "3 ended" in own.stratum("agent", "stop", "other", "--reason", "lunch").stdout
    assert "its messages wait" in own.stratum("agent", "pause", "greeter").stdout
    assert "handed out" in own.stratum("agent", "resume", "greeter").stdout
    refused = own.stratum("agent", "restart", "nobody", code=3)
    assert "there is no agent nobody" in refused.stderr


def test_a_command_that_nobody_executes_says_so(own: Project) -> None:
    process = own.up()
    url = f"nats://127.0.0.1:{own.port}"
    os.kill(process.pid, signal.SIGSTOP)
    try:
        waiting = own.stratum(
            "--nats-url", url, "agent", "stop", "greeter", "--timeout", "0.3", code=6
        )
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert "no supervisor executed stop for greeter within 0.3 s" in waiting.stderr
    until(lambda: "greeter: stopped" in own.log())  # it stood in the log


def test_probes_tell_what_runs(own: Project) -> None:
    own.up()
    assert own.get("/healthz") == (200, "ok\n")
    until(lambda: own.get("/readyz")[0] == 200)
    parts = json.loads(own.get("/readyz")[1])["parts"]
    assert {name: part["running"] for name, part in parts.items()} == dict.fromkeys(
        ("projector", "health", "greeter", "other"), 1
    )
    os.kill(own.children()["projector"], signal.SIGSTOP)
    until(lambda: own.get("/readyz")[0] == 503)
    os.kill(own.children()["projector"], signal.SIGCONT)
    os.kill(own.children()["greeter"], signal.SIGKILL)
    sample = 'stratum_supervisor_restarts_total{agent="greeter",cause="ended"} 1.0'
    until(lambda: sample in own.get("/metrics")[1])
    assert 'stratum_supervisor_beats_total{agent="greeter"}' in own.get("/metrics")[1]
    assert own.get("/nothing")[0] == 404


def test_systemd_is_told_that_all_is_ready_that_it_lives_and_that_it_stops(
    own: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = str(own.folder / "notify")
        systemd.bind(address)
        systemd.settimeout(SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        process = own.up()
        heard: set[str] = set()
        while not {"READY=1", "WATCHDOG=1"} <= heard:
            heard.add(systemd.recv(100).decode())
        process.terminate()
        while "STOPPING=1" not in heard:
            heard.add(systemd.recv(100).decode())
        assert process.wait(SECONDS) == 0
