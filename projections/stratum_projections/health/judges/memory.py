"""memory: the resident memory of an instance grows steadily."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Asked, Finding
from stratum_projections.health.judges.replaced import replaced
from stratum_projections.health.known import NS, Known, Life, Opened, Sample, moments

KIND = "memory"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for life in known.lives.values():
        own = config.of(life.agent).memory
        parts = _parts(known, life, own.seconds)
        values = [each.value for each in parts]
        if not parts or values[-1] - values[0] < own.bytes:
            continue
        if all(a < b for a, b in pairwise(values)):
            grown = (values[-1] - values[0]) >> 20
            ask = control.Command(instance=life.instance, reason=f"it grew by {grown} MiB")
            yield Finding(
                kind=KIND, agent=life.agent, instance=life.instance, since_ns=parts[0].at.ns,
                first=parts[0].at.sequence,
                text=f"its memory grew by {grown} MiB to {values[-1] >> 20} MiB "
                f"within {own.seconds:g} s",
                evidence={
                    **moments(first_beat=parts[0].at, last_beat=life.last),
                    "bytes": values[-1], "bytes_before": values[0], "slot": life.slot,
                    "living": len(known.living(life.agent, config.dead.seconds)),
                },
                commands=(Asked(control.RESTART, ask),),
            )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    life = known.lives.get((opened.incident.agent, opened.incident.instance))
    if life is not None:
        parts = _parts(known, life, config.of(life.agent).memory.seconds)
        if parts and parts[-1].value <= parts[0].value:
            return "it grows no more"
    return replaced(known, config, opened)


def _parts(known: Known, life: Life, seconds: float) -> list[Sample]:
    return life.memory.parts(known.now.ns, int(seconds * NS), 4)
