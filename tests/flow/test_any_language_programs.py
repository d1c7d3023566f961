"""The programs and the lines of a shell on the page do what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus.bus import Bus
from stratum_bus.event import agent_source, new
from stratum_bus.subject import inbox
from stratum_bus.testing import eventually
from tests.flow.nodejs import INSTALL_SECONDS, NODE_AGENT
from tests.flow.program import program

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")

NATS = r"""#!/usr/bin/env bash
# A stand-in for the NATS command line: nats pub|request SUBJECT PAYLOAD [-H NAME:VALUE]
verb=$1 subject=$2 payload=$3 head=$'NATS/1.0\r\n'
[[ $4 == -H ]] && head+="${5%%:*}: ${5#*:}"$'\r\n'
head+=$'\r\n' address=${NATS_URL#nats://} reply=
[[ $verb == request ]] && reply=_INBOX.sh
exec 3<>"/dev/tcp/${address%:*}/${address#*:}"
printf 'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.sh 1\r\n' >&3
printf 'HPUB %s %s %d %d\r\n%s%s\r\nPING\r\n' "$subject" "$reply" \
  ${#head} $((${#head} + ${#payload})) "$head" "$payload" >&3
while read -r line <&3; do
  [[ $line == -ERR* || $line == NATS/1.0\ [45]* ]] && exit 1
  [[ $verb == pub && $line == PONG* ]] && exit
  [[ $line == {* && $line != *server_id* ]] && echo "$line" && exit
done
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.timeout(INSTALL_SECONDS + 60)
async def test_the_agent_of_ten_minutes_answers(bus: Bus, in_node: Callable[..., Path]) -> None:
    folder = in_node(NODE_AGENT / "package.json")
    agent, ask = blocks("js")
    assert len(agent.splitlines()) <= 42
    (folder / "agent.mjs").write_text(agent)
    (folder / "ask.mjs").write_text(ask)
    environ = {**os.environ, "STRATUM_NATS_URL": bus.connection.url}
    enveloped = new("question", {"q": 1}, source=agent_source("me"))
    await bus.publish(inbox("echo", "me", "question"), enveloped)  # before the agent exists
    await bus.connection.request("inbox.echo.me.question", b"{not JSON")

    async def answers() -> list[Any]:
        async with bus.read(filters=["inbox.me.echo.answer"]) as reader:
            return [json.loads(message.payload) async for message in reader]

    async def both() -> bool:
        return len(await answers()) == 2

    command, url = ["node", "agent.mjs"], bus.connection.url
    async with program(command, folder=folder, STRATUM_NATS_URL=url) as process:
        await eventually(both, within_seconds=30)
        asked = await anyio.run_process(["node", "ask.mjs"], cwd=folder, env=environ, stderr=None)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
    first, second, third = await answers()
    assert (first["id"], first["data"]) == (f"echo-{enveloped.id}", {"heard": {"q": 1}})
    assert (second["causationid"], "SyntaxError" in second["data"]["heard"]) == ("LOG-2", True)
    assert (third["id"], third["causationid"]) == ("echo-LOG-5", "LOG-5")
    assert third["data"] == {"heard": {"q": "is anybody there?"}}
    assert json.loads(asked.stdout) == third


def shell(tmp_path: Path, url: str) -> Callable[[str], Any]:
    """Runs a line of a shell in which `nats` is there."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not there: install it")
    if shutil.which("nats") is None:
        (tmp_path / "nats").write_text(NATS)
        (tmp_path / "nats").chmod(0o755)
    environ = {**os.environ, "NATS_URL": url, "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    async def run(line: str) -> str:
        done = await anyio.run_process(["bash", "-ec", line], env=environ, stderr=None)
        return done.stdout.decode()

    return run


async def test_the_lines_for_a_shell_do_what_they_say(bus: Bus, tmp_path: Path) -> None:
    run = shell(tmp_path, bus.connection.url)
    (sh,) = [block for block in blocks("sh") if "nats" in block and "npm" not in block]
    lines = sh.splitlines()
    assert len(lines) == 4
    assert [await run(line) for line in (lines[0], lines[2])] == ["", ""]
    await eventually(partial(bus.last, "memory.billing.note"))
    assert '"stream":"LOG"' in await run(lines[1])
    assert "paid late" in await run(lines[3])
    async with bus.read() as reader:
        subjects = [(message.subject, message.id) async for message in reader]
    assert sorted(subjects) == [
        ("inbox.research.billing.question", ""),
        ("inbox.research.billing.question", "shell-1"),
        ("memory.billing.note", ""),
    ]


async def test_bash_alone_publishes(bus: Bus, tmp_path: Path) -> None:
    run = shell(tmp_path, bus.connection.url)
    (function,) = blocks("bash")
    host, _, port = bus.connection.url.removeprefix("nats://").partition(":")
    await run(function.replace("127.0.0.1/4222", f"{host}/{port}"))

    async def stored() -> bool:
        return await bus.last("inbox.research.billing.question") is not None

    await eventually(stored)
