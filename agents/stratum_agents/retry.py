"""When a step that failed is tried again."""

from __future__ import annotations

import random

import msgspec


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """The delay before attempt n + 1 is `first_seconds` * `factor`^(n-1), at most `max_seconds`,
    with up to half of it taken off at random. `never` lists exceptions that are final at once.
    """

    max_attempts: int = 5
    first_seconds: float = 0.5
    factor: float = 2.0
    max_seconds: float = 60.0
    never: tuple[type[Exception], ...] = ()

    def delay_seconds(self, attempt: int) -> float:
        full = min(self.first_seconds * self.factor ** (attempt - 1), self.max_seconds)
        return float(full * random.uniform(0.5, 1.0))


class Terminal(Exception):
    """Raised by a step: it is of no use to try it again."""
