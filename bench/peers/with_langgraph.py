"""The same runs of steps with LangGraph on SQLite; run by its own interpreter, see `Peer`.

A run is a thread of a graph whose one node is done again and again; `durability="sync"` has each
step stored before the next one begins.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import uuid
from time import perf_counter
from typing import Any, TypedDict

from langgraph.checkpoint.sqlite.aio import (  # type: ignore[import-not-found]
    AsyncSqliteSaver,
)
from langgraph.graph import END, START, StateGraph  # type: ignore[import-not-found]

RESULT = {"text": "x" * 200, "n": 17, "tags": ["a", "b"]}


class State(TypedDict):
    left: int
    result: dict[str, Any]


async def step(state: State) -> State:
    return {"left": state["left"] - 1, "result": RESULT}


def follow(state: State) -> str:
    return str("step" if state["left"] else END)


async def one(graph: Any, count: int) -> list[float]:
    config = {"configurable": {"thread_id": uuid.uuid4().hex}, "recursion_limit": count + 5}
    samples, start = [], perf_counter()
    async for _ in graph.astream({"left": count, "result": {}}, config, durability="sync"):
        samples.append(perf_counter() - start)
        start = perf_counter()
    return samples


async def measure(graph: Any, runs: int, count: int) -> dict[str, Any]:
    start = perf_counter()
    samples = await asyncio.gather(*(one(graph, count) for _ in range(runs)))
    return {"seconds": perf_counter() - start, "steps": samples[0] if runs == 1 else []}


async def main(path: str) -> None:
    builder = StateGraph(State)
    builder.add_node("step", step)
    builder.add_edge(START, "step")
    builder.add_conditional_edges("step", follow)
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        graph = builder.compile(checkpointer=saver)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            runs, count = map(int, line.split())
            print(json.dumps(await measure(graph, runs, count)), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="stratum-bench-") as folder:
        asyncio.run(main(f"{folder}/langgraph.sqlite"))
