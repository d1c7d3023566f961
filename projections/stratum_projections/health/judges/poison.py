"""poison: a message that was worked on at one end after the other, and whose run never moved."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import CRITICAL, Asked, Finding
from stratum_projections.health.known import End, Known, Opened

KIND = "poison"
OWN_SECONDS = 1.0
"""How long a supervisor, which sees the ends itself, has to do by itself what they call for."""


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """The message is set aside, and the agent goes on with the next."""
    for agent, state in known.agents.items():
        deaths = config.of(agent).poison.deaths
        for end in state.ends:
            held = [each for each in end.ended.held if each.begun and each.deaths >= deaths]
            for each in held:
                yield _finding(known, agent, end, each)


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    command = known.agent(opened.incident.agent).parked.get(opened.incident.about, "")
    outcome = known.outcomes.get(command)
    return f"it is parked: {outcome.detail}" if outcome is not None and outcome.done else ""


def _finding(known: Known, agent: str, end: End, held: control.Held) -> Finding:
    place = f"{held.stream}-{held.sequence}"
    why = f"{place} was worked on at {held.deaths} ends of its processes in a row"
    ask = control.Command(reason=why, stream=held.stream, sequence=held.sequence)
    asks = place not in known.agent(agent).parked and known.seconds_since(end.at) >= OWN_SECONDS
    return Finding(
        kind=KIND, agent=agent, about=place, since_ns=end.at.ns, first=held.sequence,
        severity=CRITICAL, text=why,
        evidence={"message": held.sequence, "deaths": held.deaths, "ended": end.at.sequence},
        commands=(Asked(control.PARK, ask),) if asks else (),
    )  # fmt: skip
