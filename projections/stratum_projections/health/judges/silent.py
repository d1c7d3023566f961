"""silent: messages wait for an agent, none is in hand, and its consumer hands nothing out."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Asked, Finding
from stratum_projections.health.known import Known, Opened

KIND = "silent"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for agent, inbox in known.inboxes.items():
        own = config.of(agent)
        if inbox.silent is None or known.agent(agent).resting:
            continue
        since = known.newest(agent, inbox.silent)
        seconds = known.seconds_since(since)
        if seconds < own.silent.seconds:
            continue
        place = inbox.position
        living = len(known.living(agent, own.dead.seconds))
        who = f"{living} of its instances live" if living else "none of its instances is there"
        ask = control.Command(reason="its consumer hands nothing out")
        yield Finding(
            kind=KIND, agent=agent, since_ns=since.ns, first=inbox.silent.sequence,
            text=f"{place.pending} messages wait, nothing was handed out for {seconds:.1f} s, "
            f"and {who}",
            evidence={
                "silent_since": inbox.silent.sequence, "silent_seconds": round(seconds, 3),
                "pending": place.pending, "delivered": place.delivered, "living": living,
            },
            commands=(Asked(control.RESTART, ask),),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    inbox = known.inboxes.get(opened.incident.agent)
    if inbox is None or inbox.silent is None:
        return "messages are handed out again"
    if inbox.silent.sequence > int(opened.incident.evidence["silent_since"]):
        return "messages were handed out again"
    return "the agent was told to rest" if known.agent(opened.incident.agent).resting else ""
