"""A process whose clock is wrong works like the others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.clock.sitecustomize import OFFSET

CLOCK = Path(__file__).with_name("clock")

TWICE = """
import os, sys, time
from datetime import UTC, datetime

import anyio
from stratum_bus import connect
from stratum_bus.event import new
from stratum_bus.publish import Append
sys.path.insert(0, sys.argv[3])
from sitecustomize import OFFSET

with open(sys.argv[2], "r+b") as clocks:
    clocks.seek(os.getpid() * OFFSET.size)
    clocks.write(OFFSET.pack(float(sys.argv[4])))


async def main():
    async with connect(sys.argv[1]) as bus:
        both = [new("task", n, source="/tests", id=f"{sys.argv[4]}-{n}") for n in range(2)]
        appends = [Append("inbox.bob.alice.task", each) for each in both]
        first, again = await bus.commit(appends), await bus.commit(appends)
        assert [ack.sequence for ack in first] == [ack.sequence for ack in again]
        assert all(ack.duplicate for ack in again)


print(time.time(), time.time_ns() / 1e9, datetime.now(UTC).timestamp())
anyio.run(main)
"""


@pytest.mark.parametrize("offset", [-86_400, 86_400])
def test_what_was_stored_is_known_again_by_whoever_has_another_time(
    bus_url: str, tmp_path: Path, offset: int
) -> None:
    clocks = tmp_path / "clocks"
    with clocks.open("wb") as file:
        file.truncate((1 << 22) * OFFSET.size)
    path = os.pathsep.join(filter(None, (str(CLOCK), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path, "CHAOS_CLOCKS": str(clocks)}
    command = [sys.executable, "-c", TWICE, bus_url, str(clocks), str(CLOCK), str(offset)]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    now = clocks.stat().st_mtime
    assert all(abs(float(said) - now - offset) < 60 for said in done.stdout.split())
