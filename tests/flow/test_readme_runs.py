"""The README's crash and resume, command by command, with `stratum up` and a real kill -9."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADING = "## A run that survives kill -9"
STEP_SECONDS = 0.6
"""What the example's two seconds are here; its sleep is as short as a timer can be."""


def section() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.partition(HEADING)[2].partition("\n## ")[0]


LINES = [
    line.partition("  #")[0].removeprefix("$ ").strip()
    for line in re.findall(r"^\$ .*$", section(), re.MULTILINE)
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The example, hurried, in a folder of its own; what was started in it is stopped."""
    copy = tmp_path / "crash"
    shutil.copytree(ROOT / "examples" / "crash", copy, ignore=shutil.ignore_patterns(".stratum"))
    code = (copy / "travel.py").read_text()
    code = code.replace("STEP_SECONDS = 2.0", f"STEP_SECONDS = {STEP_SECONDS}")
    (copy / "travel.py").write_text(code.replace("run.sleep(seconds=3)", "run.sleep(seconds=1.1)"))
    yield copy
    shell("stratum down", copy)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if "STRATUM" not in key}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=50, check=False,
    )  # fmt: skip


def kill_agent(folder: Path) -> None:
    """As the README's `pkill`, but of this folder's agent only."""
    log = (folder / ".stratum" / "up.log").read_text()
    [pid] = re.findall(r"^travel: started \(pid (\d+)\)", log, re.MULTILINE)
    os.kill(int(pid), signal.SIGKILL)


def test_the_section_does_what_it_says(folder: Path) -> None:
    printed: dict[str, str] = {}
    for line in LINES:
        wait, _, kills = line.partition("; pkill ")
        if kills:
            assert (wait, kills) == ("sleep 3", "-9 -f 'stratum_agents travel'")
            shell(f"sleep {1.5 * STEP_SECONDS}", folder)
            kill_agent(folder)
            continue
        command = line.removeprefix("cd examples/crash && ")
        done = shell(command, folder)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        printed[command] = done.stdout
    assert len(section().strip().splitlines()) + 1 <= 18
    assert printed["stratum run tail last"].splitlines()[-1].split()[1] == "completed"
    shown = printed["stratum run show last"]
    assert "taken over" in shown
    assert len(re.findall(r"step book|step pay", shown)) == 3
    assert [line.split()[3:] for line in printed["cat .stratum/outside.log"].splitlines()] == [
        ["flight", "in", "Lisbon"], ["hotel", "in", "Lisbon"], ["receipt", "in", "Lisbon"],
    ]  # fmt: skip
    assert "agrees" in printed["stratum run replay last"]
