"""Answering requests to the projector over NATS: one JSON value for each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import msgspec
from anyio.abc import TaskStatus

from stratum_bus.errors import BusError
from stratum_bus.jetstream import Connection, Reply
from stratum_bus.tasks import task_group


async def serve(
    connection: Connection,
    subject: str,
    answer: Callable[[bytes], Awaitable[object]],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Answer what is asked on a subject until cancelled, with `answer` of each payload.

    Several at once: what has to take turns sees to it itself. Of several projectors of a name one
    answers.
    """

    async def reply(request: Reply) -> None:
        body = msgspec.json.encode(await answer(request.payload))
        try:
            await connection.send(request.reply, body)
        except BusError:
            return  # nobody is left to tell

    async with task_group() as tasks:

        def receive(request: Reply) -> None:
            if request.reply:
                tasks.start_soon(reply, request)

        async with connection.subscribe(subject, receive, queue="projector"):
            task_status.started()
            await anyio.sleep_forever()
