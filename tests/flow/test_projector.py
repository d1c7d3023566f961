"""kill -9 of the projector at random moments; `make soak-projector` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KILLS, SEED = 10, 1


@pytest.mark.timeout(180)
def test_a_projector_killed_at_random_moments_has_the_tables_of_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "tests.flow.projector"]
    command += ["--kills", str(KILLS), "--seed", str(SEED)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["ok"]
    assert found["kills"] == KILLS
    assert found["moved"] > 0
    assert found["events"] > 1_000
