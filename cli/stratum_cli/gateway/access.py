"""Who asks, what they may, and how much of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from starlette.requests import Request

from stratum_bus import subject
from stratum_bus.gateway import TokenConfig
from stratum_cli.gateway.problem import Problem

HELD_BYTES = 64 << 20
"""Of bodies at once; who comes beyond that comes again."""

_REQUEST_BYTES = 4096


class Rate:
    """Events a second, in bursts of up to a second's worth. None: as many as come."""

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second or 0.0)
        self._level = self._most
        self._at = time.monotonic()

    @property
    def per_minute(self) -> int | None:
        return None if self._per_second is None else max(1, int(self._per_second * 60))

    def begin(self) -> None:
        """One event; raises Problem 429 that says when the next is taken."""
        if self._per_second is None:
            return
        now = time.monotonic()
        self._level = min(self._most, self._level + (now - self._at) * self._per_second)
        self._at = now
        if self._level < 1:
            wait = (1 - self._level) / self._per_second
            text = f"more than {self._per_second:g} events a second; the next in {wait:.1f} s"
            raise Problem(429, text, retry_after=wait)
        self._level -= 1

    def more(self, events: int) -> None:
        """So many more came with it: those behind wait for them."""
        self._level -= events


class Holder:
    """Whoever has a token."""

    def __init__(self, name: str, config: TokenConfig) -> None:
        self.name = name
        self.agent = config.agent or name
        self.id_header = config.id_header
        self.reads = config.reads
        self.rate = Rate(config.per_second)
        self._may = config.may
        self._allowed: set[str] = set()

    def check_post(self, to: str) -> None:
        """Raises Problem 403 where this may not be posted."""
        if to in self._allowed:
            return
        if not any(subject.matches(each, to) for each in self._may):
            allowed = ", ".join(self._may) or "nothing"
            raise Problem(403, f"the token {self.name} may not post {to}: it may {allowed}")
        if len(self._allowed) < 1000:
            self._allowed.add(to)

    def readable(self, asked: Sequence[str]) -> list[str]:
        """The filters to read with; raises Problem 403 for what is not all allowed."""
        for each in asked:
            if not any(subject.covers(allowed, each) for allowed in self.reads):
                allowed = ", ".join(self.reads) or "nothing"
                raise Problem(403, f"the token {self.name} may not read {each}: it may {allowed}")
        if not asked and not self.reads:
            raise Problem(403, f"the token {self.name} may read nothing")
        return list(asked or self.reads)


class Access:
    """The holders by their secrets."""

    def __init__(self, tokens: dict[str, TokenConfig]) -> None:
        self.holders = [Holder(name, token) for name, token in tokens.items()]
        secrets = [token.secret for token in tokens.values()]
        self._by_secret = dict(zip(map(_digest, secrets), self.holders, strict=True))

    def holder(self, request: Request) -> Holder:
        """Raises Problem 401. In the address is where a browser's EventSource has its token."""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if not given and "access_token" in request.query_params:
            kind, given = "bearer", request.query_params["access_token"]
        if not given or kind.lower() != "bearer":
            text = "a token is needed: Authorization: Bearer …, or ?access_token=…"
            raise Problem(401, text, headers={"WWW-Authenticate": "Bearer"})
        holder = self._by_secret.get(_digest(given.strip()))
        if holder is None:
            how = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Problem(401, "there is no such token", headers=how)
        return holder


class Room:
    """The memory that bodies may take together."""

    def __init__(self) -> None:
        self._held = 0

    def take(self, size: int) -> int:
        """Raises Problem 503 where there is none left; give back what it returns."""
        size += _REQUEST_BYTES
        if self._held + size > HELD_BYTES:
            raise Problem(503, "too much is being posted at once", retry_after=1)
        self._held += size
        return size

    def give_back(self, size: int) -> None:
        self._held -= size


def _digest(secret: str) -> bytes:
    """Looked up by its digest, how long that takes says nothing of the secret."""
    return hashlib.sha256(secret.encode()).digest()
