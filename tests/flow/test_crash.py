"""kill -9 of server, agent and projector while 20,000 messages flow; `make soak` is the long one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("crash.py")
MESSAGES, KILLS, SEED = 20_000, 9, 1


@pytest.mark.timeout(180)
def test_what_was_acknowledged_is_stored_handled_and_projected_once_whatever_was_killed() -> None:
    command = [sys.executable, str(HARNESS), "--messages", str(MESSAGES)]
    command += ["--kills", str(KILLS), "--seed", str(SEED)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    found = json.loads(ended.stdout)
    assert found["kills"] == {"server": 3, "agent": 3, "projector": 3}
    assert found["acknowledged"] == found["in_log"] == found["in_messages"] == MESSAGES
    assert found["handled"] == MESSAGES
    assert (found["lost"], found["duplicates"]) == (0, 0)
