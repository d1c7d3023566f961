"""`stratum sql`: answered by a projector, or from its file."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratum_bus.bus import Bus
from stratum_bus.errors import QueryError
from stratum_bus.testing import eventually
from stratum_projections.query import ask

SETTINGS = '[projector]\npath = "tables.duckdb"\n'


@pytest.fixture
def projector(bus_url: str, log: Any, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A projector that answers, on two messages; found by the settings of the working folder."""
    log.send("research", "question", {"q": 1}, {"q": 2})
    (project / "stratum.toml").write_text(SETTINGS)
    command = [sys.executable, "-m", "stratum_projections", "--url", bus_url]
    process = subprocess.Popen(
        [*command, "--path", str(project / "tables.duckdb")], stderr=subprocess.DEVNULL
    )
    log.do(lambda bus: eventually(lambda: answers(bus, process), within_seconds=20))
    yield process
    process.kill()
    process.wait()


async def answers(bus: Bus, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "the projector ended"
    try:
        await ask(bus, "select 1", wait_for=2)
    except QueryError:
        return False
    return True


def test_the_projector_answers_as_of_a_sequence(stratum: Any, projector: Any) -> None:
    result = stratum("sql", "select seq, type from events order by seq", "--wait-for", "2")
    assert result.returncode == 0
    assert result.stdout.splitlines()[1:] == ["1    question", "2    question"]
    assert "as of LOG 2, from projector main" in result.stderr


def test_answers_in_every_format(stratum: Any, projector: Any) -> None:
    query = "select 1 a, 'x, \"y\"\nz' b, null c, [1, 2] d, 1.50::decimal(4, 2) e, 0.1 f"
    (row,) = map(json.loads, stratum("sql", query, "--format", "json").stdout.splitlines())
    assert row == {"a": 1, "b": 'x, "y"\nz', "c": None, "d": [1, 2], "e": "1.50", "f": "0.1"}
    head, first = csv.reader(io.StringIO(stratum("sql", query, "--format", "csv").stdout))
    assert head == ["a", "b", "c", "d", "e", "f"]
    assert first == ["1", 'x, "y"\nz', "", "[1,2]", "1.50", "0.1"]
    assert '"a":1' in stratum("sql", query, "--json").stdout
    assert len(stratum("sql", query).stdout.splitlines()) == 2


def test_columns_of_one_name_are_told_apart(stratum: Any, projector: Any) -> None:
    (row,) = map(json.loads, stratum("sql", "select 1 n, 2 n, 3 n", "--json").stdout.splitlines())
    assert list(row.values()) == [1, 2, 3]


def test_a_query_that_is_refused_says_why(stratum: Any, projector: Any) -> None:
    for arguments, code, part in (
        (("delete from events",), 5, "only SELECT"),
        (("selec 1",), 2, "syntax error"),
        (("select * from nowhere",), 2, "nowhere"),
        (("select * from range(100)", "--limit", "10"), 5, "more than 10 rows"),
        (("select 1", "--wait-for", "999", "--timeout", "0.05"), 6, "did not reach 999"),
    ):
        result = stratum("sql", *arguments)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert part in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_without_a_projector_its_file_is_read(stratum: Any, projector: Any) -> None:
    projector.terminate()
    projector.wait(timeout=20)
    result = stratum("sql", "select count(*) from events")
    assert (result.returncode, result.stdout.splitlines()[1:]) == (0, ["2"])
    assert "tables.duckdb" in result.stderr
    behind = stratum("sql", "select 1", "--wait-for", "3")
    assert (behind.returncode, "reflects sequence 2, not 3" in behind.stderr) == (6, True)


def test_without_a_projector_and_a_file_the_sentence_says_so(stratum: Any) -> None:
    result = stratum("sql", "select 1")
    assert (result.returncode, result.stdout) == (4, "")
    assert "no projector 'main' answers" in result.stderr
