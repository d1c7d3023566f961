"""What handles an event: the delivery it gets, and the closed set of what may come of it."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import msgspec

from stratum_bus.event import RawEvent
from stratum_bus.message import Message


class Done(msgspec.Struct, frozen=True):
    """The event is handled."""


class RetryLater(msgspec.Struct, frozen=True):
    """Deliver it again, after `delay_seconds` or after the backoff of its attempt."""

    reason: str = ""
    delay_seconds: float | None = None


class Reject(msgspec.Struct, frozen=True):
    """It can never be handled: a dead letter at once."""

    reason: str


class Leave(msgspec.Struct, frozen=True):
    """Another worker has it: settle nothing."""


Outcome = Done | RetryLater | Reject | Leave


class Delivery(msgspec.Struct, frozen=True):
    """One message in hand. `attempt` counts its deliveries, this one included."""

    message: Message
    event: RawEvent
    attempt: int


Handler = Callable[[Delivery], Awaitable[Outcome | None]]


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """How often and when an event is tried again.

    The delay before attempt n + 1 is `first_seconds` * 2^(n-1), at most `max_seconds`, with up to
    half of it taken off at random. An event delivered `max_deliveries` times is not handed out
    again, whatever happened to it: it probably kills who takes it.
    """

    max_attempts: int = 5
    first_seconds: float = 1.0
    max_seconds: float = 300.0
    max_deliveries: int = 20

    def delay_seconds(self, attempt: int) -> float:
        full = min(self.first_seconds * 2 ** (attempt - 1), self.max_seconds)
        return float(full * random.uniform(0.5, 1.0))
