"""Other durable engines, each in a process of its own, on an interpreter that has them installed.

python -m venv peers && peers/bin/pip install dbos langgraph langgraph-checkpoint-sqlite
STRATUM_BENCH_PEERS=peers make bench ONLY=steps
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from bench.harness import Turn, say

VARIABLE = "STRATUM_BENCH_PEERS"
PEERS = {"DBOS, SQLite": "dbos", "LangGraph, SQLite": "langgraph"}
"""What a peer is called, and the module that it needs and that `with_<module>.py` uses."""

ANSWER_SECONDS = 120
_LINE_MAX = 1 << 20


class Peer:
    """One engine, ready to do runs of steps. Its database syncs each commit, as SQLite does."""

    def __init__(self, name: str, process: Process) -> None:
        assert process.stdin is not None and process.stdout is not None
        self.name = name
        self._stdin = process.stdin
        self._lines = BufferedByteReceiveStream(process.stdout)

    async def one(self, steps: int) -> Turn:
        """How long each step of a single run took, in seconds."""
        _, samples = await self._measure(1, steps)
        return samples

    async def many(self, runs: int, steps: int) -> float:
        """Steps a second of so many runs at once."""
        seconds, _ = await self._measure(runs, steps)
        return runs * steps / seconds

    async def _measure(self, runs: int, steps: int) -> tuple[float, Turn]:
        await self._stdin.send(f"{runs} {steps}\n".encode())
        with anyio.fail_after(ANSWER_SECONDS):
            answer = json.loads(await self._lines.receive_until(b"\n", _LINE_MAX))
        return answer["seconds"], answer["steps"]


@asynccontextmanager
async def peers() -> AsyncIterator[list[Peer]]:
    """The engines that can be imported, warm; what is missing is said on stderr."""
    async with AsyncExitStack() as stack:
        found = []
        if interpreter := await _interpreter():
            for name, module in PEERS.items():
                if await _has(interpreter, module):
                    found.append(await stack.enter_async_context(_running(name, interpreter)))
                else:
                    say(f"{name}: skipped, {interpreter} cannot import {module}")
        yield found


async def _interpreter() -> str:
    given = os.environ.get(VARIABLE, "")
    if not given:
        say(f"peers are skipped: {VARIABLE} names no virtual environment that has them")
        return ""
    path = anyio.Path(given)
    inside = path / "bin" / "python"
    if await inside.exists():
        return str(inside)
    if await path.is_file():
        return str(path)
    say(f"peers are skipped: {VARIABLE}={given} is no virtual environment and no interpreter")
    return ""


async def _has(interpreter: str, module: str) -> bool:
    done = await anyio.run_process([interpreter, "-c", f"import {module}"], check=False)
    return done.returncode == 0


@asynccontextmanager
async def _running(name: str, interpreter: str) -> AsyncIterator[Peer]:
    script = str(Path(__file__).with_name(f"with_{PEERS[name]}.py"))
    # -P: the script's folder is not searched, so nothing in it hides a package
    command = [interpreter, "-P", script]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as process:
        peer = Peer(name, process)
        try:
            await peer.many(1, 5)
            yield peer
        finally:
            with anyio.CancelScope(shield=True):
                await peer._stdin.aclose()
                with anyio.move_on_after(5):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
