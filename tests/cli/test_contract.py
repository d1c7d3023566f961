"""`stratum contract` in a project of its user's, whose code it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from stratum_bus.schema import TYPES
from stratum_cli import contracts
from stratum_cli.main import main
from tests.cli.conftest import Result, Run

OFFICIAL = Path(__file__).parents[1] / "vendor" / "asyncapi-3.0.0.json"

TOML = """
[server]
url = "nats://somebody:a-secret@nats.example.com:4222"

[agents.shop]
create = "shop:create"

[agents.node]
command = ["node", "agent.mjs"]
"""

SHOP = '''
from typing import Any

import msgspec

from stratum_agents import Agent, Run
from stratum_bus import Event, event_type, upcaster


class Line(msgspec.Struct):
    item: str


@event_type("order.placed", version={version}, former=("order.made",))
class Order(msgspec.Struct):
    """What somebody wants."""

    lines: list[Line]
    {fields}


class Payment(msgspec.Struct):
    cents: int


{more}


def create() -> Agent:
    agent = Agent("shop", follows=["price.changed"])

    @agent.on("order.placed")
    async def order(run: Run, event: Event[Order]) -> None: ...

    @agent.on("order.paid")
    async def paid(run: Run, event: Event[Payment]) -> None: ...

    @agent.on("anything")
    async def anything(run: Run, event: Event[Any]) -> None: ...

    @agent.every("1h")
    async def tidy(run: Run, event: Event[Any]) -> None: ...

    return agent
'''

UPCASTER = """
@upcaster("order.placed", since=1)
def _(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "cents": data["amount"] * 100}
"""


def write(project: Path, fields: str, *, version: int = 1, more: str = "") -> None:
    (project / "stratum.toml").write_text(TOML)
    text = SHOP.replace("{version}", str(version)).replace("{fields}", fields)
    (project / "shop.py").write_text(text.replace("{more}", more))


@pytest.fixture
def alone(
    project: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """A command line in this process, which has not seen the project's code before."""
    ours = {known.name: known for known in contracts.shipped()}
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str, input: bytes = b"") -> Result:
        before = dict(TYPES)
        for module in ("shop", "till"):
            sys.modules.pop(module, None)
        TYPES.clear()
        TYPES.update(ours)
        capfdbinary.readouterr()
        try:
            code = main(arguments)
        finally:
            TYPES.clear()
            TYPES.update(before)
        out, err = capfdbinary.readouterr()
        return Result(arguments, code, out.decode(), err.decode())

    return run


@pytest.fixture
def shop(project: Path) -> Path:
    write(project, "amount: int")
    return project


def test_the_asyncapi_document_of_a_project_has_its_agents_and_their_types(
    shop: Path, alone: Run
) -> None:
    done = alone("contract", "asyncapi")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    official = json.loads(OFFICIAL.read_text(encoding="utf-8"))
    assert not list(jsonschema.Draft7Validator(official).iter_errors(document))
    assert document["servers"]["nats"]["host"] == "nats.example.com:4222"
    assert "a-secret" not in done.stdout
    channels, messages = document["channels"], document["components"]["messages"]
    placed = channels["shop.inbox.order.placed"]
    assert placed["address"] == "inbox.shop.{sender}.order.placed"
    assert list(placed["messages"]) == ["order.placed"]
    assert channels["topic.price.changed"]["address"] == "topic.{sender}.price.changed"
    assert channels["node.inbox"]["address"] == "inbox.node.{sender}.{type}"
    own = {name: each for name, each in document["operations"].items() if "." in name}
    assert {each["action"] for each in own.values()} == {"receive"}
    assert set(own) == {
        "node.receives", "shop.follows.price.changed", "shop.receives.anything",
        "shop.receives.order.paid", "shop.receives.order.placed",
        "shop.receives.stratum.schedule.tidy",
    }  # fmt: skip
    data = messages["order.placed"]["payload"]["allOf"][1]["properties"]
    assert data["type"] == {"enum": ["order.placed", "order.made"]}
    assert data["data"] == {"$ref": "#/components/schemas/Order"}
    assert messages["order.paid"]["title"] == "Payment", "a type that is only handled"
    assert "stratum.memory.noted" in messages


