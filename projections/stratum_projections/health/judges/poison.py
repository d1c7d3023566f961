"""poison: a message that was worked on at one end after the other, and whose run never moved; or one
that was found stuck at the same place again and again, whoever took it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import CRITICAL, Asked, Finding
from stratum_projections.health.known import Known, Moment, Opened

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
                place = f"{each.stream}-{each.sequence}"
                why = f"{place} was worked on at {each.deaths} ends of its processes in a row"
                evidence: dict[str, Any] = {"deaths": each.deaths, "ended": end.at.sequence}
                yield _finding(known, agent, place, end.at, why, evidence)
        for place, strikes in state.strikes.items():
            if len(strikes.at) >= deaths:
                why = f"{place} was found stuck {len(strikes.at)} times, at the same place"
                evidence = {"stuck": [each.sequence for each in strikes.at]}
                yield _finding(known, agent, place, strikes.at[-1], why, evidence)


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    command = known.agent(opened.incident.agent).parked.get(opened.incident.about, "")
    outcome = known.outcomes.get(command)
    return f"it is parked: {outcome.detail}" if outcome is not None and outcome.done else ""


def _finding(
    known: Known, agent: str, place: str, at: Moment, why: str, evidence: dict[str, Any]
) -> Finding:
    stream, _, sequence = place.rpartition("-")
    ask = control.Command(reason=why, stream=stream, sequence=int(sequence))
    asks = place not in known.agent(agent).parked and known.seconds_since(at) >= OWN_SECONDS
    return Finding(
        kind=KIND, agent=agent, about=place, since_ns=at.ns, first=int(sequence),
        severity=CRITICAL, text=why, evidence={"message": int(sequence), **evidence},
        commands=(Asked(control.PARK, ask),) if asks else (),
    )  # fmt: skip
