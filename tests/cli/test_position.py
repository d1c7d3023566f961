"""Where in a stream, as people write it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from stratum_cli.failure import Usage
from stratum_cli.position import parse


def test_a_number_is_a_sequence_and_start_the_first() -> None:
    assert [parse(text, "--from") for text in ("17", " 1 ", "start")] == [17, 1, 1]


def test_a_time_has_the_zone_that_it_says() -> None:
    assert parse("2026-01-31T12:00:00Z", "--from") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert parse("2026-01-31T12:00:00+02:00", "--from") == datetime(2026, 1, 31, 10, tzinfo=UTC)
    local = parse("2026-01-31", "--from")
    assert isinstance(local, datetime)
    assert local.astimezone().replace(tzinfo=None) == datetime(2026, 1, 31)


def test_a_duration_is_that_long_ago() -> None:
    for text, ago in {"90s": timedelta(seconds=90), "1h30m": timedelta(hours=1.5)}.items():
        found = parse(text, "--from")
        assert isinstance(found, datetime)
        assert timedelta(0) <= datetime.now(UTC) - ago - found < timedelta(minutes=1)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "1.5", "9" * 30, "now-ish", "2026-13-01", "٣", "20260131T", "99999999d", "1 2"],
)
def test_anything_else_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(Usage, match=r"--to .* is no position; give a sequence"):
        parse(text, "--to")


def test_a_time_before_there_was_a_stream_is_the_first_time() -> None:
    assert parse("0001-01-01T00:00:00Z", "--from") == datetime(1970, 1, 1, tzinfo=UTC)
