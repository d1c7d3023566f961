"""Heartbeats: what an instance says of itself twice a second, from a thread of its own.

The thread has its own event loop and connection, so a beat comes while a handler blocks the main
loop, and says so: each beat asks the main loop for an answer and reports how long that is due.
Beats may be lost; they are sent without waiting for the stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import msgspec

from stratum_bus.schema import event_type

TYPE = "stratum.health.beat"
EVERY_SECONDS = 0.5
BLOCKED_SECONDS = 1.0
"""A loop that has answered nothing for so long is called blocked."""

AGENT, PROJECTOR, HEALTH, SUPERVISOR = "agent", "projector", "health", "supervisor"
"""The kinds of what beats."""

STARTING, IDLE, WORKING, BLOCKED, STOPPING = "starting", "idle", "working", "blocked", "stopping"
"""The states."""


class InHand(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message that was delivered and is not settled.

    `event`, `run` and `step` are known once its handler has begun; `step` is the position of the
    call that it is in, as in the journal.
    """

    sequence: int
    subject: str
    stream: str = "LOG"
    event: str = ""
    run: str = ""
    step: str = ""
    attempt: int = 1
    since: datetime | None = None


@event_type(TYPE)
class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One heartbeat, on `health.<name>.<instance>`.

    `progress` moves only when the log moved for this instance: it counts messages settled and
    entries appended. `pending` is how many messages wait for its consumer, None where unknown.
    `in_hand` is at most IN_HAND_MAX of `holds`, those that have begun first, oldest first.
    """

    name: str
    instance: str
    kind: str
    state: str
    pid: int
    host: str
    version: str
    started: datetime
    every_seconds: float
    progress: int = 0
    in_hand: list[InHand] = []
    holds: int = 0
    loop_lag_seconds: float = 0.0
    resident_bytes: int = 0
    pending: int | None = None


IN_HAND_MAX = 64


class Vitals:
    """What an instance tells the thread of its beats; set it from the main loop at any time.

    `in_hand` is called from the other thread. `instance` is one subject token.
    """

    def __init__(self, name: str, kind: str, instance: str) -> None:
        self.name = name
        self.kind = kind
        self.instance = instance
        self.state = STARTING
        self.progress = 0
        self.pending: int | None = None
        self.in_hand: Callable[[], list[InHand]] = list


@asynccontextmanager
async def beating(
    url: str,
    vitals: Vitals,
    *,
    every_seconds: float = EVERY_SECONDS,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[None]:
    """Beat for the running loop as long as the context; a lost server is waited for."""
    yield
