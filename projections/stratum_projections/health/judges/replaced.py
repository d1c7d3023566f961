"""Putting another instance in the place of one that was found wrong, and whether that is done."""

from __future__ import annotations

from stratum_bus import control
from stratum_bus.heartbeat import SUPERVISOR
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Asked, Incident
from stratum_projections.health.known import Known, Life, Opened


def restart(life: Life, reason: str) -> tuple[Asked, ...]:
    """The command to restart an instance; none for a supervisor, which only its successor could
    follow.
    """
    if life.kind == SUPERVISOR:
        return ()
    return (Asked(control.RESTART, control.Command(instance=life.instance, reason=reason)),)


def replaced(known: Known, config: HealthConfig, opened: Opened) -> str:
    """Why an incident of an instance is over though it never recovered; "" where it is not.

    A supervised instance has a place (`slot`), which another one takes. A supervisor is followed by
    the next one on its host. Of others there have to be as many again as there were (`living`), or a
    person says that it is well so, by starting the agent again.
    """
    incident = opened.incident
    state = known.agent(incident.agent)
    if state.stopped:
        return "the agent was stopped by command"
    if state.quarantined:
        return "the agent is quarantined"
    slot = int(incident.evidence.get("slot", 0))
    if state.instances and slot > state.instances:
        return f"the agent was scaled down to {state.instances}"
    ready = [
        life
        for life in known.living(incident.agent, config.dead.seconds)
        if life.ready and life.instance != incident.instance
    ]
    if slot:
        ready = [life for life in ready if life.slot == slot]
        return f"{ready[0].instance} has taken its place" if ready else ""
    if state.forgiven_ns > opened.at.ns:
        return "a person had the agent start again"
    heirs = [life for life in ready if _follows(life, incident)]
    if heirs:
        return f"{heirs[0].instance} runs in its place"
    if len(ready) >= int(incident.evidence.get("living", 1)):
        return f"{', '.join(sorted(life.instance for life in ready)[:3])} run in its place"
    return ""


def _follows(life: Life, incident: Incident) -> bool:
    """Whether it is a supervisor that came behind the last beat of the one that is gone."""
    came = life.first.sequence > int(incident.evidence.get("last_beat", 0))
    here = life.beat is not None and life.beat.host == incident.evidence.get("host")
    return life.kind == SUPERVISOR and came and here
