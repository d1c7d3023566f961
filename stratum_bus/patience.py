"""Trying again as long as a connection's patience lasts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import anyio

from stratum_bus.errors import ConnectionLost, NoAnswer, NoStream, Refused
from stratum_bus.jetstream import REQUEST_SECONDS, Connection

RETRY_SECONDS = 0.1
RECOVERY_SECONDS = 10.0
"""How long a server that came back may take to have its streams."""

STOPPING_SECONDS = 1.0
"""How long one that stops may have closed its streams and not yet its connections."""

T = TypeVar("T")


async def patiently(
    connection: Connection, attempt: Callable[[], Awaitable[T]], *, passing: Collection[int] = ()
) -> T:
    """Try until the outcome is known or the connection's patience is over.

    What is tried must bear being done twice. A time-out gets one more try in any case; refusals
    with the codes `passing` go on for some seconds beyond the patience. A server that has just come
    back may not have its streams yet, and one that stops not any more. Raises what the last attempt
    raised.
    """
    give_up = anyio.current_time() + connection.patience_seconds
    stopped = anyio.current_time() + STOPPING_SECONDS
    unanswered = 0
    while True:
        try:
            return await attempt()
        except (ConnectionLost, NoAnswer) as error:
            unanswered += isinstance(error, NoAnswer)
            left = give_up - anyio.current_time()
            if left <= 0 and (unanswered != 1 or isinstance(error, ConnectionLost)):
                raise
            await connection.wait_connected(max(left, 0.0))
        except NoStream:
            recovered = (connection.back_since or 0.0) + RECOVERY_SECONDS
            if anyio.current_time() >= min(give_up, max(stopped, recovered)):
                raise
        except Refused as error:
            if error.code not in passing or anyio.current_time() > give_up + REQUEST_SECONDS:
                raise
        await anyio.sleep(RETRY_SECONDS)
