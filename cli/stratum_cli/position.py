"""Where in a stream: a sequence, or a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stratum_bus.config import duration_ns
from stratum_cli.failure import Usage

Position = int | datetime

FORMS = "a sequence (17), a time (2026-01-31T12:00:00Z), how long ago (15m, 2h, 3d), or start"
_MAX = 2**63 - 1
_FIRST_TIME = datetime(1970, 1, 1, tzinfo=UTC)


def parse(text: str, option: str) -> Position:
    """A sequence as int, anything else as a time; `start` is sequence 1.

    A time without a zone is local time. Raises Usage, which names `option`.
    """
    text = text.strip()
    if text == "start":
        return 1
    if text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= _MAX:
        return int(text)
    if (ago := _ago(text)) is not None:
        return ago
    try:
        if text.isdigit():
            raise ValueError("20260131 could be a date or a sequence")
        return max(datetime.fromisoformat(text).astimezone(UTC), _FIRST_TIME)
    except (ValueError, OverflowError, OSError):
        shown = text if len(text) <= 40 else text[:40] + "…"
        raise Usage(f"{option} {shown!r} is no position; give {FORMS}") from None


def _ago(text: str) -> datetime | None:
    try:
        return datetime.now(UTC) - timedelta(microseconds=duration_ns(text) // 1000)
    except (ValueError, OverflowError):
        return None
