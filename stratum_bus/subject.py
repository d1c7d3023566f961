"""The subject grammar, and the only place that builds and parses subjects.

A token is 1 to 64 of `A-Z a-z 0-9 _ -`. Agent names, kinds and run ids are one token; an event
type is tokens joined by dots, and always the tail of its subject.
"""

from __future__ import annotations

import re

import msgspec

from stratum_bus.errors import InvalidName

TOKEN_MAX = 64
TYPE_MAX = 160
TOKEN_PATTERN = rf"[A-Za-z0-9_-]{{1,{TOKEN_MAX}}}"
TYPE_PATTERN = rf"{TOKEN_PATTERN}(?:\.{TOKEN_PATTERN})*"

_TYPE = re.compile(TYPE_PATTERN, re.ASCII)
_FORBIDDEN = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)

ROLES = {
    "inbox": ("to", "sender", "type"),
    "topic": ("sender", "type"),
    "memory": ("agent", "kind"),
    "run": ("agent", "run"),
    "control": ("agent", "type"),
    "dead": ("agent", "type"),
    "blob": ("digest",),
    "timer": ("agent", "run", "name"),
    "fire": ("agent", "run", "name"),
    "health": ("agent", "instance"),
}
"""The first token of each subject and the fields that follow; `type` takes all that is left."""

STREAM_OF_ROLE = {
    **dict.fromkeys(("inbox", "topic", "memory", "run", "control", "dead"), "LOG"),
    "blob": "BLOBS",
    "timer": "TIMERS",
    "fire": "TIMERS",
    "health": "HEALTH",
}


PATTERN_OF_ROLE = {
    role: rf"{role}(?:\.{TOKEN_PATTERN}){{{len(fields)}{',' if fields[-1] == 'type' else ''}}}"
    for role, fields in ROLES.items()
}
"""What the subjects of each role are like, as regular expressions for the whole of one."""

_WRITABLE = re.compile("|".join(PATTERN_OF_ROLE.values()), re.ASCII)


class Subject(msgspec.Struct, frozen=True, omit_defaults=True):
    """A parsed subject: its role and the fields that the role has (the others are empty)."""

    role: str
    to: str = ""
    sender: str = ""
    agent: str = ""
    type: str = ""
    kind: str = ""
    run: str = ""
    name: str = ""
    instance: str = ""
    digest: str = ""


def token(value: str, what: str = "name") -> str:
    """Return `value` if it can be one subject token; raise InvalidName with the rule it broke."""
    if not isinstance(value, str) or not value:
        raise InvalidName(what, value, "it must have at least one character")
    if bad := _FORBIDDEN.search(value):
        names = {".": "a dot", " ": "a space", "*": "a wildcard", ">": "a wildcard"}
        found = names.get(bad.group(), repr(bad.group()))
        raise InvalidName(what, value, f"it has {found}; only A-Z a-z 0-9 _ - may be used")
    if len(value) > TOKEN_MAX:
        raise InvalidName(what, value, f"it has {len(value)} characters, at most {TOKEN_MAX} fit")
    return value


def event_type(value: str) -> str:
    """Return `value` if it can be an event type: tokens joined by single dots."""
    if not isinstance(value, str) or not value:
        raise InvalidName("event type", value, "it must have at least one character")
    if len(value) > TYPE_MAX:
        raise InvalidName(
            "event type", value, f"it has {len(value)} characters, at most {TYPE_MAX} fit"
        )
    if not _TYPE.fullmatch(value):
        rule = "it must be words of A-Z a-z 0-9 _ - joined by single dots, as in note.ready"
        raise InvalidName("event type", value, rule)
    return value


def inbox(to: str, sender: str, type: str) -> str:
    """A message for one agent: `inbox.<to>.<from>.<type>`."""
    return f"inbox.{token(to, 'agent name')}.{token(sender, 'sender name')}.{event_type(type)}"


def topic(sender: str, type: str) -> str:
    """A message for all who follow the type: `topic.<from>.<type>`."""
    return f"topic.{token(sender, 'sender name')}.{event_type(type)}"


def memory(agent: str, kind: str) -> str:
    """The append-only memory log of an agent: `memory.<agent>.<kind>`."""
    return f"memory.{token(agent, 'agent name')}.{token(kind, 'memory kind')}"


def run(agent: str, run: str) -> str:
    """The journal of one run: `run.<agent>.<run>`."""
    return f"run.{token(agent, 'agent name')}.{token(run, 'run id')}"


def control(agent: str, command: str) -> str:
    """Commands to an agent, their outcomes and its incidents: `control.<agent>.<command>`."""
    return f"control.{token(agent, 'agent name')}.{event_type(command)}"