def test_the_schemas_and_the_subjects_have_the_types_of_the_project(shop: Path, alone: Run) -> None:
    schema = json.loads(alone("contract", "jsonschema", "order.made").stdout)
    assert schema["$id"] == "urn:stratum:schema:order.placed:1"
    assert schema["properties"]["lines"]["items"] == {"$ref": "#/$defs/Line"}
    alone("contract", "jsonschema", "-o", "out")
    alone("contract", "subjects", "-o", "out")
    assert json.loads((shop / "out/schemas/order.placed.1.json").read_text()) == schema
    page = (shop / "out/subjects.md").read_text()
    assert "`order.placed`" in page
    told = json.loads((shop / "out/subjects.json").read_text())
    assert "order.paid" in told["roles"]["inbox"]["types"]
    one = json.loads(alone("contract", "jsonschema").stdout)
    event = {"specversion": "1.0", "id": "1", "source": "/x", "type": "order.made"}
    valid = jsonschema.Draft202012Validator(one).is_valid
    assert valid({**event, "data": {"lines": [{"item": "tea"}], "amount": 3}})
    assert not valid({**event, "data": {"lines": [{"item": "tea"}], "amount": "three"}})


def test_a_change_that_old_data_does_not_fit_is_found_refused_and_healed(
    shop: Path, alone: Run
) -> None:
    done = alone("contract", "record")
    assert done.returncode == 0, done.stderr
    files = ["order.paid.1.json", "order.placed.1.json"]
    assert sorted(os.listdir(shop / "contract")) == files
    assert "nothing has changed" in alone("contract", "diff").stderr
    assert alone("contract", "check").returncode == 0

    write(shop, "cents: int", version=2)
    done = alone("contract", "diff", "--json")
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    head = {"type": "order.placed", "from": 1, "to": 2}
    assert rows == [
        {**head, "path": "$.data.amount", "change": "removed", "verdict": "needs an upcaster"},
        {
            **head, "path": "$.data.cents", "change": "added, required: integer",
            "verdict": "needs an upcaster",
        },
    ]  # fmt: skip
    said = "order.placed: data of version 1 does not fit: $.data.amount: removed; $.data.cents"
    for command in ("diff", "check", "record"):
        done = alone("contract", command)
        assert done.returncode == 1
        assert said in done.stderr
        assert '@upcaster("order.placed", since=1)' in done.stderr
    assert sorted(os.listdir(shop / "contract")) == files

    write(shop, "cents: int", version=2, more=UPCASTER)
    done = alone("contract", "diff")
    assert (done.returncode, done.stdout.count("has an upcaster")) == (0, 2)
    done = alone("contract", "check")
    assert done.returncode == 1
    assert "not recorded as declared: order.placed; run `stratum contract record`" in done.stderr
    assert "order.placed" in alone("contract", "record", "--dry-run").stdout
    assert sorted(os.listdir(shop / "contract")) == files
    assert alone("contract", "record").returncode == 0
    assert alone("contract", "check").returncode == 0


def test_an_agent_does_not_start_with_a_type_that_its_record_does_not_allow(
    shop: Path, alone: Run
) -> None:
    assert alone("contract", "record").returncode == 0
    write(shop, "amount: str")
    program = [sys.executable, "-m", "stratum_agents", "shop", "--url", "nats://127.0.0.1:1"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == os.EX_CONFIG
    assert "order.placed: data of version 1 does not fit: $.data.amount: integer -> string" in (
        done.stderr
    )
    assert 'declare version=2 with @upcaster("order.placed", since=1)' in done.stderr


def test_a_type_that_two_agents_take_for_two_things_is_told_of(shop: Path, alone: Run) -> None:
    (shop / "till.py").write_text(
        "import msgspec\n"
        "from stratum_agents import Agent, Run\n"
        "from stratum_bus import Event\n"
        "class Cash(msgspec.Struct):\n"
        "    coins: int\n"
        "def create() -> Agent:\n"
        "    agent = Agent('till')\n"
        "    @agent.on('order.paid')\n"
        "    async def paid(run: Run, event: Event[Cash]) -> None: ...\n"
        "    return agent\n"
    )
    (shop / "stratum.toml").write_text(TOML + '\n[agents.till]\ncreate = "till:create"\n')
    done = alone("contract", "record")
    assert done.returncode == 0
    assert "order.paid is handled as two types of data" in done.stderr


def test_what_cannot_be_done_is_said_in_a_sentence(shop: Path, alone: Run) -> None:
    done = alone("contract", "jsonschema", "no.such.type")
    assert (done.returncode, done.stdout) == (3, "")
    assert "there is no event type no.such.type" in done.stderr
    done = alone("contract", "asyncapi", "-o", "stratum.toml")
    assert done.returncode == 5
    assert "stratum.toml is a file: name the folder to write into" in done.stderr
    (shop / "shop.py").write_text("import nothing_of_that_name")
    done = alone("contract", "check")
    assert done.returncode == 2
    assert "agents.shop.create: expected module:callable" in done.stderr
    assert alone("contract", "asyncapi", "--shipped").returncode == 0
