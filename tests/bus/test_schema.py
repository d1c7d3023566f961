"""Event types: wire names, former names, versions, and the way from old data to new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from stratum_bus import schema
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.event import Event, new, typed
from stratum_bus.schema import TYPES, canonical, event_type, name_of, upcaster


class Order(msgspec.Struct):
    """Version 3: version 1 had `amount` in euros, version 2 `cents`, without a currency."""

    cents: int
    currency: str


@pytest.fixture(autouse=True)
def types() -> Iterator[None]:
    """What a test declares is forgotten behind it."""
    before = dict(TYPES)
    TYPES.clear()  # so that no name is taken
    yield
    TYPES.clear()
    TYPES.update(before)


@pytest.fixture
def order(types: None) -> type[Order]:
    event_type("order.placed", version=3, former=("order.made", "purchase"))(Order)

    @upcaster("order.placed", since=1)
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {"cents": data["amount"] * 100}

    @upcaster("order.placed", since=2)
    def _(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "currency": "EUR"}

    return Order


def stored(type: str, data: Any, dataschema: str | None = None) -> Event[msgspec.Raw]:
    """An event as read from the log."""
    raw = msgspec.Raw(msgspec.json.encode(data))
    return Event(id="1", source="/tests", type=type, dataschema=dataschema, data=raw)


def schema_uri(version: object) -> str:
    return f"urn:stratum:schema:order.placed:{version}"


@pytest.mark.parametrize("name", ["order.placed", "order.made", "purchase"])
@pytest.mark.parametrize(
    ("version", "data"),
    [
        (None, {"amount": 12}),
        (1, {"amount": 12}),
        (2, {"cents": 1200}),
        (3, {"cents": 1200, "currency": "EUR"}),
    ],
)
def test_data_of_every_version_and_name_becomes_the_newest(
    order: type[Order], name: str, version: int | None, data: dict[str, Any]
) -> None:
    event = stored(name, data, schema_uri(version) if version else None)
    assert typed(event, order).data == Order(1200, "EUR")


def test_data_of_a_version_yet_to_come_is_read_as_far_as_it_fits(order: type[Order]) -> None:
    event = stored("order.placed", {"cents": 1, "currency": "EUR", "vat": 2}, schema_uri(4))
    assert typed(event, order).data == Order(1, "EUR")


@pytest.mark.parametrize("version", ["²", "x", "", "-1", "9" * 5000, "1.0"])
def test_an_odd_version_counts_as_the_first(order: type[Order], version: str) -> None:
    assert (
        typed(stored("order.placed", {"amount": 1}, schema_uri(version)), order).data.cents == 100
    )


def test_somebody_elses_dataschema_counts_as_the_first(order: type[Order]) -> None:
    event = stored("order.placed", {"amount": 1}, "https://example.com/order.json")
    assert typed(event, order).data.cents == 100


@pytest.mark.parametrize(
    ("data", "version", "why"),
    [
        ({}, 1, r"the upcaster of order.placed from version 1 failed: KeyError\('amount'\)"),
        ([1], 1, "the upcaster of order.placed from version 1 failed: TypeError"),
        ({"cents": "many"}, 2, r"Expected `int`, got `str` - at `\$.cents`"),
        ({"cents": 1}, 3, "Object missing required field `currency`"),
        ({"cents": 1}, 0, "there is no version 0 of order.placed"),
    ],
)
def test_data_that_does_not_fit_is_an_unreadable_event_that_says_where(
    order: type[Order], data: Any, version: int, why: str
) -> None:
    with pytest.raises(InvalidEvent, match=why) as refused:
        typed(stored("order.placed", data, schema_uri(version)), order)
    assert refused.value.reason == "data"


def test_raw_data_is_left_as_it_was_written(order: type[Order]) -> None:
    assert bytes(typed(stored("order.placed", {"amount": 1}), msgspec.Raw).data) == b'{"amount":1}'
    nothing: Event[Any] = Event(id="1", source="/tests", type="order.placed")
    assert typed(nothing, msgspec.Raw).data is None


def test_untyped_data_is_brought_up_too(order: type[Order]) -> None:
    event: Event[Any] = typed(stored("order.placed", {"amount": 1}), Any)
    assert event.data == {"cents": 100, "currency": "EUR"}


def test_a_new_event_says_its_version_from_the_second_on(order: type[Order]) -> None:
    assert new("order.placed", Order(1, "EUR"), source="/t").dataschema == schema_uri(3)
    event_type("order.paid")(type("Paid", (msgspec.Struct,), {}))
    assert new("order.paid", {}, source="/t").dataschema is None


def test_names_are_resolved_both_ways(order: type[Order]) -> None:
    assert canonical("purchase") == "order.placed"
    assert canonical("nobodys.type") == "nobodys.type"
    assert name_of(order) == "order.placed"
    assert name_of(dict) is None


def test_a_name_belongs_to_one_struct(order: type[Order]) -> None:
    class Other(msgspec.Struct): ...

    for name in ("order.placed", "order.made"):
        with pytest.raises(ValueError, match=f"{name} is already the name of Order"):
            event_type(name)(Other)
    with pytest.raises(ValueError, match=r"order\.made is already the name of Order"):
        event_type("other", former=("order.made",))(Other)
    assert "other" not in TYPES, "what is refused leaves nothing behind"


def test_a_bad_wire_name_is_refused_where_it_is_declared() -> None:
    class Other(msgspec.Struct): ...

    with pytest.raises(InvalidName):
        event_type("no good")(Other)
    with pytest.raises(InvalidName):
        event_type("good", former=("no good",))(Other)


def test_an_upcaster_of_an_undeclared_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no event type nobodys\.type is declared"):
        upcaster("nobodys.type", since=1)(lambda data: data)


def test_an_upcaster_that_would_never_be_called_is_refused(order: type[Order]) -> None:
    for since in (0, 3, 4):
        with pytest.raises(ValueError, match=r"order\.placed is at version 3: an upcaster since"):
            upcaster("order.placed", since=since)(lambda data: data)


def test_an_optional_field_that_was_added_needs_no_upcaster(types: None) -> None:
    class Paid(msgspec.Struct):
        order: str
        note: str = "none"

    event_type("order.paid", version=2)(Paid)
    assert typed(stored("order.paid", {"order": "o1"}), Paid).data == Paid("o1", "none")
    with pytest.raises(InvalidEvent, match="missing required field `order`"):
        typed(stored("order.paid", {"id": "o1"}), Paid)


def test_a_version_or_a_role_that_is_none_is_refused_where_it_is_declared() -> None:
    with pytest.raises(ValueError, match=r"order\.paid: versions count from 1, not from 0"):
        event_type("order.paid", version=0)(Order)
    with pytest.raises(ValueError, match=r"order\.paid: mailbox is no role of subjects"):
        event_type("order.paid", roles=("inbox", "mailbox"))(Order)


def test_a_type_that_nobody_declared_is_a_valid_event() -> None:
    event = stored("nobodys.type", {"a": 1}, "urn:stratum:schema:nobodys.type:7")
    assert typed(event, dict[str, int]).data == {"a": 1}
    assert "nobodys.type" not in schema.TYPES
