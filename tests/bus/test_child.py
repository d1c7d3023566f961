"""A child ends with its parent, however either of them ends, and so does what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stratum_bus.child import Child
from stratum_bus.data_dir import is_alive
from stratum_bus.testing import eventually

PARENT = """
import os, signal, sys, time
from stratum_bus.child import Child

child = Child(
    ["/bin/sh", "-c", sys.argv[1]], with_parent=signal.SIGKILL, and_its_own=sys.argv[2] == "1"
)
print(child.pid, flush=True)
time.sleep(1000)
"""
SPAWNS = "sleep 1000 & echo $! > {file}; {then}"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal is Linux's alone")


def parent_of(script: str, *, and_its_own: bool = False) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, script, str(int(and_its_own))],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def number_in(file: Path) -> int:
    return int(file.read_text() or 0) if file.exists() else 0


def has_ended(pid: int) -> bool:
    """Gone, or waiting to be reaped by whoever is its parent now."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return not is_alive(pid)


@linux
async def test_a_stopped_child_ends_when_its_parent_is_killed() -> None:
    parent, child = parent_of("exec sleep 1000")
    cmdline = Path(f"/proc/{child}/cmdline")
    await eventually(lambda: cmdline.read_bytes().startswith(b"sleep"))
    os.kill(child, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    await eventually(lambda: has_ended(child))


async def test_what_a_child_started_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    parent, child = parent_of(SPAWNS.format(file=file, then="wait"), and_its_own=True)
    pid = await eventually(lambda: number_in(file))
    parent.kill()
    parent.communicate()
    await eventually(lambda: has_ended(child) and has_ended(pid))


async def test_what_a_child_started_ends_with_the_child(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    child = Child(["/bin/sh", "-c", SPAWNS.format(file=file, then="exit 3")])
    assert await child.wait() == 3
    pid = number_in(file)
    await eventually(lambda: has_ended(pid))
    child.kill()


async def test_stopping_kills_what_does_not_stop_and_what_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = "trap '' TERM; " + SPAWNS.format(file=file, then="while :; do sleep 1; done")
    child = Child(["/bin/sh", "-c", script])
    pid = await eventually(lambda: number_in(file))
    began = time.monotonic()
    child.stop(0.2)
    assert child.exit_code == -signal.SIGKILL
    assert 0.2 <= time.monotonic() - began < 5
    await eventually(lambda: has_ended(pid))


async def test_an_end_is_seen_at_once() -> None:
    child = Child(["/bin/sh", "-c", "exec sleep 1000"])
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    child.kill()


async def test_a_child_is_told_things_on_its_stdin() -> None:
    child = Child(["/bin/sh", "-c", "read -r line; exit $line"], told=True)
    assert child.tell(b"7\n")
    assert await child.wait() == 7
    assert not child.tell(b"8\n")
    child.kill()


@linux
async def test_a_command_that_cannot_be_run_is_a_mistake_of_the_settings(
    capfd: pytest.CaptureFixture[str],
) -> None:
    child = Child(["/no/such/program"])
    assert await child.wait() == os.EX_CONFIG
    assert "/no/such/program cannot be run: No such file" in capfd.readouterr().err
    child.kill()
