"""stalled: a projector stands still, though the log has more for it."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.replaced import replaced, restart
from stratum_projections.health.known import Known, Opened, moments

KIND = "stalled"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for life in known.lives.values():
        if life.behind is None or life.beat is None or life.blocked is not None:
            continue
        seconds = known.seconds_since(life.behind)
        if seconds < config.stalled.seconds:
            continue
        yield Finding(
            kind=KIND, agent=life.agent, instance=life.instance, since_ns=life.behind.ns,
            first=life.behind.sequence,
            text=f"it stands still for {seconds:.1f} s, and the log is at {known.head}",
            evidence={
                **moments(behind_since=life.behind, last_progress=life.progress),
                "head": known.head, "position": life.beat.progress,
                "slot": life.slot, "living": len(known.living(life.agent, config.dead.seconds)),
            },
            commands=restart(life, "it stands still behind the log"),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    life = known.lives.get((opened.incident.agent, opened.incident.instance))
    if life is not None and life.progress.sequence > opened.incident.evidence["behind_since"]:
        return "it goes on"
    return replaced(known, config, opened)
