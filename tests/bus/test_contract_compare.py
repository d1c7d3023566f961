"""Which changes of a Struct old data still fits, and where those are that it does not."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta, Struct, defstruct

from stratum_bus.contract.compare import compare
from stratum_bus.contract.schemas import data_schema
from stratum_bus.schema import EventType


class Author(Struct):
    name: str


class Numbered(Struct):
    name: int


class Tree(Struct):
    leaf: str
    below: list[Tree] = []


class TallTree(Struct):
    leaf: int
    below: list[TallTree] = []


class Card(Struct, tag="card"):
    number: str


class Cash(Struct, tag="cash"):
    note: str = ""


class Coin(Struct, tag="card"):
    number: int


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Closed(Struct, forbid_unknown_fields=True):
    field: int = 0


def schema(*fields: Any, name: str = "Data") -> dict[str, Any]:
    return data_schema(EventType("x", defstruct(name, fields), 1, (), {}))


def changes(old: Any, new: Any) -> list[tuple[str, bool]]:
    """Between two types of one field, with a default; or two lists of fields."""
    if not isinstance(old, list):
        old, new = [("field", old)], [("field", new)]
    return [(str(each), each.breaking) for each in compare(schema(*old), schema(*new))]


FINE, BREAKS = False, True


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (int, float, [("$.data.field: integer -> number", FINE)]),
        (float, int, [("$.data.field: number -> integer", BREAKS)]),
        (str, int, [("$.data.field: string -> integer", BREAKS)]),
        (int, int | None, [("$.data.field: integer -> integer | null", FINE)]),
        (int | None, int, [("$.data.field: integer | null -> integer", BREAKS)]),
        (int, int | str, [("$.data.field: integer -> integer | string", FINE)]),
        (int | str, str, [("$.data.field: integer | string -> string", BREAKS)]),
        (str, datetime, [("$.data.field: string -> string (date-time)", BREAKS)]),
        (datetime, str, [("$.data.field: string (date-time) -> string", FINE)]),
        (
            datetime | None,
            list[datetime],
            [
                ("$.data.field: string (date-time) | null -> array of string (date-time)", BREAKS),
                ("$.data.field: string (date-time) -> array of string (date-time)", BREAKS),
            ],
        ),
        (int, Any, [("$.data.field: integer -> anything", FINE)]),
        (Any, int, [("$.data.field: anything -> integer", BREAKS)]),
        (Any, Any, []),
        (list[Author], list[Numbered], [("$.data.field[].name: string -> integer", BREAKS)]),
        (tuple[str, ...], list[str], []),
        (list[str], tuple[str, str], [("$.data.field: array of string -> tuple of 2", BREAKS)]),
        (tuple[str, int], tuple[str, str], [("$.data.field[1]: integer -> string", BREAKS)]),
        (tuple[str, str], list[str], []),
        (tuple[str, str], tuple[str], [("$.data.field[1]: removed", BREAKS)]),
        (dict[str, int], dict[str, str], [("$.data.field.*: integer -> string", BREAKS)]),
        (dict[str, Any], Author, [("$.data.field: map -> object", BREAKS)]),
        (Author, dict[str, Any], []),
        (Author, dict[str, int], [("$.data.field: object -> map to integer", BREAKS)]),
        (Author, Author | None, [("$.data.field: Author -> Author | null", FINE)]),
        (Tree, TallTree, [("$.data.field.leaf: string -> integer", BREAKS)]),
        (Card | Cash, Card | Cash, []),
        (Card | Cash, Cash, [("$.data.field: Card | Cash -> Cash", BREAKS)]),
        (Literal["a"], Literal["a", "b"], [('$.data.field: "a" -> "a" | "b"', FINE)]),
        (Literal["a", "b"], Literal["a"], [('$.data.field: "a" | "b" -> "a"', BREAKS)]),
        (str, Literal["a"], [('$.data.field: string -> "a"', BREAKS)]),
        (Literal["a"], str, [('$.data.field: "a" -> string', FINE)]),
        (Literal["a"], Literal[1], [('$.data.field: "a" -> 1', BREAKS)]),
        (Colour, str, [('$.data.field: "blue" | "red" -> string', FINE)]),
        (int, Annotated[int, Meta(ge=1)], [("$.data.field: minimum 1", BREAKS)]),
        (Annotated[int, Meta(ge=1)], int, [("$.data.field: no minimum any more", FINE)]),
        (
            Annotated[str, Meta(max_length=9)],
            Annotated[str, Meta(max_length=5)],
            [("$.data.field: maxLength 9 -> 5", BREAKS)],
        ),
        (
            Annotated[str, Meta(max_length=9)],
            Annotated[str, Meta(max_length=12)],
            [("$.data.field: maxLength 9 -> 12", FINE)],
        ),
        (list[str], set[str], [("$.data.field: uniqueItems True", BREAKS)]),
    ],
)
def test_a_field_of_another_type(old: Any, new: Any, found: list[tuple[str, bool]]) -> None:
    assert changes(old, new) == found


OPTIONAL = ("b", str, "")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ([("a", int)], [("a", int), OPTIONAL], [("$.data.b: added, optional: string", FINE)]),
        ([("a", int)], [("a", int), ("b", str)], [("$.data.b: added, required: string", BREAKS)]),
        ([("a", int), OPTIONAL], [("a", int)], [("$.data.b: removed", BREAKS)]),
        ([OPTIONAL], [("b", str)], [("$.data.b: optional -> required", BREAKS)]),
        ([("b", str)], [OPTIONAL], [("$.data.b: required -> optional", FINE)]),
        ([OPTIONAL], [("b", str, "another default")], []),
    ],
)
def test_fields_that_come_and_go(old: Any, new: Any, found: list[tuple[str, bool]]) -> None:
    assert changes(old, new) == found


def test_one_alternative_of_several_is_followed_to_where_it_changed() -> None:
    found = changes(Card | Cash | None, Coin | Cash | None)
    assert found == [("$.data.field.number: string -> integer", BREAKS)]


def test_a_struct_that_refuses_further_fields_refuses_what_was_written_before() -> None:
    old = data_schema(EventType("x", defstruct("Open", [("field", int, 0)]), 1, (), {}))
    new = data_schema(EventType("x", Closed, 1, (), {}))
    assert [str(each) for each in compare(old, new)] == ["$.data: further fields are refused"]


def test_the_same_is_no_change_however_often_it_refers_to_itself() -> None:
    one = data_schema(EventType("x", Tree, 1, (), {}))
    assert compare(one, one) == []
    assert msgspec.json.decode(msgspec.json.encode(one)) == one


def test_what_breaks_comes_first() -> None:
    found = changes([("a", int)], [("c", int), ("b", str, "")])
    assert [breaking for _, breaking in found] == [BREAKS, BREAKS, FINE]
