"""crash_loop: an agent's processes end again and again, whatever they have in hand."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus import control
from stratum_bus.heartbeat import HEALTH, PROJECTOR
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import CRITICAL, Asked, Finding
from stratum_projections.health.judges.poison import KIND as POISON
from stratum_projections.health.judges.poison import OWN_SECONDS
from stratum_projections.health.known import NS, End, Known, Opened

KIND = "crash_loop"
PARTS = (PROJECTOR, HEALTH)
"""The names of what is supervised beside the agents."""


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """No restart will mend it: nothing is started any more, and a person is told. What all agents
    need is tried again nevertheless."""
    for agent, state in known.agents.items():
        own = config.of(agent).crash_loop
        after = known.now.ns - int(own.seconds * NS)
        after = max(after, known.closed.get((KIND, agent, "", ""), 0), state.forgiven_ns)
        ends = [
            end
            for end in state.ends
            if not end.ended.wanted and end.at.ns > after and not _explained(known, agent, end)
        ]
        if len(ends) < own.deaths:
            continue
        last = ends[-1]
        asks = not state.quarantined and known.seconds_since(last.at) >= OWN_SECONDS
        why = f"{len(ends)} of its processes ended by themselves within {own.seconds:g} s"
        codes = ", ".join(
            dict.fromkeys(e.ended.signal or f"exit code {e.ended.code}" for e in ends)
        )
        yield Finding(
            kind=KIND, agent=agent, since_ns=ends[0].at.ns, first=ends[0].at.sequence,
            severity=CRITICAL, text=f"{why} ({codes})",
            evidence={"ended": [end.at.sequence for end in ends], "within_seconds": own.seconds},
            commands=_asked(agent, why) if asks else (),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    """When a person let it start again, and it holds."""
    agent = opened.incident.agent
    state, own = known.agent(agent), config.of(agent)
    if state.quarantined or not state.started:
        return ""
    held = [
        life
        for life in known.living(agent, own.dead.seconds)
        if life.ready and known.seconds_since(life.first) >= own.crash_loop.seconds
    ]
    return f"{held[0].instance} has held for {own.crash_loop.seconds:g} s" if held else ""


def _explained(known: Known, agent: str, end: End) -> bool:
    """Whether a poison message had been found to cause it."""
    for held in end.ended.held:
        key = POISON, agent, "", f"{held.stream}-{held.sequence}"
        if held.begun and (key in known.open or key in known.closed):
            return True
    return False


def _asked(agent: str, why: str) -> tuple[Asked, ...]:
    if agent in PARTS:
        text = f"{agent}: {why}. It is tried again and again. See its log, and mend it."
        return (Asked(control.ESCALATE, control.Command(reason=why, text=text)),)
    return (
        Asked(control.QUARANTINE, control.Command(reason=why)),
        Asked(control.ESCALATE, control.Command(reason=why, text=_advice(agent, why))),
    )


def _advice(agent: str, why: str) -> str:
    return (
        f"{agent}: {why}. It is quarantined. See `stratum health why {agent}` and its log, "
        f"mend it, then `stratum agent start {agent}`."
    )
