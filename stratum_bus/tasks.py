"""Task groups whose failures arrive as they are, and cancellations that are nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group that raises its first failure itself and not a group around it.

    For groups whose tasks are a detail of one call, so that `except WrongSequence` works.
    """
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        first = group.exceptions[0]
        raise first from first.__cause__  # the group around it is no cause


@contextmanager
def own_cancellation() -> Iterator[None]:
    """Around other people's code: let only a cancellation of this very task through.

    Awaiting a task or future that somebody cancelled raises CancelledError too, and would end the
    task that handles the message without a word; it comes out as RuntimeError.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise RuntimeError("something that was awaited had been cancelled") from error
