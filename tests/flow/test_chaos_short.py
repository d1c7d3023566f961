"""A short round of chaos; `make chaos` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.installation import NODE

CHAOS = Path(__file__).parents[1] / "chaos" / "chaos.py"
FAULTS = "kill_agent,poison,loop,clock_jump,kill_projector,kill_health,kill_server,kill_supervisor"
PACE = "4"
"""Other tests may have the processors: so many times longer than on a machine at rest it may take
until something is called wrong."""

GIVE_UP_SECONDS = 290


@pytest.mark.timeout(GIVE_UP_SECONDS + 10)
def test_everything_is_hurt_once_and_heals_by_itself() -> None:
    command = [sys.executable, str(CHAOS), "--seed", "5", "--rounds", "1", "--faults", FAULTS]
    command += ["--duration", "1000", "--pace", PACE, "--warm", "1", "--rate", "5"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=GIVE_UP_SECONDS, check=False
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["ok"], done.stderr
    assert done.returncode == 0
    assert set(said["faults"]) == set(FAULTS.split(","))
    assert NODE in said["agents"] or f"{NODE} is left out: " in done.stderr