def dead(agent: str, type: str) -> str:
    """A dead letter, and what was decided about it: `dead.<agent>.<type>`."""
    return f"dead.{token(agent, 'agent name')}.{event_type(type)}"


def blob(digest: str) -> str:
    """The first chunk of a blob: `blob.<sha256 in hex>`."""
    return f"blob.{token(digest, 'digest')}"


def timer(agent: str, run: str, name: str) -> str:
    """A scheduled message waiting in TIMERS; it fires on `fire` of the same fields."""
    return f"timer.{token(agent, 'agent name')}.{token(run, 'run id')}.{token(name, 'timer name')}"


def fire(agent: str, run: str, name: str) -> str:
    """Where a timer's message appears when it is due."""
    return f"fire.{token(agent, 'agent name')}.{token(run, 'run id')}.{token(name, 'timer name')}"


def health(agent: str, instance: str) -> str:
    """Heartbeats of one instance: `health.<agent>.<instance>`."""
    return f"health.{token(agent, 'agent name')}.{token(instance, 'instance')}"


def inbox_filters(agent: str, follows: tuple[str, ...] = ()) -> list[str]:
    """What an agent receives: its inbox and the topics it follows."""
    name = token(agent, "agent name")
    # the server refuses a filter that is there twice
    topics = dict.fromkeys(f"topic.*.{event_type(type)}" for type in follows)
    return [f"inbox.{name}.>", *topics]


def outbox_filters(agent: str) -> list[str]:
    """What an agent has sent: messages to any inbox, and its topics."""
    name = token(agent, "agent name")
    return [f"inbox.*.{name}.>", f"topic.{name}.>"]


def parse(subject: str) -> Subject:
    """Take a subject apart; raise InvalidName for one that is not of the grammar."""
    role, *rest = subject.split(".")
    fields = ROLES.get(role)
    if fields is None:
        raise InvalidName("subject", subject, f"it must start with one of {', '.join(ROLES)}")
    if fields[-1] == "type" and len(rest) > len(fields):
        rest = [*rest[: len(fields) - 1], ".".join(rest[len(fields) - 1 :])]
    if len(rest) != len(fields) or not all(rest):
        shape = ".".join([role, *(f"<{field}>" for field in fields)])
        raise InvalidName("subject", subject, f"it must have the form {shape}")
    return Subject(role, **dict(zip(fields, rest, strict=True)))


def writable(subject: str) -> str:
    """Return `subject` if it is of the grammar in every token; raise InvalidName otherwise.

    Parsing is lenient, for what others wrote; the server would even store a wildcard literally.
    """
    if _WRITABLE.fullmatch(subject) and len(subject) <= TYPE_MAX:
        return subject
    place = parse(subject)
    for field in ROLES[place.role]:
        value = getattr(place, field)
        if field == "type":
            event_type(value)
        else:
            token(value, f"subject {subject[:80]}: {field}")
    return subject


def stream_of(subject: str) -> str:
    """The stream that stores a subject of the grammar; raise InvalidName for any other."""
    role = subject.partition(".")[0]
    if role not in STREAM_OF_ROLE:
        raise InvalidName("subject", subject, f"it must start with one of {', '.join(ROLES)}")
    return STREAM_OF_ROLE[role]


def matches(filter: str, subject: str) -> bool:
    """Whether the server's filter (with `*` and `>`) takes the subject."""
    wanted, got = filter.split("."), subject.split(".")
    for i, part in enumerate(wanted):
        if part == ">":
            return len(got) > i
        if i >= len(got) or (part != "*" and part != got[i]):
            return False
    return len(wanted) == len(got)


def pattern(value: str) -> str:
    """Return `value` if it can be a server's filter: `*` for one token, a last `>` for the rest."""
    parts = value.split(".") if value else [""]
    for i, part in enumerate(parts):
        rule = ""
        if not part:
            rule = "it has an empty token"
        elif not part.isprintable() or any(char.isspace() for char in part):
            rule = "it has a space or a control character"
        elif ">" in part and (part != ">" or i < len(parts) - 1):
            rule = "> may only stand alone at the end, as in inbox.research.>"
        elif "*" in part and part != "*":
            rule = "* stands for a whole token, as in inbox.*.billing.>"
        if rule:
            raise InvalidName("filter", value, rule)
    return value


def overlap(one: str, other: str) -> bool:
    """Whether some subject is taken by both filters."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def covers(wide: str, narrow: str) -> bool:
    """Whether every subject that the filter `narrow` takes is also taken by `wide`."""
    ends = narrow.endswith(">") and not wide.endswith(">")
    return matches(wide, narrow) and not ends
