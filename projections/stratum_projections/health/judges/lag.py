"""lag: an inbox grows and grows, though its agent works."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.known import NS, Inbox, Known, Opened, Sample

KIND = "lag"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """Nothing is asked for: more instances, or a faster handler, are a person's choice."""
    for agent, inbox in known.inboxes.items():
        own = config.of(agent).lag
        parts = _parts(known, inbox, own.seconds)
        if not parts or parts[-1].value < own.messages:
            continue
        values = [each.value for each in parts]
        if all(a < b for a, b in pairwise(values)):
            grown = values[-1] - values[0]
            yield Finding(
                kind=KIND, agent=agent, since_ns=parts[0].at.ns, first=parts[0].at.sequence,
                text=f"{values[-1]} messages wait for it, {grown} more than {own.seconds:g} s ago",
                evidence={
                    "pending": values[-1], "pending_before": values[0],
                    "grown_a_second": round(grown / own.seconds, 1),
                    "first_tick": parts[0].at.sequence, "last_tick": known.now.sequence,
                },
            )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    inbox = known.inboxes.get(opened.incident.agent)
    own = config.of(opened.incident.agent).lag
    if inbox is None or inbox.position.pending < own.messages:
        return f"fewer than {own.messages} messages wait"
    parts = _parts(known, inbox, own.seconds)
    return "it grows no more" if parts and parts[-1].value <= parts[0].value else ""


def _parts(known: Known, inbox: Inbox, seconds: float) -> list[Sample]:
    return inbox.pending.parts(known.now.ns, int(seconds * NS), 3)
