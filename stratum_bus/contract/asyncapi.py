"""The AsyncAPI 3 document: channels are the grammar of subjects, messages the types of events.

Operations are seen by who takes part: what it sends, and what it receives. The channels of a
project's agents come beside those of the grammar, which all of them are part of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from stratum_bus import subject
from stratum_bus.contract.grammar import EXAMPLES, address, example, field_of, meaning
from stratum_bus.contract.schemas import Schema, envelope, schemas_of
from stratum_bus.event import CONTENT_TYPE, HEADER_CONTENT_TYPE, HEADER_ID, Raw
from stratum_bus.schema import EventType, schema_uri
from stratum_bus.timer import Due

VERSION = "3.0.0"
CONTRACT_VERSION = "1.0.0"
"""Of the agreements themselves: the first number changes when a participant would have to."""

LOCAL = "nats://127.0.0.1:4222"

ENVELOPE = "stratum.Envelope"
"""A name among the schemas that no Struct has."""

_ABOUT = """\
Every action of an agent is an event on a NATS server with JetStream, and any NATS client takes part. \
A channel is a subject; `x-jetstream` names the stream that stores it. Publish as a request: the answer \
says where it is stored. Receive with a durable consumer of the stream, filtered on the subject."""

_OPERATIONS = (
    ("sendMessage", "send", "inbox", "Send a message to one agent."),
    ("receiveMessage", "receive", "inbox", "Receive what is sent to you."),
    ("publishTopic", "send", "topic", "Say something to all who follow the topic."),
    ("followTopic", "receive", "topic", "Receive what is said on a topic."),
    ("noteMemory", "send", "memory", "Note something, revise a note or take it back."),
    ("readMemory", "receive", "memory", "Read an agent's notes, from the first on."),
    ("journalRun", "send", "run", "Add to a run's journal, as its owner or as an input to it."),
    ("readRun", "receive", "run", "Read a run's journal, from the first entry on."),
    ("giveCommand", "send", "control", "Ask for something, or say what became of it."),
    ("obeyCommand", "receive", "control", "Learn what is asked for, and what became of it."),
    ("buryMessage", "send", "dead", "Keep what could not be handled, with the reason."),
    ("readDeadLetters", "receive", "dead", "Learn what could not be handled."),
    ("putBlob", "send", "blob", "Store content under its digest, once."),
    ("setTimer", "send", "timer", "Have the server say something at a later time."),
    ("timerFired", "receive", "fire", "Learn that a timer is due."),
    ("beat", "send", "health", "Say that you live, and how far you are."),
)


class Participant(msgspec.Struct, frozen=True):
    """An agent of a project. `receives` are the types it handles, None where that is not known."""

    name: str
    receives: tuple[str, ...] | None
    follows: tuple[str, ...] = ()


class Contract(msgspec.Struct, frozen=True):
    """What a document is made of. `server` is an address, whose user and password are left out."""

    types: list[EventType]
    agents: list[Participant] = []
    server: str = LOCAL


def document(contract: Contract) -> dict[str, Any]:
    """The document, as plain values."""
    handled = {type for agent in contract.agents for type in (agent.receives or ())}
    unknown = handled - {name for each in contract.types for name in (each.name, *each.former)}
    channels = {role: _channel(role, contract.types) for role in subject.ROLES}
    operations = {name: _operation(*rest) for name, *rest in _OPERATIONS}
    for agent in sorted(contract.agents, key=lambda agent: agent.name):
        _add_agent(agent, contract.types, channels, operations)
    channels["stored"] = {
        "address": None,
        "description": "Where the answer to a request goes: its reply subject.",
        "messages": {"stored": _ref("messages", "stored")},
    }
    return {
        "asyncapi": VERSION,
        "info": {"title": _title(contract), "version": CONTRACT_VERSION, "description": _ABOUT},
        "defaultContentType": CONTENT_TYPE,
        "servers": {"nats": _server(contract.server)},
        "channels": channels,
        "operations": operations,
        "components": _components(contract.types, unknown),
    }


def _title(contract: Contract) -> str:
    if not contract.agents:
        return "Stratum"
    return f"Stratum with {', '.join(sorted(agent.name for agent in contract.agents))}"


def _server(url: str) -> dict[str, Any]:
    host = urlsplit(url.partition(",")[0]).netloc.rpartition("@")[2] or url
    return {"host": host, "protocol": "nats", "description": "A NATS server with JetStream."}


def _channel(role: str, known: Iterable[EventType]) -> dict[str, Any]:
    types = sorted(each.name for each in known if role in each.roles)
    generic = {
        "blob": ["blob"], "timer": ["timer"], "fire": ["timer"],
        "inbox": ["event", "json"], "topic": ["event", "json"], "memory": ["json"],
    }.get(role, [])  # fmt: skip
    return {
        **_place(role, {}),
        "description": f"{meaning(role)} Example: `{example(role)}`.",
        "messages": {name: _ref("messages", name) for name in (*generic, *types)},
    }


def _place(role: str, known: dict[str, str]) -> dict[str, Any]:
    free = [field for field in subject.ROLES[role] if field not in known]
    parameters = {
        field: {"description": _sentence(field_of(role, field)), "examples": [EXAMPLES[field]]}
        for field in free
    }
    return {
        "address": address(role, **known),
        **({"parameters": parameters} if parameters else {}),
        "x-jetstream": {"stream": subject.STREAM_OF_ROLE[role]},
    }


def _operation(action: str, channel: str, summary: str) -> dict[str, Any]:
    made = {"action": action, "channel": _channel_ref(channel), "summary": summary}
    if action == "send" and channel != "health":  # beats are not waited for
        made["reply"] = {"channel": _channel_ref("stored")}
    return made


def _add_agent(
    agent: Participant,
    known: Iterable[EventType],
    channels: dict[str, Any],
    operations: dict[str, Any],
) -> None:
    """What it receives; what it sends is known to nobody before it does."""
    names = {name: each.name for each in known for name in (each.name, *each.former)}

    def add(role: str, key: str, operation: str, what: str, **fixed: str) -> None:
        messages = (
            [names.get(fixed["type"], fixed["type"])] if "type" in fixed else ["event", "json"]
        )
        channels[key] = {
            **_place(role, fixed),
            "description": what,
            "messages": {name: _ref("messages", name) for name in messages},
        }
        operations[operation] = {"action": "receive", "channel": _channel_ref(key)}

    if agent.receives is None:
        said = f"The inbox of {agent.name}."
        add("inbox", f"{agent.name}.inbox", f"{agent.name}.receives", said, to=agent.name)
    for type in sorted(agent.receives or ()):
        said = f"What {agent.name} handles of its inbox as {type}."
        key, operation = f"{agent.name}.inbox.{type}", f"{agent.name}.receives.{type}"
        add("inbox", key, operation, said, to=agent.name, type=type)
    for type in sorted(agent.follows):
        said = f"The topic {type}."
        add("topic", f"topic.{type}", f"{agent.name}.follows.{type}", said, type=type)


def _generic() -> dict[str, Any]:
    """Messages that are of no declared type."""
    id_header = {HEADER_ID: {"type": "string", "description": "Within two minutes stored once."}}
    return {
        "event": {
            "name": "event", "title": "Any event", "contentType": CONTENT_TYPE,
            "headers": _headers(), "payload": _ref("schemas", ENVELOPE),
        },
        "json": {
            "name": "json", "title": "Bare JSON", "contentType": "application/json",
            "summary": "Completed by who reads it: type and source are those of the subject.",
            "headers": {"type": "object", "properties": id_header}, "payload": {},
        },
        "blob": {
            "name": "blob", "title": "Content of a blob", "contentType": "application/octet-stream",
            "payload": {"type": "string", "format": "binary"},
        },
        "timer": {
            "name": "timer", "title": "A timer", "contentType": "application/json",
            "headers": {
                "type": "object",
                "properties": {
                    "Nats-Schedule": {"type": "string", "description": "When, as in `@at <time>`."},
                    "Nats-Schedule-Target": {"type": "string", "description": "Its `fire` subject."},
                },
            },
            "payload": _ref("schemas", "Due"),
        },
        "stored": {
            "name": "stored", "title": "The server's answer", "contentType": "application/json",
            "payload": {
                "type": "object",
                "properties": {
                    "stream": {"type": "string"},
                    "seq": {"type": "integer", "description": "Its place in the stream."},
                    "duplicate": {"type": "boolean", "description": "It was stored before."},
                    "error": {"type": "object", "description": "Nothing was stored."},
                },
            },
        },
    }  # fmt: skip


def _components(known: Sequence[EventType], unknown: Iterable[str]) -> dict[str, Any]:
    kinds = [Due, *(each.cls for each in known)]
    (_, *data), named = schemas_of(kinds, "#/components/schemas/{name}")
    messages = {name: _message(EventType(name, Raw, 1, (), {}), {}, {}) for name in unknown}
    for each, schema in zip(known, data, strict=True):
        about = named.get(schema.get("$ref", "").rpartition("/")[2], schema)
        messages[each.name] = _message(each, schema, about)
    envelope_ = {key: value for key, value in envelope().items() if not key.startswith("$")}
    return {
        "messages": {**_generic(), **{name: messages[name] for name in sorted(messages)}},
        "schemas": {ENVELOPE: envelope_, **named},
    }


def _message(known: EventType, data: Schema, about: Schema) -> dict[str, Any]:
    names = [known.name, *known.former]
    is_of: Schema = {"type": {"const": known.name} if len(names) == 1 else {"enum": names}}
    if known.version > 1:
        is_of["dataschema"] = {"enum": [schema_uri(each, known.version) for each in names]}
    if data:
        is_of["data"] = data
    summary = str(about.get("description", "")).partition("\n")[0]
    return {
        "name": known.name,
        "title": about.get("title", known.name),
        **({"summary": summary} if summary else {}),
        "contentType": CONTENT_TYPE,
        "headers": _headers(),
        "correlationId": {"location": "$message.payload#/correlationid"},
        "payload": {"allOf": [_ref("schemas", ENVELOPE), {"type": "object", "properties": is_of}]},
    }


def _headers() -> Schema:
    described = {
        HEADER_ID: {
            "type": "string",
            "description": "The event's id: within two minutes stored once.",
        },
        HEADER_CONTENT_TYPE: {"const": CONTENT_TYPE},
    }
    return {"type": "object", "properties": described}


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + "."


def _channel_ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/channels/{name}"}


def _ref(part: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{part}/{name}"}
