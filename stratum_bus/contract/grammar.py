"""The grammar of subjects as data and as a page: roles, tokens, streams, and the types on each."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from stratum_bus import subject
from stratum_bus.schema import EventType
from stratum_bus.stream import StreamSpec, load_streams

FIELDS = {
    "to": "the agent that receives it",
    "sender": "who sends it: an agent, or a name for what is none",
    "type": "the type of the event, whose dots make further tokens",
    "agent": "the agent whose it is",
    "kind": "what kind of note it is",
    "run": "the id of the run",
    "digest": "SHA-256 of the content, in hex",
    "name": "the name of the timer, one of its run",
    "instance": "the process, by the name it goes by",
}
"""Field of a subject to what it holds."""

EXAMPLES = {
    "to": "research",
    "sender": "billing",
    "type": "invoice.paid",
    "agent": "research",
    "kind": "note",
    "run": "rk5tq2wy7",
    "digest": "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4",
    "name": "3",
    "instance": "research-1",
}
FIELDS_OF_ROLE = {
    "control": {"type": "the command, or `outcome`, `started`, `ended` or `incident`"},
    "dead": {"type": "the type of the event that could not be handled"},
}
"""Where a field holds something else than it usually does."""

_TOKEN_WORDS = f"1 to {subject.TOKEN_MAX} of `A-Z a-z 0-9 _ -`"
_TYPE_WORDS = f"tokens joined by dots, up to {subject.TYPE_MAX} characters, and always the tail of its subject"
_EXAMPLES_OF_ROLE = {"control": {"type": "restart"}}
_DAY_NS = 86_400_000_000_000


def example(role: str) -> str:
    """A subject of the role."""
    values = {**EXAMPLES, **_EXAMPLES_OF_ROLE.get(role, {})}
    return subject.writable(".".join([role, *(values[field] for field in subject.ROLES[role])]))


def address(role: str, **known: str) -> str:
    """The subjects of a role with their fields in braces, but for those that are known."""
    fields = (known.get(field, f"{{{field}}}") for field in subject.ROLES[role])
    return ".".join([role, *fields])


def field_of(role: str, field: str) -> str:
    """What a field of the role's subjects holds."""
    return FIELDS_OF_ROLE.get(role, {}).get(field, FIELDS[field])


def meaning(role: str) -> str:
    """What is said under the subjects of a role, in a sentence."""
    function = {"blob": subject.blob}.get(role) or getattr(subject, role)
    said = (inspect.getdoc(function) or "").partition("\n")[0]
    return said.partition(": `")[0].rstrip(".") + "."


def grammar(known: Sequence[EventType]) -> dict[str, Any]:
    """All of it as plain values. `known` are the types to name with the roles they are on."""
    roles = {
        role: {
            "address": address(role),
            "meaning": meaning(role),
            "stream": subject.STREAM_OF_ROLE[role],
            "fields": {field: field_of(role, field) for field in fields},
            "pattern": f"^{subject.PATTERN_OF_ROLE[role]}$",
            "filter": f"{role}.>",
            "example": example(role),
            "types": sorted(each.name for each in known if role in each.roles),
        }
        for role, fields in subject.ROLES.items()
    }
    agent, follows = EXAMPLES["agent"], (EXAMPLES["type"],)
    return {
        "token": {"pattern": f"^{subject.TOKEN_PATTERN}$", "max": subject.TOKEN_MAX},
        "type": {"pattern": f"^{subject.TYPE_PATTERN}$", "max": subject.TYPE_MAX},
        "roles": roles,
        "filters": {
            "inbox": subject.inbox_filters(agent, follows),
            "outbox": subject.outbox_filters(agent),
        },
        "streams": {spec.name: _stream(spec) for spec in load_streams()},
    }


def page(known: Sequence[EventType]) -> str:
    """All of it as Markdown."""
    all = grammar(known)
    parts = [
        "# Subjects",
        "Written by `stratum contract subjects`; changes here are lost.",
        f"A token is {_TOKEN_WORDS}. An event type is {_TYPE_WORDS}.",
        _table(
            ("subject", "what it is", "stream"),
            [(f"`{r['address']}`", r["meaning"], r["stream"]) for r in all["roles"].values()],
        ),
        "## Fields",
        _table(("field", "what it holds"), _fields()),
        "## Examples",
        _table(
            ("role", "example"), [(role, f"`{r['example']}`") for role, r in all["roles"].items()]
        ),
        _of_an_agent(all["filters"]),
        "## Streams",
        _table(
            ("stream", "subjects", "kept", "deleting"),
            [
                (name, _code(s["subjects"]), s["kept"], s["deleting"])
                for name, s in all["streams"].items()
            ],
        ),
        "## Types",
        "The declared types of the events on each. Any other type is a valid event too.",
        _table(
            ("role", "types"),
            [(role, _code(r["types"])) for role, r in all["roles"].items() if r["types"]],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _fields() -> list[tuple[str, ...]]:
    others = [
        (f"`{{{field}}}` of `{role}`", what)
        for role, fields in FIELDS_OF_ROLE.items()
        for field, what in fields.items()
    ]
    return [*((f"`{{{field}}}`", what) for field, what in FIELDS.items()), *others]


def _of_an_agent(filters: dict[str, list[str]]) -> str:
    who = f"`{EXAMPLES['agent']}`, which follows the topic `{EXAMPLES['type']}`,"
    inbox, outbox = _code(filters["inbox"]), _code(filters["outbox"])
    return f"The inbox of the agent {who} is what the filters {inbox} take; its outbox is {outbox}."


def _stream(spec: StreamSpec) -> dict[str, Any]:
    """Its subjects, and what of it is not as the server has it by default."""
    usual = StreamSpec("", []).config()
    settings = {key: value for key, value in spec.config().items() if value != usual.get(key)}
    for key in ("name", "subjects", "description"):
        settings.pop(key, None)
    days = spec.max_age / _DAY_NS
    return {
        "subjects": spec.subjects,
        "kept": f"{days:g} day{'' if days == 1 else 's'}" if days else "no limit of age",
        "deleting": "refused" if spec.deny_delete and spec.deny_purge else "allowed",
        "settings": msgspec.to_builtins(settings),
    }


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _code(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
