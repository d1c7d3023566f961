"""Task groups whose failures arrive as they are, and cancellations that are nobody's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType

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


class own_cancellation:
    """Around other people's code: let only a cancellation of this very task through.

    Awaiting a task or future that somebody cancelled raises CancelledError too, and would end the
    task that handles the message without a word; it comes out as RuntimeError.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                raise RuntimeError("something that was awaited had been cancelled") from error
