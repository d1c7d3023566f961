"""What is wrong with a request, as it is answered: problem details (RFC 9457)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from stratum_bus.errors import (
    BusError,
    ConnectionLost,
    InvalidEvent,
    InvalidName,
    NoAnswer,
    NoStream,
    StorageFull,
    StratumError,
    TooLarge,
)
from stratum_cli.failure import Usage

log = logging.getLogger("stratum.gateway")

CONTENT_TYPE = "application/problem+json"
AGAIN_SECONDS = 1.0
FULL_SECONDS = 30.0
"""When to come again: where the server is lost, and where it has no room."""


class Problem(StratumError):
    """A request that is refused, with its status, the reason in one sentence, and headers."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after: float = 0.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.detail = status, detail
        self.headers = dict(headers or {})
        if retry_after:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
        super().__init__(detail)

    @property
    def body(self) -> bytes:
        title = HTTPStatus(self.status).phrase
        fields = {"type": "about:blank", "title": title, "status": self.status}
        return msgspec.json.encode({**fields, "detail": self.detail})


def of(error: Exception) -> Problem:
    """What an error is to whoever asked. One that is not theirs is logged, but that the server is
    lost, which is known."""
    said = " ".join(str(error).split())
    match error:
        case Problem():
            return error
        case InvalidEvent():
            return Problem(400, f"{error.detail} (not a readable event: {error.reason})")
        case InvalidName() | Usage():
            return Problem(400, said)
        case TooLarge():
            return Problem(413, said)
        case ConnectionLost() | NoAnswer() | NoStream():
            text = "the log cannot be reached now; the same event, with its id, may be sent again"
            return Problem(503, text, retry_after=AGAIN_SECONDS)
        case StorageFull():
            log.error("%s", said)
            return Problem(503, "the log has no room now", retry_after=FULL_SECONDS)
        case BusError():
            log.error("%s", said)
            return Problem(500, said)
    log.error("%s", said, exc_info=error)
    return Problem(500, "a mistake of the gateway itself; its log has the whole of it")
