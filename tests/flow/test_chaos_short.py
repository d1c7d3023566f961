"""A short round of chaos; `make chaos` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parents[1] / "chaos" / "chaos.py"
FAULTS = "kill_agent,poison,loop,kill_health,kill_server,kill_supervisor"
PATIENT_SECONDS = "3"
"""Of silence before somebody is called dead: other tests may have the processors."""


@pytest.mark.timeout(120)
def test_everything_is_hurt_once_and_heals_by_itself() -> None:
    command = [sys.executable, str(CHAOS), "--seed", "5", "--rounds", "1", "--faults", FAULTS]
    command += ["--silence", PATIENT_SECONDS, "--warm", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.stdout, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"], done.stderr
    assert done.returncode == 0
    assert set(said["faults"]) == set(FAULTS.split(","))
