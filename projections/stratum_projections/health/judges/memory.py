"""memory: the resident memory of an instance grows steadily."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.replaced import replaced, restart
from stratum_projections.health.known import NS, Known, Life, Opened, Sample, moments

KIND = "memory"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for life in known.lives.values():
        own = config.of(life.agent).memory
        for seconds, series in ((own.seconds, life.memory), (own.long_seconds, life.long_memory)):
            parts = series.parts(known.now.ns, int(seconds * NS), 4)
            values = [each.value for each in parts]
            grows = all(a < b for a, b in pairwise(values))
            if parts and grows and values[-1] - values[0] >= own.bytes:
                yield _finding(known, config, life, parts, seconds)
                break


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    life = known.lives.get((opened.incident.agent, opened.incident.instance))
    if life is not None:
        own = config.of(life.agent).memory
        parts = life.memory.parts(known.now.ns, int(own.seconds * NS), 4)
        if parts and parts[-1].value <= parts[0].value:
            return "it grows no more"
    return replaced(known, config, opened)


def _finding(
    known: Known, config: HealthConfig, life: Life, parts: list[Sample], seconds: float
) -> Finding:
    before, now = parts[0], parts[-1].value
    grown = (now - before.value) >> 20
    return Finding(
        kind=KIND, agent=life.agent, instance=life.instance, since_ns=before.at.ns,
        first=before.at.sequence,
        text=f"its memory grew by {grown} MiB to {now >> 20} MiB within {seconds:g} s",
        evidence={
            **moments(first_beat=before.at, last_beat=life.last),
            "bytes": now, "bytes_before": before.value, "slot": life.slot,
            "living": len(known.living(life.agent, config.dead.seconds)),
        },
        commands=restart(life, f"it grew by {grown} MiB"),
    )  # fmt: skip
