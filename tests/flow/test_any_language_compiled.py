"""The smallest participants in Go, Rust and Java, compiled and run where there is a toolchain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import anyio
import pytest

from stratum_bus.bus import Bus
from stratum_bus.event import agent_source, new
from stratum_bus.subject import inbox
from stratum_bus.testing import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPILE_SECONDS = 150
"""Go compiles its own library first, where that has never been done."""

OLDEST = {"go": (1, 21), "cargo": (1, 74), "java": (17, 0)}


def tool(name: str, *says_version: str) -> str:
    """A compiler that is there and new enough."""
    wanted = ".".join(map(str, OLDEST[name]))
    found = shutil.which(name)
    done = found and subprocess.run([found, *says_version], capture_output=True, check=False)
    if not found or not done or done.returncode:
        pytest.skip(f"{name} is not there: install {name} {wanted} or newer")
    version = re.search(rb"(\d+)\.(\d+)", done.stdout)
    assert version is not None
    if (int(version[1]), int(version[2])) < OLDEST[name]:
        pytest.skip(f"{name} {version[0].decode()} is too old: install {wanted} or newer")
    return found


async def takes_part(bus: Bus, name: str, command: list[str]) -> None:
    """It asks `research`, is answered into its inbox, and acknowledges that."""
    answer = new("answer", {"to": name}, source=agent_source("research"))
    await bus.publish(inbox(name, "research", "answer"), answer)
    environ = {**os.environ, "STRATUM_NATS_URL": bus.connection.url}
    with anyio.fail_after(COMPILE_SECONDS):
        done = await anyio.run_process(command, cwd=EXAMPLES / name, env=environ, stderr=None)
    stored, received = done.stdout.decode().strip().split("\n", 1)
    assert '"seq":2' in stored
    assert f'"to":"{name}"' in received
    question = await bus.event(await bus.get("LOG", 2))
    assert (question.id, question.source) == (f"{name}-1", f"/agents/{name}")
    assert (question.type, bytes(question.data)) == ("question", b'{"q": "%s"}' % name.encode())

    async def settled() -> bool:
        info = await bus.connection.api(f"CONSUMER.INFO.LOG.{name}")
        return bool(info["num_ack_pending"] == info["num_pending"] == 0)

    await eventually(settled)


@pytest.mark.timeout(COMPILE_SECONDS + 30)
async def test_the_smallest_participant_in_go(bus: Bus) -> None:
    await takes_part(bus, "go", [tool("go", "version"), "run", "participant.go"])


@pytest.mark.timeout(COMPILE_SECONDS + 30)
async def test_the_smallest_participant_in_rust(bus: Bus, tmp_path: Path) -> None:
    manifest = shutil.copytree(EXAMPLES / "rust", tmp_path / "rust") / "Cargo.toml"
    build = [tool("cargo", "--version"), "run", "--quiet", "--offline", "--manifest-path"]
    await takes_part(bus, "rust", [*build, str(manifest)])


@pytest.mark.timeout(COMPILE_SECONDS + 30)
async def test_the_smallest_participant_in_java(bus: Bus) -> None:
    await takes_part(bus, "java", [tool("java", "--version"), "Participant.java"])


@pytest.mark.parametrize("name", ["go", "rust", "java"])
def test_the_smallest_participants_need_nothing_but_their_language(name: str) -> None:
    (source,) = [path for path in (EXAMPLES / name).iterdir() if path.stem.lower() == "participant"]
    text = source.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    assert "stratum" not in "".join(re.findall(r"^(?:import|use) .*", text, re.MULTILINE))
    manifests = [*(EXAMPLES / name).glob("*.mod"), *(EXAMPLES / name).glob("*.toml")]
    assert not [m for m in manifests if re.search(r"require|dependencies", m.read_text())]
