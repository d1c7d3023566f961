"""What is committed under docs/contract is what the code says, and what the standards allow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from stratum_bus import subject
from stratum_bus.contract import asyncapi, grammar, record, schemas
from stratum_bus.event import Event
from stratum_cli import contracts
from stratum_cli.main import main

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "docs" / "contract"
OFFICIAL = REPOSITORY / "tests" / "vendor" / "asyncapi-3.0.0.json"
SHIPPED = contracts.shipped()
DOCUMENT = json.loads(record.text(asyncapi.document(asyncapi.Contract(SHIPPED))))
STALE = "is stale: run `make docs`"


def read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def against_the_standard(document: Any) -> list[str]:
    official = json.loads(OFFICIAL.read_text(encoding="utf-8"))
    found = jsonschema.Draft7Validator(official).iter_errors(document)
    return [f"{error.json_path}: {error.message}" for error in found]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(document: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


# Fresh


def test_the_committed_documents_are_what_the_code_says() -> None:
    assert read("asyncapi.json") == record.text(DOCUMENT), f"asyncapi.json {STALE}"
    assert read("subjects.md") == grammar.page(SHIPPED), f"subjects.md {STALE}"
    assert read("subjects.json") == record.text(grammar.grammar(SHIPPED)), f"subjects.json {STALE}"


def test_the_committed_schemas_are_what_the_code_says() -> None:
    expected = {
        "envelope.json": schemas.envelope(),
        "event.json": schemas.event_schema(SHIPPED),
        **{record.file_of(each): schemas.data_schema(each) for each in SHIPPED},
    }
    for name, schema in expected.items():
        assert read(f"schemas/{name}") == record.text(schema), f"schemas/{name} {STALE}"


def test_no_shipped_type_breaks_with_what_is_recorded() -> None:
    verdicts = record.judge_all(record.load(FOLDER / "schemas"), SHIPPED)
    assert [verdict.type for verdict in verdicts if verdict.state != record.SAME] == []


def test_make_docs_writes_what_is_committed(tmp_path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"stratum (contract \w+ --shipped) -o docs/contract", makefile)
    assert len(commands) == 3
    for command in commands:
        assert main([*command.split(), "-o", str(tmp_path)]) == 0
    written = {file.relative_to(tmp_path) for file in tmp_path.rglob("*.json")}
    assert Path("asyncapi.json") in written
    for file in written:
        assert (tmp_path / file).read_bytes() == (FOLDER / file).read_bytes(), file


def test_every_type_that_a_module_declares_is_shipped() -> None:
    """Wherever it stands: by importing all there is, in a process of its own."""
    program = (
        "import importlib, pkgutil, stratum_bus, stratum_agents, stratum_projections\n"
        "for package in (stratum_bus, stratum_agents, stratum_projections):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "from stratum_bus.schema import TYPES\n"
        "print(*sorted({known.name for known in TYPES.values()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    shipped = [known.name for known in SHIPPED]
    advice = "name its module in stratum_cli.contracts.DECLARING, then run `make docs`"
    assert done.stdout.split() == shipped, advice


# True to the standards


def test_the_asyncapi_document_passes_its_official_schema() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert against_the_standard(DOCUMENT) == []
    assert against_the_standard({**DOCUMENT, "channel": {}}), "the standard refuses nothing"


def test_every_reference_of_the_document_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert len(found) > 50
    for reference in found:
        assert resolve(DOCUMENT, reference) is not None


def test_every_channel_is_one_of_the_grammar_and_every_role_has_one() -> None:
    channels = {name: each for name, each in DOCUMENT["channels"].items() if name != "stored"}
    assert set(channels) == set(subject.ROLES)
    for role, channel in channels.items():
        assert channel["parameters"].keys() == set(subject.ROLES[role])
        filled = channel["address"]
        for name, parameter in channel["parameters"].items():
            filled = filled.replace(f"{{{name}}}", parameter["examples"][0])
        assert subject.parse(subject.writable(filled)).role == role
        assert channel["x-jetstream"]["stream"] == subject.stream_of(filled)
        assert channel["messages"]


def test_every_shipped_type_is_a_message_of_its_channels() -> None:
    for known in SHIPPED:
        for role in known.roles:
            assert known.name in DOCUMENT["channels"][role]["messages"]
        payload = DOCUMENT["components"]["messages"][known.name]["payload"]
        assert payload["allOf"][1]["properties"]["type"] == {"const": known.name}


def test_the_schemas_are_schemas() -> None:
    for schema in (schemas.envelope(), schemas.bundle(SHIPPED), *map(schemas.data_schema, SHIPPED)):
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_attribute_of_the_envelope_is_explained() -> None:
    properties = schemas.envelope()["properties"]
    assert list(properties) == ["specversion", *Event.__struct_fields__]
    assert all(attribute["description"] for attribute in properties.values())


@pytest.mark.parametrize("role", subject.ROLES)
def test_the_patterns_of_the_grammar_take_what_is_written(role: str) -> None:
    told = grammar.grammar(SHIPPED)["roles"][role]
    assert re.fullmatch(told["pattern"], told["example"])
    assert not re.fullmatch(told["pattern"], told["example"].partition(".")[2])
    assert subject.matches(told["filter"], told["example"])
    assert told["meaning"].endswith(".")
    assert f"`{told['address']}`" in grammar.page(SHIPPED)


def test_the_order_in_which_types_were_declared_is_of_no_matter() -> None:
    backwards = list(reversed(SHIPPED))
    assert record.text(asyncapi.document(asyncapi.Contract(backwards))) == record.text(DOCUMENT)
    assert grammar.page(backwards) == grammar.page(SHIPPED)


def test_the_readme_names_every_kind_of_file() -> None:
    readme = read("README.md")
    for name in ("asyncapi.json", "subjects.md", "subjects.json", "envelope.json", "event.json"):
        assert name in readme
    for command in re.findall(r"stratum contract (\w+)", readme):
        assert hasattr(contracts, command) or command == "record"
