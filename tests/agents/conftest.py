"""What the tests of durable runs share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from stratum_agents.journal import Journal
from stratum_bus.bus import Bus, connect
from stratum_bus.consume import Delivery
from stratum_bus.event import Event
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


async def stored(bus: Bus, to: str, event: Event[Any]) -> Delivery:
    """Publish an event; what a consumer would hand out first of it."""
    ack = await bus.publish(to, event)
    message = await bus.get(ack.stream, ack.sequence)
    return Delivery(message, await bus.event(message), 1)


def kinds(journal: Journal) -> list[str]:
    return [recorded.kind for recorded in journal.entries]


async def ids(bus: Bus, *filters: str) -> list[str]:
    """The ids of the events under subjects, each time that one stands in the log."""
    async with bus.read(filters=filters) as reader:
        return [message.event().id async for message in reader]


def text(event: Event[Any]) -> str:
    """The data of an event as it was read, as JSON."""
    return bytes(event.data).decode()


def addressed(event: Event[Any], run: str) -> Event[Any]:
    """An event for one run."""
    return replace(event, torun=run)
