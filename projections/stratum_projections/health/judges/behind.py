"""behind: a projector works, and is far behind the log's end for long."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.replaced import replaced
from stratum_projections.health.known import Known, Opened, moments

KIND = "behind"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """Nothing is asked for: a restart would only cost time."""
    for life in known.lives.values():
        if life.far_behind is None or life.beat is None:
            continue
        seconds = known.seconds_since(life.far_behind)
        if seconds >= config.behind.seconds:
            yield Finding(
                kind=KIND, agent=life.agent, instance=life.instance, since_ns=life.far_behind.ns,
                first=life.far_behind.sequence,
                text=f"it is {known.head - life.beat.progress} events behind, and was far behind "
                f"for {seconds:.0f} s",
                evidence={
                    **moments(behind_since=life.far_behind, last_beat=life.last),
                    "head": known.head, "position": life.beat.progress,
                },
            )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    life = known.lives.get((opened.incident.agent, opened.incident.instance))
    if life is not None and life.far_behind is None:
        return f"fewer than {config.behind.events} events are left"
    return replaced(known, config, opened)
