"""blocked: an instance's event loop answers nothing; a handler computes or waits without `await`."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.replaced import replaced, restart
from stratum_projections.health.known import Known, Opened, moments

KIND = "blocked"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for life in known.lives.values():
        limit = config.of(life.agent).blocked.seconds
        if life.blocked is None or life.beat is None:
            continue
        seconds = known.seconds_since(life.blocked)
        if seconds < limit:
            continue
        begun = [f"{held.stream}-{held.sequence}" for held in life.beat.in_hand if held.event]
        yield Finding(
            kind=KIND, agent=life.agent, instance=life.instance, since_ns=life.blocked.ns,
            first=life.blocked.sequence,
            text=f"its event loop has answered nothing for {seconds:.1f} s, "
            f"with {', '.join(begun[:3]) or 'nothing'} in hand",
            evidence={
                **moments(first_beat=life.blocked, last_beat=life.last),
                "blocked_seconds": round(seconds, 3), "begun": begun[:10], "pid": life.beat.pid,
                "slot": life.slot, "living": len(known.living(life.agent, config.dead.seconds)),
            },
            commands=restart(life, "its event loop is blocked"),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    life = known.lives.get((opened.incident.agent, opened.incident.instance))
    if life is not None and life.beat is not None and life.blocked is None:
        return "its event loop answers again"
    return replaced(known, config, opened)
