"""The log as the harness and the checker read it: each event taken apart, nothing more."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.event import RawEvent
from stratum_bus.message import Message


class Entry(Struct, frozen=True):
    """An event where it stands. `time` is the stream's, in seconds since 1970."""

    sequence: int
    time: float
    subject: str
    id: str
    type: str
    source: str
    cause: str
    conversation: str
    data: Any

    @property
    def tokens(self) -> list[str]:
        return self.subject.split(".")

    @property
    def agent(self) -> str:
        return self.tokens[1]


def entry(message: Message) -> Entry:
    event: RawEvent = message.event()
    data = msgspec.json.decode(event.data) if event.data is not None else None
    return Entry(
        message.sequence, message.time_ns / 1e9, message.subject, event.id, event.type,
        event.source, event.causationid or "", event.correlationid or "", data,
    )  # fmt: skip


async def read_all(bus: Bus, *filters: str) -> list[Entry]:
    """All that is stored, in its order."""
    async with bus.read(filters=filters) as reader:
        return [entry(message) async for message in reader]


class Case(Struct):
    """An incident, opened and perhaps closed, as the log tells it."""

    id: str
    opened: Entry
    closed: list[Entry] = []

    @property
    def kind(self) -> str:
        return str(self.opened.data["kind"])

    @property
    def agent(self) -> str:
        return self.opened.agent

    @property
    def instance(self) -> str:
        return str(self.opened.data.get("instance", ""))

    @property
    def about(self) -> str:
        return str(self.opened.data.get("about", ""))

    @property
    def evidence(self) -> dict[str, Any]:
        found: dict[str, Any] = self.opened.data["evidence"]
        return found

    def __str__(self) -> str:
        return (
            f"{self.kind} of {self.agent} {self.instance or self.about} at {self.opened.sequence}"
        )


def cases(log: list[Entry]) -> list[Case]:
    """The incidents in a part of the log."""
    found: dict[str, Case] = {}
    for each in log:
        if each.type != "stratum.health.incident":
            continue
        if each.data.get("status", "open") == "open":
            found[each.id] = Case(each.id, each)
        elif each.data["opened"] in found:
            found[each.data["opened"]].closed.append(each)
    return list(found.values())
