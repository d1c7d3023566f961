"""away: the server could not be reached, or stored nothing, for a while."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.full import SERVER
from stratum_projections.health.known import NS, Known, Opened

KIND = "away"
TOLD_SECONDS = 10.0
"""How long after the server is back it may still be said that it was away."""


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """Nothing is asked for: while it is away nobody could be asked, and now it is back."""
    if known.away is None:
        return
    told, seconds = known.away
    if seconds >= config.away.seconds and (known.now.ns - told.ns) / NS < TOLD_SECONDS:
        yield Finding(
            kind=KIND, agent=SERVER, since_ns=told.ns - int(seconds * NS), first=told.sequence,
            text=f"it was away, or stored nothing, for {seconds:.1f} s",
            evidence={"first_tick": told.sequence, "away_seconds": round(seconds, 3)},
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    """It is: this could not be said otherwise."""
    return "the server is back"
