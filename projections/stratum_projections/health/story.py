"""The story of an agent's health: what was seen, what was decided, what happened, with sequences."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from stratum_bus import control, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.event import RawEvent, typed
from stratum_bus.message import Message
from stratum_projections.health.incident import CLOSED, INCIDENT, Incident

SEEN, DECIDED, HAPPENED = "seen", "decided", "happened"
"""What a moment of the story is: a fact, a command, or what became of one."""


class Told(Struct, omit_defaults=True):
    """One moment. `of` is the incident, or the command, that it belongs to."""

    sequence: int
    time: datetime
    what: str
    name: str
    text: str
    by: str
    id: str
    of: str = ""
    data: dict[str, Any] = {}


class Case(Struct, omit_defaults=True):
    """An incident as it stands now; `closed_sequence` is 0 while it is open."""

    id: str
    sequence: int
    opened: datetime
    incident: Incident
    closed_sequence: int = 0

    @property
    def open(self) -> bool:
        return self.incident.status != CLOSED


async def cases(bus: Bus, agent: str | None, start: int | datetime) -> list[Case]:
    """Incidents of one agent or of all, by their opening; those opened since `start`, and those
    closed since then."""
    found: dict[str, Case] = {}
    async for message, event in _events(bus, f"control.{agent or '*'}.{INCIDENT}", 1):
        try:
            incident = typed(event, Incident).data
        except InvalidEvent:
            continue
        if incident.status != CLOSED:
            case = Case(event.id, message.sequence, message.time, incident)
            found.setdefault(event.id, case)
        elif incident.opened in found and found[incident.opened].open:
            case = found[incident.opened]
            case.incident, case.closed_sequence = incident, message.sequence
    return [case for case in found.values() if _since(case, start)]


async def story(bus: Bus, agent: str, start: int | datetime) -> list[Told]:
    """What happened to an agent since then, in the order of the log."""
    found: list[Told] = []
    async for message, event in _events(bus, f"control.{agent}.>", start):
        try:
            name = subject.parse(message.subject).type
            told = _told(message, event, name)
        except (InvalidEvent, InvalidName, msgspec.MsgspecError):
            continue
        if told is not None:
            found.append(told)
    return found


async def about(bus: Bus, agent: str, stream: str, sequence: int) -> list[Told]:
    """What happened to an agent for one message: the ends that it was in hand at, what was found wrong
    with it, and what was done about that, in the order of the log."""
    place = f"{stream}-{sequence}"
    found: list[Told] = []
    asked: set[str] = set()
    for told in await story(bus, agent, sequence if stream == "LOG" else 1):
        if _concerns(told, place) or (told.name == control.OUTCOME and told.of in asked):
            found.append(told)
            asked.add(told.id)
    return found


def _concerns(told: Told, place: str) -> bool:
    match told.name:
        case control.ENDED:
            held = told.data.get("held", ())
            return any(each.get("begun") and _place(each) == place for each in held)
        case "incident":
            evidence = told.data.get("evidence", {})
            places = (told.data.get("about"), evidence.get("message"), *_begun(evidence))
            return place in places
        case control.PARK:
            return _place(told.data) == place
    return False


def _begun(evidence: dict[str, Any]) -> list[str]:
    """The messages that were worked on, as the judges write them."""
    return [each if isinstance(each, str) else _place(each) for each in evidence.get("begun", ())]


def _place(data: dict[str, Any]) -> str:
    return f"{data.get('stream', 'LOG')}-{data.get('sequence')}"


async def _events(
    bus: Bus, filter: str, start: int | datetime
) -> AsyncIterator[tuple[Message, RawEvent]]:
    async with bus.read(filters=[filter], start=start) as reader:
        async for message in reader:
            try:
                yield message, message.event()
            except InvalidEvent:
                continue


def _since(case: Case, start: int | datetime) -> bool:
    if isinstance(start, int):
        return max(case.sequence, case.closed_sequence) >= start
    return max(case.opened, case.incident.until or case.opened) >= start


def _told(message: Message, event: RawEvent, name: str) -> Told | None:
    data: dict[str, Any] = msgspec.json.decode(event.data) if event.data is not None else {}
    match name:
        case "incident":
            what, text, of = SEEN, *_incident(event)
        case control.ENDED:
            what, text, of = HAPPENED, _ended(typed(event, control.Ended).data), ""
        case control.STARTED:
            started = typed(event, control.Started).data
            what, text, of = HAPPENED, _started(started), started.command
        case control.OUTCOME:
            outcome = typed(event, control.Outcome).data
            done = "done" if outcome.done else "not done"
            what, text, of = HAPPENED, f"{done}: {outcome.detail}".rstrip(": "), outcome.command
        case _ if name in (*control.COMMANDS, control.RUN_CANCEL):
            what, text, of = DECIDED, _command(data), str(data.get("incident", ""))
        case _:
            return None
    by = event.source.strip("/")
    return Told(message.sequence, message.time, what, name, text, by, event.id, of, data)


def _incident(event: RawEvent) -> Sequence[str]:
    incident = typed(event, Incident).data
    who = f" {incident.instance or incident.about}".rstrip()
    if incident.status == CLOSED:
        return f"{incident.kind}{who} is over: {incident.over}", incident.opened
    return f"{incident.kind}{who}: {incident.text} ({_evidence(incident)})", event.id


def _evidence(incident: Incident) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in incident.evidence.items())


def _short(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:59] + "…"


def _ended(ended: control.Ended) -> str:
    how = ended.signal or f"exit code {ended.code}"
    asked = "as it was told" if ended.wanted else "by itself"
    held = [f"{each.stream}-{each.sequence}" for each in ended.held if each.begun]
    hand = f", working on {', '.join(held[:5])}" if held else ""
    return (
        f"{ended.instance} (pid {ended.pid}) ended {asked} after {ended.seconds:.1f} s: {how}{hand}"
    )


def _started(started: control.Started) -> str:
    warm = " from a warm spare" if started.warm else ""
    return f"{started.instance} (pid {started.pid}) was started{warm}"


def _command(data: dict[str, Any]) -> str:
    parts = [str(data[name]) for name in ("instance", "run") if data.get(name)]
    if data.get("sequence"):
        parts.append(f"{data.get('stream', 'LOG')}-{data['sequence']}")
    if data.get("instances"):
        parts.append(f"to {data['instances']}")
    why = str(data.get("reason") or data.get("text") or "")
    return ": ".join(part for part in (" ".join(parts), why) if part)
