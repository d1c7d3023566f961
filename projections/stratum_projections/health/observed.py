"""What the health projector sees of the server, written down at each tick as an event in HEALTH.

A tick is the only time at which anything is judged, and it says what counts before it: the beats
that stand before it in HEALTH, and the control events of LOG up to `log`. So whoever reads the two
streams again comes to the same judgements, at any speed.
"""

from __future__ import annotations

import msgspec

from stratum_bus.schema import event_type

TYPE = "stratum.health.observed"


class Position(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent's consumer that has something to do. Counts are messages, the others sequences.

    `journal` is the last entry of any run of the agent, where it was looked for.
    """

    agent: str
    stream: str
    pending: int
    in_hand: int
    delivered: int
    settled: int
    journal: int = 0


class Fill(msgspec.Struct, frozen=True, omit_defaults=True):
    """How full a stream is, or the server's store (`stream` ""); a limit of 0 is none."""

    stream: str
    bytes: int
    max_bytes: int = 0
    messages: int = 0
    max_messages: int = 0


class Repetition(msgspec.Struct, frozen=True):
    """A call that a run made `times` times in its last `among` calls. `first` and `last` are the
    sequences of the first and last of them.
    """

    agent: str
    run: str
    call: str
    times: int
    among: int
    first: int
    last: int


@event_type(TYPE, roles=("health",))
class Observed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A tick. `head` is LOG's last sequence, `away_seconds` how long there was no server for who
    made the tick, 0 where there was all the time. Consumers without work are left out of `positions`
    (None: not looked at this time); so it is with `fills` and `repetitions`.
    """

    log: int
    head: int
    away_seconds: float = 0.0
    positions: list[Position] | None = None
    fills: list[Fill] | None = None
    repetitions: list[Repetition] = []
