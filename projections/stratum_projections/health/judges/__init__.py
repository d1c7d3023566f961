"""The judges: each looks at what is known and says what is wrong, and whether it still is.

One that is alone is a pure function of `(known, thresholds)`; `decide.py` makes one story of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec import Struct

from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges import (
    away,
    behind,
    blocked,
    crash_loop,
    dead,
    full,
    lag,
    looping,
    memory,
    poison,
    silent,
    stalled,
    stuck,
)
from stratum_projections.health.known import Known, Opened


class Judge(Struct, frozen=True):
    """`judge` finds what is wrong; `over` says why an incident is over, "" where it is not.

    `scope`: a finding of one `instance` gives way to another that is open for the same instance;
    one of an `agent` to any that is open for one of its instances. The others stand alone.
    """

    kind: str
    judge: Callable[[Known, HealthConfig], Iterator[Finding]]
    over: Callable[[Known, HealthConfig, Opened], str]
    scope: str = ""


INSTANCE, AGENT = "instance", "agent"

JUDGES = {
    judge.kind: judge
    for judge in (
        Judge(poison.KIND, poison.judge, poison.over),
        Judge(crash_loop.KIND, crash_loop.judge, crash_loop.over),
        Judge(dead.KIND, dead.judge, dead.over, INSTANCE),
        Judge(blocked.KIND, blocked.judge, blocked.over, INSTANCE),
        Judge(memory.KIND, memory.judge, memory.over, INSTANCE),
        Judge(stuck.KIND, stuck.judge, stuck.over, INSTANCE),
        Judge(stalled.KIND, stalled.judge, stalled.over, INSTANCE),
        Judge(looping.KIND, looping.judge, looping.over),
        Judge(silent.KIND, silent.judge, silent.over, AGENT),
        Judge(lag.KIND, lag.judge, lag.over, AGENT),
        Judge(behind.KIND, behind.judge, behind.over, AGENT),
        Judge(full.KIND, full.judge, full.over),
        Judge(away.KIND, away.judge, away.over),
    )
}
"""All of them, by kind, in the order in which they are heard."""

__all__ = ["AGENT", "INSTANCE", "JUDGES", "Judge"]
