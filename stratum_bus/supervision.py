"""`[supervisor]` of stratum.toml: how what ended is started again, when that is given up, and who is
told.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

MORE_THAN_ZERO = Meta(gt=0)
NOT_NEGATIVE = Meta(ge=0)
AT_LEAST_ONE = Meta(ge=1)

ONE_FOR_ONE, REST_FOR_ONE = "one-for-one", "rest-for-one"


class SupervisorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[supervisor]`.

    `name` is that of its durable consumer of commands: two supervisors on one bus need two.
    `strategy`: at an end only that process is started again, or also those of the agents that stand
    behind it in the file. The first restart is at once, the next after `first_delay_seconds`, then
    twice as long each time up to `max_delay_seconds`, up to half of it taken off; it starts over
    for who has run for `healthy_seconds`. More than `restarts` within `restart_seconds` end in
    quarantine. A message that was worked on at `poison_deaths` ends, its run never moving on, is
    parked. `spares` processes wait to take the place of one that ends. `human` is the inbox for
    what needs a person; `notify_command` gets it on stdin, `notify_url` by POST, as JSON.
    `http_port` serves /healthz, /readyz and /metrics on `http_host`. Heartbeats come every
    `beat_seconds`.
    """

    name: str = "supervisor"
    strategy: Literal["one-for-one", "rest-for-one"] = "one-for-one"
    restarts: Annotated[int, AT_LEAST_ONE] = 5
    restart_seconds: Annotated[float, MORE_THAN_ZERO] = 60.0
    healthy_seconds: Annotated[float, MORE_THAN_ZERO] = 60.0
    first_delay_seconds: Annotated[float, NOT_NEGATIVE] = 0.2
    max_delay_seconds: Annotated[float, MORE_THAN_ZERO] = 30.0
    poison_deaths: Annotated[int, AT_LEAST_ONE] = 3
    spares: Annotated[int, NOT_NEGATIVE] = 1
    human: str = "operator"
    notify_command: list[str] = []
    notify_url: str = ""
    http_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    http_host: str = "127.0.0.1"
    beat_seconds: Annotated[float, Meta(ge=0.05, le=60)] = 0.5
