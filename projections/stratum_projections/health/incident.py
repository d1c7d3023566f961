"""Incidents: what was found wrong, as events under `control.<agent>.incident`.

An incident is opened by one event and closed by another that names it. The id of the first is made
of what the incident is about and of the first sequence of its evidence, so that whoever comes to the
same finding makes the same event.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from stratum_bus import control, subject
from stratum_bus.event import Event, new
from stratum_bus.message import utc
from stratum_bus.publish import Append
from stratum_bus.schema import event_type

TYPE = "stratum.health.incident"
INCIDENT = "incident"
SOURCE = "/health"

OPEN, CLOSED = "open", "closed"
WARNING, CRITICAL = "warning", "critical"
"""Severities: what may pass or is being mended, and what needs a person."""

Key = tuple[str, str, str, str]
"""Kind, agent, instance and what it is about: what is wrong once at a time."""


@event_type(TYPE, roles=control.CONTROL)
class Incident(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something is wrong with an agent, or was.

    `instance` "" means all instances. `about` is what else it is about: a run, a message
    (`LOG-17`), a stream. `since` is when it began, by the server's clock. `evidence` has numbers
    and the sequences where they stand. `command` is what was asked for. A closing event repeats
    the rest and adds `opened`, the id of the opening one, `until` and `over`, why it is over.
    """

    kind: str
    agent: str
    instance: str = ""
    about: str = ""
    since: datetime
    severity: str
    text: str
    evidence: dict[str, Any]
    command: str = ""
    status: str = OPEN
    opened: str = ""
    until: datetime | None = None
    over: str = ""

    @property
    def key(self) -> Key:
        return self.kind, self.agent, self.instance, self.about


class Asked(msgspec.Struct, frozen=True):
    """A command that is to be given, its incident left out."""

    name: str
    what: control.Command | control.RunRequest


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge holds to be so at this moment. `first` is the first sequence of its evidence."""

    kind: str
    agent: str
    instance: str = ""
    about: str = ""
    since_ns: int
    first: int
    severity: str = WARNING
    text: str
    evidence: dict[str, Any]
    commands: tuple[Asked, ...] = ()

    @property
    def key(self) -> Key:
        return self.kind, self.agent, self.instance, self.about

    @property
    def id(self) -> str:
        """Of the event that opens the incident."""
        place = "\0".join((*self.key, str(self.first)))
        digest = hashlib.sha256(place.encode()).hexdigest()[:12]
        return f"incident-{self.kind}-{digest}"


def opening(finding: Finding, now_ns: int) -> Append:
    """The event that opens the incident of a finding."""
    incident = Incident(
        kind=finding.kind, agent=finding.agent, instance=finding.instance, about=finding.about,
        since=utc(finding.since_ns), severity=finding.severity, text=finding.text,
        evidence=finding.evidence, command=", ".join(asked.name for asked in finding.commands),
    )  # fmt: skip
    return _append(finding.agent, INCIDENT, TYPE, incident, finding.id, "", now_ns)


def closing(id: str, incident: Incident, over: str, command: str, now_ns: int) -> Append:
    """The event that closes the incident opened by the event `id`. `command`: what was given."""
    closed = replace(
        incident, status=CLOSED, opened=id, until=utc(now_ns), over=over, command=command
    )
    return _append(incident.agent, INCIDENT, TYPE, closed, f"{id}-closed", id, now_ns)


def commanding(
    incident: str, agent: str, name: str, what: control.Command | control.RunRequest, now_ns: int
) -> Append:
    """The command that answers to an incident; its id is the same for whoever gives it."""
    what = replace(what, incident=incident)
    id = control.command_id(incident, name)
    return _append(agent, name, control.PREFIX + name, what, id, incident, now_ns)


def _append(
    agent: str, name: str, type: str, data: object, id: str, cause: str, now_ns: int
) -> Append:
    event: Event[Any] = new(type, data, source=SOURCE, id=id, time=utc(now_ns))
    if cause:
        event = replace(event, causationid=cause, correlationid=cause)
    return Append(subject.control(agent, name), event)
