"""The record of what types have been: what may follow on it, and what needs an upcaster."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct, defstruct

from stratum_bus.contract import record
from stratum_bus.contract.record import BROKEN, CHANGED, GONE, NEW, SAME
from stratum_bus.errors import ConfigError, IncompatibleType
from stratum_bus.schema import EventType

TYPE = "order.placed"


class Author(Struct):
    name: str


class Numbered(Struct):
    name: int


def declared(
    *fields: Any, version: int = 1, upcasters: tuple[int, ...] = (), name: str = TYPE,
    former: tuple[str, ...] = (),
) -> EventType:  # fmt: skip
    struct = defstruct("Order", fields)
    return EventType(name, struct, version, former, {since: dict for since in upcasters})


FIRST = declared(("amount", int), ("note", str, ""))
SECOND = declared(("cents", int), ("note", str, ""), version=2, upcasters=(1,))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project's record, with version 1."""
    record.write(tmp_path / "contract", [FIRST])
    return tmp_path / "contract"


def refused(folder: Path, known: EventType) -> str:
    """Why, and that the check, the verdict and the writing are of one mind."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(IncompatibleType) as at_start:
        record.check(folder, [known])
    with pytest.raises(IncompatibleType) as written:
        record.write(folder, [declared(name="new.type"), known])
    assert str(at_start.value) == str(written.value)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert record.judge(record.load(folder), known).state == BROKEN
    return str(at_start.value)


def allowed(folder: Path, known: EventType) -> list[str]:
    """The changes that are taken down; they are none the second time."""
    record.check(folder, [known])
    verdict = record.judge(record.load(folder), known)
    assert verdict.state == CHANGED
    assert record.write(folder, [known]) == [verdict]
    assert record.write(folder, [known]) == []
    return [str(change) for change in verdict.changes]


def test_a_type_is_recorded_as_the_schema_of_its_data(folder: Path) -> None:
    [file] = folder.iterdir()
    assert file.name == "order.placed.1.json"
    schema = json.loads(file.read_text())
    assert schema["$id"] == "urn:stratum:schema:order.placed:1"
    assert schema["required"] == ["amount"]
    assert record.judge(record.load(folder), FIRST).state == SAME


def test_without_a_record_nothing_is_refused(tmp_path: Path) -> None:
    record.check(tmp_path / "contract", [SECOND])
    assert record.judge(record.load(tmp_path), SECOND).state == NEW
    assert [v.state for v in record.write(tmp_path / "contract", [SECOND], dry_run=True)] == [NEW]
    assert not (tmp_path / "contract").exists()


def test_an_optional_field_may_be_added_to_a_version(folder: Path) -> None:
    known = declared(("amount", int), ("note", str, ""), ("vat", int, 0))
    assert allowed(folder, known) == ["$.data.vat: added, optional: integer"]
    assert [file.name for file in folder.iterdir()] == ["order.placed.1.json"]


def test_an_optional_field_may_be_added_with_a_version_of_its_own(folder: Path) -> None:
    known = declared(("amount", int), ("note", str, ""), ("vat", int, 0), version=2)
    assert allowed(folder, known) == ["$.data.vat: added, optional: integer"]
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["order.placed.1.json", "order.placed.2.json"]


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ([("amount", int)], r"\$\.data\.note: removed"),
        ([("amount", str), ("note", str, "")], r"\$\.data\.amount: integer -> string"),
        ([("amount", int), ("note", str)], r"\$\.data\.note: optional -> required"),
        ([("amount", int), ("vat", int), ("note", str, "")], r"\$\.data\.vat: added, required"),
    ],
)
def test_what_old_data_does_not_fit_needs_a_version_and_an_upcaster(
    folder: Path, fields: list[Any], where: str
) -> None:
    said = refused(folder, declared(*fields))
    assert said.startswith("order.placed: data of version 1 does not fit: $.data.")
    assert 'declare version=2 with @upcaster("order.placed", since=1)' in said
    said = refused(folder, declared(*fields, version=2))
    assert 'declare @upcaster("order.placed", since=1), or take the change back' in said
    found = allowed(folder, declared(*fields, version=2, upcasters=(1,)))
    assert any(re.match(where, change) for change in found)


def test_the_path_leads_into_lists_and_other_structs(folder: Path) -> None:
    record.write(folder, [declared(("authors", list[Author]), name="paper.published")])
    said = refused(folder, declared(("authors", list[Numbered]), name="paper.published"))
    assert "$.data.authors[].name: string -> integer" in said


def test_of_many_changes_the_first_three_are_named(folder: Path) -> None:
    record.write(folder, [declared(*((f"f{i}", int) for i in range(5)), name="wide")])
    said = refused(folder, declared(name="wide"))
    assert said.count("removed") == 3
    assert "(and 2 more)" in said


def test_every_version_of_the_way_has_to_have_its_upcaster(folder: Path) -> None:
    record.write(folder, [SECOND])
    third = declared(("cents", int), ("currency", str), version=3, upcasters=(1, 2))
    said = refused(folder, declared(("cents", int), ("currency", str), version=3, upcasters=(1,)))
    assert "data of version 2 does not fit" in said
    assert "since=2" in said
    assert allowed(folder, third)
    lost = declared(("cents", int), ("currency", str), version=3, upcasters=(2,))
    assert "data of version 1 does not fit: $.data.amount: removed" in refused(folder, lost)


def test_a_version_that_was_never_recorded_is_on_the_way_too(folder: Path) -> None:
    jumped = declared(("cents", int), ("note", str, ""), version=3, upcasters=(1,))
    assert "since=2" in refused(folder, jumped)
    assert allowed(folder, declared(("cents", int), version=3, upcasters=(1, 2)))


def test_code_that_is_older_than_the_record_is_refused(folder: Path) -> None:
    record.write(folder, [SECOND])
    said = refused(folder, FIRST)
    assert "the code declares version 1; declare version=2" in said


def test_a_type_of_another_name_goes_on_from_its_former_one(folder: Path) -> None:
    renamed = declared(("cents", int), name="order.made", former=(TYPE,))
    assert "order.made: data of version 1 does not fit" in refused(folder, renamed)
    renamed = declared(("cents", int), name="order.made", former=(TYPE,), version=2, upcasters=(1,))
    assert allowed(folder, renamed)
    states = {v.type: v.state for v in record.judge_all(record.load(folder), [renamed])}
    assert states == {"order.made": SAME}


def test_a_type_that_nobody_declares_any_more_is_told_of_and_stays(folder: Path) -> None:
    verdicts = record.judge_all(record.load(folder), [declared(name="other")])
    assert [(v.type, v.state) for v in verdicts] == [(TYPE, GONE), ("other", NEW)]
    record.write(folder, [declared(name="other")])
    assert (folder / "order.placed.1.json").exists()


def test_another_text_alone_is_taken_down(folder: Path) -> None:
    class Order(Struct):
        """What somebody wants."""

        amount: int
        note: str = ""

    assert allowed(folder, EventType(TYPE, Order, 1, (), {})) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "expected a JSON Schema"),
        ("[]", "expected 'urn:stratum:schema:order.placed:1', as its name says"),
        ('{"$id": "urn:stratum:schema:order.placed:2"}', "as its name says, got 'urn:stratum"),
    ],
)
def test_a_damaged_record_is_said_to_be_one(folder: Path, content: str, why: str) -> None:
    (folder / "order.placed.1.json").write_text(content)
    with pytest.raises(ConfigError, match=r"order\.placed\.1\.json") as damaged:
        record.check(folder, [FIRST])
    assert why in str(damaged.value)


def test_other_files_of_the_folder_are_nobodys_record(folder: Path) -> None:
    (folder / "event.json").write_text("no JSON")
    (folder / "notes.final.json").write_text("no JSON")
    assert set(record.load(folder)) == {TYPE}
