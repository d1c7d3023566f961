"""The same runs of steps with DBOS on SQLite; run by its own interpreter, see `Peer`.

Reads lines `RUNS STEPS` and answers each with `{"seconds": [...], "steps": [...]}`: how long it
took in all, and each step of a single run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from time import perf_counter
from typing import Any

from dbos import DBOS  # type: ignore[import-not-found]

RESULT = {"text": "x" * 200, "n": 17, "tags": ["a", "b"]}


async def _result() -> dict[str, Any]:
    return RESULT


step = DBOS.step()(_result)


async def _steps(count: int) -> list[float]:
    samples = []
    for _ in range(count):
        start = perf_counter()
        await step()
        samples.append(perf_counter() - start)
    return samples


steps = DBOS.workflow()(_steps)


async def measure(runs: int, count: int) -> dict[str, Any]:
    start = perf_counter()
    handles = [await DBOS.start_workflow_async(steps, count) for _ in range(runs)]
    samples = [await handle.get_result() for handle in handles]
    return {"seconds": perf_counter() - start, "steps": samples[0] if runs == 1 else []}


async def main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        runs, count = map(int, line.split())
        print(json.dumps(await measure(runs, count)), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        url = f"sqlite:///{folder}/dbos.sqlite"
        DBOS(config={"name": "bench", "system_database_url": url, "log_level": "ERROR"})
        DBOS.launch()
        asyncio.run(main())
        DBOS.destroy()
