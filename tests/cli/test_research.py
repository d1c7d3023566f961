"""`stratum research read`: feeds handed over, waited for, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SAMPLE = str(Path(__file__).parents[2] / "examples" / "research" / "sample-earlier.xml")


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_hands_each_paper_over_once(stratum: Any, log: Any) -> None:
    first = rows(stratum("research", "read", SAMPLE, "--json"))
    stored = log.last_sequence()
    second = rows(stratum("research", "read", SAMPLE, "--json"))
    assert {row["state"] for row in first} == {"handed over"}
    assert {row["state"] for row in second} == {"known before"}
    assert [row["sequence"] for row in first] == [row["sequence"] for row in second]
    assert len(first) == stored == log.last_sequence()


def test_a_dry_run_lists_the_papers_and_needs_no_server(alone: Any) -> None:
    result = alone("research", "read", SAMPLE, "--dry-run", "--json")
    assert len(rows(result)) == 8


def test_waiting_for_an_agent_that_does_not_run_ends_in_time(stratum: Any) -> None:
    result = stratum("research", "read", SAMPLE, "--wait", "--timeout", "0.2")
    assert (result.returncode, result.stdout) == (6, "")
    assert "has not handled 8 of 8 papers" in result.stderr


def test_a_feed_that_cannot_be_read_is_one_sentence(stratum: Any, log: Any, project: Path) -> None:
    (project / "broken.xml").write_text("<feed><entry>")
    for source in ("broken.xml", "nowhere.xml"):
        result = stratum("research", "read", source)
        assert (result.returncode, result.stdout) == (1, "")
        assert source in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert log.last_sequence() == 0
