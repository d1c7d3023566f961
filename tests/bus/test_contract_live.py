"""A live log with some of everything in it passes the validation of those who share no code with us:
JSON Schema against what is generated, and the official CloudEvents library.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import jsonschema
import pytest
from cloudevents.core.formats.json import JSONFormat

from stratum_agents.agent import Agent
from stratum_agents.fork import fork
from stratum_agents.run import Run
from stratum_agents.supervision.escalation import Escalation, tell
from stratum_agents.testing import runs
from stratum_bus import control, dead, subject
from stratum_bus.bus import Bus
from stratum_bus.contract import asyncapi, record, schemas
from stratum_bus.event import CONTENT_TYPE, Event, encode, new
from stratum_bus.heartbeat import AGENT, Vitals, beating
from stratum_bus.memory import Memory
from stratum_bus.message import Message
from stratum_bus.supervision import SupervisorConfig
from stratum_bus.testing import eventually
from stratum_cli import contracts
from stratum_projections.health import incident
from stratum_projections.health.incident import Finding
from stratum_projections.health.observed import TYPE as OBSERVED
from stratum_projections.health.observed import Fill, Observed, Position
from tests.agents.programs.trip import Receiver, agency, traveller

SHIPPED = contracts.shipped()
TYPES = {known.name: known for known in SHIPPED}
SCHEMA = record.text(schemas.bundle(SHIPPED))
DOCUMENT = json.loads(record.text(asyncapi.document(asyncapi.Contract(SHIPPED))))
NOW = datetime(2026, 11, 21, tzinfo=UTC)

RARE = {
    "stratum.run.compensating", "stratum.run.continued", "stratum.run.parked", "stratum.run.sent",
    "paper.relevant", "stratum.run.resumed",
}  # fmt: skip
"""What none of the below makes."""


@functools.cache
def validator(schema: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(schema))


def complaints(schema: str, value: Any) -> list[str]:
    found = validator(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


@functools.cache
def payload_schema(type: str) -> str:
    """Of a message of the AsyncAPI document."""
    reference = f"#/components/messages/{type}/payload"
    return json.dumps({"$ref": reference, "components": DOCUMENT["components"]})


async def messages_and_notes(bus: Bus) -> None:
    inbox = "inbox.research.billing.question"
    await bus.publish(inbox, new("question", {"q": "?"}, source="/agents/billing", subject="a"))
    await bus.publish(inbox, new("question", "x" * 20_000, source="/agents/billing"))
    await bus.connection.request(inbox, b'{"q": "bare"}')
    binary = {"ce-specversion": "1.0", "ce-id": "b1", "ce-source": "/scanner", "ce-type": "scan"}
    await bus.connection.request(inbox, b"%PDF\xff", {**binary, "Content-Type": "application/pdf"})
    memory = Memory(bus, "research")
    note = await memory.note("a thought", tags=["x"], score=0.5, valid_from=NOW, data={"k": [1]})
    await memory.revise(note, text="another", about=None)
    await memory.retract(note, "it was wrong")
    await bus.connection.request("memory.research.note", b'{"text": "bare", "score": 1}')


async def durable_runs(bus: Bus, folder: Path) -> None:
    receiver, attempts = Receiver(folder / "receiver"), list[int]()
    agent = Agent("waiter")

    async def flaky() -> str:
        attempts.append(1)
        if len(attempts) < 2:
            raise OSError("not yet")
        return "done"

    @agent.on("wanted")
    async def wanted(run: Run, event: Event[Any]) -> dict[str, Any]:
        await run.step("flaky", flaky)
        verdict = await run.wait_for("verdict", timeout_days=7)
        return {"verdict": verdict.id}

    @agent.on("paper.published")
    async def read(run: Run, event: Event[Any]) -> None:
        noted = {"id": "2202.12139", "version": 1, "title": "t", "relevance": 0.5, "note": "n"}
        await run.publish("paper.noted", noted)
        await run.sleep(hours=1)
        raise run.fail("it cannot be read")

    trip = traveller(receiver, fails=False), agency(receiver)
    async with runs(bus, agent, *trip) as kit:
        run = await kit.start("wanted")
        await kit.advance(minutes=1)
        await kit.pause(run)
        await kit.resume(run)
        await kit.signal(run, "verdict", {"ok": True})
        other = await kit.start("wanted")
        await kit.cancel(other)
        await fork(bus, "waiter", run, "flaky", {})
        paper = {"id": "2202.12139", "version": 1, "title": "t", "published": NOW, "updated": NOW}
        await kit.start("paper.published", paper)
        await kit.start("paper.published", paper)
        await kit.start("trip.wanted", {"to": "the sea"}, agent="traveller")
        await kit.start("nobody.handles", agent="waiter", replyto="traveller/r1/e1")
        await kit.advance(days=2)
    first, second = await dead.letters(bus)
    await dead.redrive(bus, first)
    await dead.drop(bus, second, "no use")


async def commands_and_health(bus: Bus) -> None:
    for command in control.COMMANDS:
        what = control.Command(reason="a test", instances=2, sequence=1, text="help")
        await control.give(bus, "research", command, what, source="/people")
    for name, said in (
        (control.OUTCOME, control.Outcome(command="c", done=True, pid=7)),
        (control.STARTED, control.Started(instance="i", pid=7)),
        (
            control.ENDED,
            control.Ended(instance="i", pid=7, code=-9, held=[control.Held(sequence=1)]),
        ),
    ):
        event: Event[Any] = new(control.PREFIX + name, said, source=control.SUPERVISOR_SOURCE)
        await bus.publish(subject.control("research", name), event)
    finding = Finding(
        kind="dead", agent="research", since_ns=1, first=7, text="it is dead", evidence={"beats": 3}
    )
    opened = incident.opening(finding, 2)
    closed = incident.closing(finding.id, opened.event.data, "it lives", "restart", 3)
    for append in (opened, closed):
        await bus.publish(append.subject, append.event)
    await tell(bus, SupervisorConfig(), "editor", Escalation("research", "help", command="c"))
    at = Position("research", "LOG", pending=1, in_hand=0, delivered=3, settled=3)
    seen = Observed(log=1, head=9, positions=[at], fills=[Fill("LOG", bytes=7)])
    await bus.connection.request("health.health.h1", encode(new(OBSERVED, seen, source="/health")))


async def beats(bus: Bus) -> None:
    vitals = Vitals("research", AGENT, "research-1")
    async with beating(bus.connection.url, vitals, every_seconds=0.05):

        async def there() -> bool:
            found = await stored(bus, "HEALTH")
            return any(message.event().type == "stratum.health.beat" for message in found)

        await eventually(there, within_seconds=20)


async def stored(bus: Bus, stream: str) -> list[Message]:
    async with bus.read(stream) as reader:
        return [message async for message in reader]


async def test_a_live_log_passes_json_schema_and_the_cloudevents_library(
    bus: Bus, tmp_path: Path
) -> None:
    await messages_and_notes(bus)
    await durable_runs(bus, tmp_path)
    await commands_and_health(bus)
    await beats(bus)
    messages = [*await stored(bus, "LOG"), *await stored(bus, "HEALTH")]
    events = [(message, await bus.event(message)) for message in messages]
    assert len(events) > 100
    seen = await anyio.to_thread.run_sync(lambda: {validated(*each) for each in events})
    assert set(TYPES) - seen <= RARE


def validated(message: Message, event: Event[Any]) -> str:
    """Hold a message against all of them; returns its type."""
    written = json.loads(encode(event))
    assert not complaints(SCHEMA, written), f"{event.type} at {message.subject}"
    name = event.type if event.type in TYPES else "event"
    assert not complaints(payload_schema(name), written), event.type
    official = JSONFormat().read(None, encode(event))
    assert (official.get_id(), official.get_type()) == (event.id, event.type)
    assert official.get_source() == event.source
    if (message.headers or {}).get("Content-Type") == CONTENT_TYPE:
        assert JSONFormat().read(None, message.payload).get_id() == event.id
    assert name == "event" or subject.parse(message.subject).role in TYPES[name].roles
    return event.type


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"id": ""}, "$.id"),
        ({"specversion": "0.3"}, "$.specversion"),
        ({"time": 7}, "$.time"),
        ({"data": {"text": 7}}, "$.data.text"),
        ({"data": {"tags": [7]}}, "$.data.tags[0]"),
        ({"data": None}, "$.data"),
        ({"dataschema": "urn:stratum:schema:stratum.memory.noted:1", "data": 1}, "$.data"),
        ({"dataschema": "https://example.com/note.json", "data": 1}, "$.data"),
    ],
)
def test_what_is_no_such_event_does_not_pass(change: dict[str, Any], where: str) -> None:
    noted = {"specversion": "1.0", "id": "1", "source": "/x", "type": "stratum.memory.noted"}
    assert complaints(SCHEMA, {**noted, "data": {"text": "t"}}) == []
    found = complaints(SCHEMA, {**noted, **change})
    assert found
    assert all(complaint.startswith(where) for complaint in found)


def test_a_version_that_is_not_this_one_is_left_unjudged() -> None:
    later = {"dataschema": "urn:stratum:schema:stratum.memory.noted:2", "data": 1}
    noted = {"specversion": "1.0", "id": "1", "source": "/x", "type": "stratum.memory.noted"}
    assert complaints(SCHEMA, {**noted, **later}) == []
