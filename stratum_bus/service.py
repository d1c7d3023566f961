"""A long-running process: signals, the parent's death, and a stop that everybody sees."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable

import anyio

from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.service")

PARENT_CHECK_SECONDS = 0.5

Main = Callable[[anyio.Event], Awaitable[None]]


async def run(main: Main, *, with_parent: bool = False) -> None:
    """Run `main(stop)` and set `stop` at SIGTERM or SIGINT; a second signal cancels it.

    `with_parent` also stops it when the process that started this one is gone.
    """
    stop = anyio.Event()
    async with task_group() as tasks:
        tasks.start_soon(_on_signals, stop, tasks.cancel_scope)
        if with_parent:
            tasks.start_soon(_on_orphaned, stop, os.getppid())
        await main(stop)
        tasks.cancel_scope.cancel()


def log_to_stderr(name: str, level: int = logging.INFO) -> None:
    """One line a fact on stderr, with the time and the part that says it."""
    logging.basicConfig(
        stream=sys.stderr, level=level, format=f"%(asctime)s {name} %(message)s",
        datefmt="%H:%M:%S", force=True,
    )  # fmt: skip
    logging.getLogger("nats").setLevel(logging.CRITICAL)


async def _on_signals(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                scope.cancel()
            stop.set()


async def _on_orphaned(stop: anyio.Event, parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110 - nothing tells of it but asking
        await anyio.sleep(PARENT_CHECK_SECONDS)
    log.warning("the process that started this one is gone: stopping")
    stop.set()
