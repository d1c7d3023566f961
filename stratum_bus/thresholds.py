"""`[health]` of stratum.toml: from when on the health projector calls something wrong.

Each judgement has a table of its own, as in `[health.stuck] seconds = 60`, and each may be set
otherwise for one agent, as in `[health.agents.research.stuck] seconds = 1800`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

MORE_THAN_ZERO = Meta(gt=0)
AT_LEAST_ONE = Meta(ge=1)
RATIO = Meta(gt=0, le=1)

Seconds = Annotated[float, MORE_THAN_ZERO]
Count = Annotated[int, AT_LEAST_ONE]
Bytes = Annotated[int, AT_LEAST_ONE]
Ratio = Annotated[float, RATIO]


class Dead(Struct, frozen=True, forbid_unknown_fields=True):
    """No beat for `seconds`, or its process ended unasked.

    Who is only silent is restarted after `restart_seconds`: a process that holds the interpreter
    for a moment is not killed for it. A new one may take `starting_seconds` to its first beat.
    """

    seconds: Seconds = 1.5
    restart_seconds: Seconds = 5.0
    starting_seconds: Seconds = 30.0


class Stuck(Struct, frozen=True, forbid_unknown_fields=True):
    """It beats, has work, and for `seconds` nothing moved: no step, no message settled.

    A step that may take longer needs a longer time here.
    """

    seconds: Seconds = 600.0


class Blocked(Struct, frozen=True, forbid_unknown_fields=True):
    """Its event loop has answered nothing for `seconds`."""

    seconds: Seconds = 10.0


class Silent(Struct, frozen=True, forbid_unknown_fields=True):
    """Its consumer hands nothing out for `seconds`, though messages wait and none is in hand."""

    seconds: Seconds = 15.0


class Looping(Struct, frozen=True, forbid_unknown_fields=True):
    """A run repeated the same call with the same arguments `repeats` times in its last `among`.

    Runs are looked at that are in hand for `seconds`. A wait of the run begins the count anew.
    """

    repeats: Annotated[int, Meta(ge=2)] = 25
    among: Annotated[int, Meta(ge=2)] = 75
    seconds: Seconds = 5.0

    def __post_init__(self) -> None:
        if self.repeats > self.among:
            raise ValueError(f"{self.repeats} repeats do not fit among {self.among} calls")


class CrashLoop(Struct, frozen=True, forbid_unknown_fields=True):
    """`deaths` processes of an agent ended unasked within `seconds`."""

    deaths: Annotated[int, Meta(ge=2)] = 6
    seconds: Seconds = 60.0


class Poison(Struct, frozen=True, forbid_unknown_fields=True):
    """A message was worked on at `deaths` ends in a row, and its run never moved on."""

    deaths: Count = 3


class Lag(Struct, frozen=True, forbid_unknown_fields=True):
    """At least `messages` wait, and in each third of `seconds` they became more."""

    messages: Count = 1000
    seconds: Seconds = 60.0


class Memory(Struct, frozen=True, forbid_unknown_fields=True):
    """Resident memory grew in each quarter of `seconds`, or of `long_seconds`, by `bytes` in all.

    So a model that is loaded once is no leak. In its first `seconds` an instance may load what it
    wants.
    """

    bytes: Bytes = 256 << 20
    seconds: Seconds = 60.0
    long_seconds: Seconds = 1800.0


class Stalled(Struct, frozen=True, forbid_unknown_fields=True):
    """A projector stands still for `seconds`, behind the log's end."""

    seconds: Seconds = 20.0


class Behind(Struct, frozen=True, forbid_unknown_fields=True):
    """A projector works, and has been `events` behind the log's end for `seconds`."""

    events: Count = 50_000
    seconds: Seconds = 60.0


class Full(Struct, frozen=True, forbid_unknown_fields=True):
    """A stream, or the server's store, is full to `warning_ratio`, or to `critical_ratio`."""

    warning_ratio: Ratio = 0.8
    critical_ratio: Ratio = 0.95

    def __post_init__(self) -> None:
        if self.warning_ratio > self.critical_ratio:
            raise ValueError("the warning_ratio must not be above the critical_ratio")


class Away(Struct, frozen=True, forbid_unknown_fields=True):
    """The server could not be reached, or stored nothing, for `seconds`; told when it is back."""

    seconds: Seconds = 0.1


class AgentHealth(Struct, frozen=True, forbid_unknown_fields=True):
    """`[health.agents.<name>]`: what is otherwise for one agent."""

    dead: Dead | None = None
    stuck: Stuck | None = None
    blocked: Blocked | None = None
    silent: Silent | None = None
    looping: Looping | None = None
    crash_loop: CrashLoop | None = None
    poison: Poison | None = None
    lag: Lag | None = None
    memory: Memory | None = None


class HealthConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[health]`: how often is judged, and from when on something is wrong.

    After the server was away, or a clock jumped, nobody is called dead for `settle_seconds`. An
    incident that is open for `escalate_seconds` is told to a person.
    """

    tick_seconds: Annotated[float, Meta(ge=0.05, le=10)] = 0.25
    settle_seconds: Seconds = 2.0
    escalate_seconds: Seconds = 300.0
    dead: Dead = Dead()
    stuck: Stuck = Stuck()
    blocked: Blocked = Blocked()
    silent: Silent = Silent()
    looping: Looping = Looping()
    crash_loop: CrashLoop = CrashLoop()
    poison: Poison = Poison()
    lag: Lag = Lag()
    memory: Memory = Memory()
    stalled: Stalled = Stalled()
    behind: Behind = Behind()
    full: Full = Full()
    away: Away = Away()
    agents: dict[str, AgentHealth] = msgspec.field(default_factory=dict)

    def of(self, agent: str) -> HealthConfig:
        """The thresholds that hold for one agent."""
        own = self.agents.get(agent)
        if own is None:
            return self
        given = {name: value for name in own.__struct_fields__ if (value := getattr(own, name))}
        return msgspec.structs.replace(self, **given)
