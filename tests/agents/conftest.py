"""A log that forgets the ids of what it stored almost at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from stratum_bus.bus import Bus, connect
from stratum_bus.server import Server
from stratum_bus.testing import fresh

DEDUPE_SECONDS = 0.1
"""The shortest dedupe window that the server takes."""

ForgetfulBus = Callable[[], AbstractAsyncContextManager[Bus]]


async def forget_ids_at_once(bus: Bus) -> None:
    """Nothing is to hang on the server's knowing an id again."""
    info = await bus.connection.api("STREAM.INFO.LOG")
    config = {**info["config"], "duplicate_window": int(DEDUPE_SECONDS * 1e9)}
    await bus.connection.api("STREAM.UPDATE.LOG", config)


@pytest.fixture
def forgetful_bus(nats_server: Server) -> ForgetfulBus:
    """Clean streams each time it is entered, without a dedupe window to speak of."""

    @asynccontextmanager
    async def clean() -> AsyncIterator[Bus]:
        await fresh(nats_server.url)
        async with connect(nats_server.url, name="test") as bus:
            await forget_ids_at_once(bus)
            yield bus

    return clean
