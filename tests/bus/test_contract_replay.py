"""Events of versions 1 and 2, stored by the code of their time, come out as version 3 everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_agents.worker import work
from stratum_bus.bus import Bus
from stratum_bus.contract import record
from stratum_bus.errors import IncompatibleType, InvalidEvent, QueryError
from stratum_bus.event import Event, new, typed
from stratum_bus.message import Message
from stratum_bus.schema import TYPES, event_type, upcaster
from stratum_bus.tasks import task_group
from stratum_bus.testing import eventually
from stratum_projections import Projection, ask, open_read_only, run
from stratum_projections.newest import newest

NAMES = ("order.placed", "order.made")


class First(msgspec.Struct):
    amount: int
    authors: list[str] = []


class Second(msgspec.Struct):
    cents: int
    authors: list[str] = []


class Author(msgspec.Struct):
    name: str


class Order(msgspec.Struct):
    cents: int
    currency: str
    authors: list[Author] = []
    note: str = ""


def to_cents(data: dict[str, Any]) -> dict[str, Any]:
    return {"cents": data["amount"] * 100, "authors": data.get("authors", [])}


def to_authors(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "currency": "EUR", "authors": [{"name": n} for n in data.get("authors", [])]}


@contextmanager
def code_of(version: int) -> Iterator[None]:
    """The types as the code of a time declared them."""
    before = dict(TYPES)
    for name in NAMES:
        TYPES.pop(name, None)
    if version == 1:
        event_type("order.made")(First)
    elif version == 2:
        event_type("order.placed", version=2, former=("order.made",))(Second)
        upcaster("order.placed", since=1)(to_cents)
    else:
        event_type("order.placed", version=3, former=("order.made",))(Order)
        upcaster("order.placed", since=1)(to_cents)
        upcaster("order.placed", since=2)(to_authors)
    yield
    TYPES.clear()
    TYPES.update(before)


@pytest.fixture
async def log(bus: Bus, tmp_path: Path) -> list[Message]:
    """What three generations of code have stored, with what is no order among it; each recorded
    its types before it went out.
    """
    large = ["x" * 60] * 400
    stored: dict[int, list[tuple[str, Any]]] = {
        1: [("order.made", First(1, ["ann"])), ("order.made", First(2, large))],
        2: [("order.placed", Second(300, ["bob", "eve"]))],
        3: [("order.placed", Order(400, "USD", [Author("kim")], "by air"))],
    }
    for version, orders in stored.items():
        with code_of(version):
            declared = [known for known in record.declared() if known.name in NAMES]
            record.check(tmp_path / "contract", declared)
            record.write(tmp_path / "contract", declared)
            for type, data in orders:
                event = new(type, data, source="/agents/shop", id=f"{version}-{data.authors[0]}")
                await bus.publish(f"inbox.billing.shop.{type}", event)
    bare = b'{"amount": 5}'
    await bus.connection.request("inbox.billing.shop.order.made", bare, {"Nats-Msg-Id": "bare"})
    async with bus.read() as reader:
        return [message async for message in reader]


NEWEST = [
    (100, "EUR", "ann", ""),
    (200, "EUR", "x" * 60, ""),
    (300, "EUR", "bob", ""),
    (400, "USD", "kim", "by air"),
    (500, "EUR", "", ""),
]


def told(order: Order) -> tuple[int, str, str, str]:
    return order.cents, order.currency, order.authors[0].name if order.authors else "", order.note


async def test_they_were_stored_as_their_code_wrote_them(bus: Bus, log: list[Message]) -> None:
    events = [message.event() for message in log]
    prefix = "urn:stratum:schema:order.placed:"
    assert [event.dataschema for event in events] == [None, None, prefix + "2", prefix + "3", None]
    assert events[1].data is None, "it is a blob"
    assert b'"amount":1' in bytes(events[0].data)


async def test_they_come_out_as_the_newest_where_they_are_read(
    bus: Bus, log: list[Message]
) -> None:
    with code_of(3):
        events = [typed(await bus.event(message), Order) for message in log]
    assert [told(event.data) for event in events] == NEWEST


async def test_they_come_out_as_the_newest_in_a_handler(bus: Bus, log: list[Message]) -> None:
    seen = list[tuple[int, str, str, str]]()
    with code_of(3):
        agent, stop = Agent("billing", concurrency=1), anyio.Event()

        @agent.on("order.placed")
        async def handle(run: Run, event: Event[Order]) -> None:
            seen.append(told(event.data))

        async with task_group() as tasks:
            tasks.start_soon(lambda: work(bus, agent, stop=stop))
            await eventually(lambda: len(seen) == len(log), within_seconds=30)
            stop.set()
    assert sorted(seen) == NEWEST


ORDERS = Projection(
    name="orders",
    tables={"orders": "seq bigint, type varchar, cents bigint, currency varchar, author varchar"},
    types=NAMES,
    prepare=newest,
    # Data that is a blob is the reader's to fetch.
    statements=(
        """
        insert into orders
        select seq, type, (data->>'$.cents')::bigint, data->>'$.currency', data->>'$.authors[0].name'
        from batch where dataref is null
        """,
    ),
)


async def test_they_come_out_as_the_newest_in_a_projection(
    bus: Bus, log: list[Message], tmp_path: Path
) -> None:
    path, stop = tmp_path / "orders.duckdb", anyio.Event()
    spoilt = {"Nats-Msg-Id": "spoilt"}
    await bus.connection.request("inbox.billing.shop.order.made", b'{"amount": {}}', spoilt)
    with code_of(3):
        async with task_group() as tasks:
            tasks.start_soon(lambda: run(bus, path, stop=stop, projections=[ORDERS]))
            await eventually(lambda: _answers(bus), within_seconds=30)
            stop.set()
    with open_read_only(path) as file:
        rows = file.execute("select * exclude (seq) from orders order by seq").fetchall()
        parked = file.execute("select detail from quarantine").fetchall()
    inline = [order for order in NEWEST if order[0] != 200]
    expected = [("order.placed", c, currency, a or None) for c, currency, a, _ in inline]
    assert rows == expected
    [(why,)] = parked
    assert "the upcaster of order.placed from version 1 failed" in why


async def _answers(bus: Bus) -> bool:
    try:
        return bool(await ask(bus, "select 1", wait_for=6))
    except QueryError:
        return False


async def test_what_an_upcaster_was_forgotten_for_is_refused_and_says_where(
    log: list[Message], tmp_path: Path
) -> None:
    with code_of(3):
        known = TYPES["order.placed"]
        del known.upcasters[2]
        with pytest.raises(IncompatibleType) as refused:
            record.check(tmp_path / "contract", [known])
        assert refused.value.version == 2
        assert "$.data.authors[]: string -> Author" in refused.value.changes
        with pytest.raises(InvalidEvent, match=r"at `\$\.authors\[0\]`|missing required field"):
            typed(log[2].event(), Order)
