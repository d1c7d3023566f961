"""looping: a run makes the same call with the same arguments again and again."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus.control import RUN_CANCEL, RunRequest
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Asked, Finding
from stratum_projections.health.known import Known, Opened

KIND = "looping"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """The run is cancelled: it would loop again wherever it is started."""
    for (agent, run), seen in known.repetitions.items():
        own = config.of(agent).looping
        if seen.times < own.repeats:
            continue
        why = f"{seen.call} was called {seen.times} times in its last {seen.among} calls"
        yield Finding(
            kind=KIND, agent=agent, about=run, since_ns=known.now.ns, first=seen.first,
            text=f"run {run} loops: {why}",
            evidence={
                "call": seen.call, "times": seen.times, "among": seen.among,
                "first_entry": seen.first, "last_entry": seen.last,
            },
            commands=(Asked(RUN_CANCEL, RunRequest(run, why)),),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    """Runs that are in nobody's hand are forgotten."""
    incident = opened.incident
    seen = known.repetitions.get((incident.agent, incident.about))
    if seen is None:
        return "nobody works on the run any more"
    return "the run goes on" if seen.times < config.of(incident.agent).looping.repeats else ""
