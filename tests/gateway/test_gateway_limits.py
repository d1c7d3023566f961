"""What a gateway does not wait for, hold or open; asked without a network between."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio
import pytest

from stratum_bus.bus import Bus
from stratum_bus.event import Event
from stratum_bus.gateway import GatewayConfig, TokenConfig
from stratum_bus.testing import eventually
from stratum_cli.gateway import access, app, stream
from stratum_cli.gateway.app import Gateway
from tests.gateway.process import secret

TOKEN = TokenConfig(secret=secret("shop"), may=("topic.>",), reads=("topic.>",))
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Asked:
    """One request, and what was answered to it."""

    def __init__(self, method: str, path: str, **headers: str) -> None:
        given = {"authorization": f"Bearer {TOKEN.secret}", **headers}
        self.scope: Message = {
            "type": "http", "method": method, "path": path, "query_string": b"from=start",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        self.sent: list[Message] = []

    async def of(self, gateway: Gateway, receive: Receive, send: Send | None = None) -> None:
        await gateway.app()(self.scope, receive, send or self._keep)

    async def _keep(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def detail(self) -> str:
        return str(json.loads(self.sent[1]["body"])["detail"])


def made(bus: Bus, **settings: Any) -> Gateway:
    gateway = Gateway(bus, GatewayConfig(tokens={"shop": TOKEN}, **settings), anyio.Event())
    gateway.seen.ready = True
    return gateway


def body(content: bytes, *, more: bool = False) -> Receive:
    """Comes once; then nothing does."""
    left = [content]

    async def receive() -> Message:
        if not left:
            await anyio.sleep_forever()
        return {"type": "http.request", "body": left.pop(), "more_body": more}

    return receive


def post() -> Asked:
    return Asked("POST", "/topic/q", **{"content-type": "application/json"})


async def test_a_body_that_does_not_come_is_not_waited_for(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.05)
    asked = post()
    await asked.of(made(bus), body(b"[1", more=True))
    assert (asked.status, "did not come" in asked.detail) == (408, True)
    assert (b"connection", b"close") in asked.sent[0]["headers"]


async def test_bodies_take_no_more_memory_than_they_may(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "HELD_BYTES", 25_000)
    gateway = made(bus, max_bytes=10_000)
    async with anyio.create_task_group() as tasks:
        first = post()
        tasks.start_soon(first.of, gateway, body(b"1", more=True))
        await anyio.wait_all_tasks_blocked()
        second = post()
        await second.of(gateway, body(b"2"))
        assert second.status == 503
        assert (b"retry-after", b"1") in second.sent[0]["headers"]
        tasks.cancel_scope.cancel()
    third = post()
    await third.of(gateway, body(b"3"))
    assert third.status == 202


async def test_nothing_is_taken_before_the_ids_are_known(bus: Bus) -> None:
    gateway = made(bus)
    gateway.seen.ready = False
    asked = post()
    await asked.of(gateway, body(b"1"))
    assert (asked.status, "it reads the log" in asked.detail) == (503, True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gateway.seen.follow, bus)
        await eventually(lambda: gateway.seen.ready, within_seconds=20)
        again = post()
        await again.of(gateway, body(b"1"))
        assert again.status == 202
        tasks.cancel_scope.cancel()


async def test_no_more_streams_are_open_than_may_be(bus: Bus) -> None:
    gateway = made(bus, max_streams=1)
    async with anyio.create_task_group() as tasks:
        first, second = Asked("GET", "/topic"), Asked("GET", "/topic")
        tasks.start_soon(first.of, gateway, body(b""))
        await eventually(lambda: first.sent, within_seconds=20)
        await second.of(gateway, body(b""))
        assert (second.status, "no more fit" in second.detail) == (503, True)
        tasks.cancel_scope.cancel()


async def test_who_takes_nothing_is_sent_away(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STALL_SECONDS", 0.05)
    event: Event[int] = Event(id="1", source="/x", type="q", data=1)
    await bus.publish("topic.shop.q", event)
    asked = Asked("GET", "/topic")

    async def send(message: Message) -> None:
        asked.sent.append(message)
        if b"id: 1" in message.get("body", b""):
            await anyio.sleep_forever()

    with anyio.fail_after(30):
        await asked.of(made(bus), body(b""), send)
    assert asked.sent[-1]["body"].startswith(b"id: 1")


async def test_a_stream_that_has_nothing_to_say_says_so(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.05)
    asked = Asked("GET", "/topic")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(asked.of, made(bus), body(b""))
        await eventually(lambda: len(asked.sent) > 3, within_seconds=20)
        tasks.cancel_scope.cancel()
    assert asked.sent[2]["body"] == b": still here\n\n"
