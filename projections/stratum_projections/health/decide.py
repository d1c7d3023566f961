"""From what is known to what is said: incidents opened and closed, and commands, at one tick."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from stratum_bus import control
from stratum_bus.publish import Append
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import (
    Finding,
    Incident,
    closing,
    commanding,
    opening,
)
from stratum_projections.health.judges import AGENT, INSTANCE, JUDGES
from stratum_projections.health.known import NS, Known, Opened


class Decision(Struct, frozen=True):
    """What is to be stored at once about one agent, or not at all.

    `expected_sequence` is that of the agent's last incident event: where another health projector
    was faster, none of it is stored.
    """

    agent: str
    appends: list[Append]
    expected_sequence: int

    @property
    def ids(self) -> list[str]:
        return [append.event.id for append in self.appends]


def decide(known: Known, config: HealthConfig) -> list[Decision]:
    """All that is to be said now. A pure function: the same knowledge makes the same events."""
    found = _findings(known, config)
    appends: dict[str, list[Append]] = {}

    def add(agent: str, append: Append) -> None:
        appends.setdefault(agent, []).append(append)

    for opened in known.open.values():
        judge = JUDGES.get(opened.incident.kind)
        finding = found.pop(opened.incident.key, None)
        if judge is None:
            continue
        if over := judge.over(known, config, opened):
            given = ", ".join(opened.given)
            add(
                opened.incident.agent,
                closing(opened.id, opened.incident, over, given, known.now.ns),
            )
            continue
        for append in _due(known, config, opened, finding):
            add(opened.incident.agent, append)
    for finding in found.values():
        add(finding.agent, opening(finding, known.now.ns))
        for asked in finding.commands:
            add(
                finding.agent,
                commanding(finding.id, finding.agent, asked.name, asked.what, known.now.ns),
            )
    return [
        Decision(agent, events, known.agent(agent).last_incident)
        for agent, events in appends.items()
        if known.agent(agent).decided_ns <= known.now.ns
    ]


def _findings(known: Known, config: HealthConfig) -> dict[tuple[str, str, str, str], Finding]:
    """What the judges find, one name for each thing."""
    found: dict[tuple[str, str, str, str], Finding] = {}
    for judge in JUDGES.values():
        for finding in judge.judge(known, config):
            key = finding.key
            if key in found or known.closed.get(key, -1) >= finding.since_ns:
                continue
            if key not in known.open and _gives_way(known, judge.scope, finding, found.values()):
                continue
            found[key] = finding
    return found


def _gives_way(known: Known, scope: str, finding: Finding, before: Iterable[Finding]) -> bool:
    """Whether what is found is only another side of something that already has a name."""
    named: list[Finding | Incident] = [opened.incident for opened in known.open.values()]
    named += before
    if scope == INSTANCE:
        return any(
            each.agent == finding.agent
            and JUDGES[each.kind].scope == INSTANCE
            and (each.instance == finding.instance or not finding.instance or not each.instance)
            for each in named
            if each.kind in JUDGES
        )
    if scope == AGENT:
        return any(
            each.agent == finding.agent and JUDGES[each.kind].scope in (INSTANCE, AGENT)
            for each in named
            if each.kind in JUDGES
        )
    return False


def _due(
    known: Known, config: HealthConfig, opened: Opened, finding: Finding | None
) -> Iterable[Append]:
    """Commands for an open incident: those that became due, and the call for a person."""
    incident, now_ns = opened.incident, known.now.ns
    for asked in finding.commands if finding else ():
        if asked.name not in opened.given:
            yield commanding(opened.id, incident.agent, asked.name, asked.what, now_ns)
    late = (now_ns - opened.at.ns) / NS >= config.escalate_seconds
    if late and control.ESCALATE not in opened.given:
        given = f", though {', '.join(opened.given)} was given" if opened.given else ""
        text = f"{incident.agent} {incident.instance} {incident.kind}: {incident.text}"
        what = control.Command(
            reason=f"open for {config.escalate_seconds:g} s{given}", text=" ".join(text.split())
        )
        yield commanding(opened.id, incident.agent, control.ESCALATE, what, now_ns)
