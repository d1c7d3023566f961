"""`python -m bench [NAME…]`: run all measurements, or those named."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec

import anyio

from bench.harness import say

NAMES = (
    "publish", "consume", "steps", "reading", "projection", "query", "lake", "up",
    "gateway", "handover", "outages", "health",
)  # fmt: skip
"""What runs where nothing is named; each is a module here, with `run`."""

SUMMARIES = ("healing",)
"""What measures again, in less time, what others measure."""


def main(names: list[str]) -> int:
    there = (*NAMES, *SUMMARIES)
    if unknown := [name for name in names if name not in there]:
        say(f"there is no bench {unknown[0]!r}; there are {', '.join(there)}")
        return 2
    for name in names or NAMES:
        if find_spec(f"bench.{name}") is None:
            say(f"{name} is skipped: bench/{name}.py is not there")
            continue
        run: Callable[[], Awaitable[None]] = import_module(f"bench.{name}").run
        anyio.run(run)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
