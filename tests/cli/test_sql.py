"""`stratum sql`: answered by a projector, or from its file."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
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


def test_json_is_json_in_json_and_text_elsewhere(stratum: Any, projector: Any) -> None:
    query = "select data, '[1]'::json as j from events where seq = 1"
    for arguments in (("--json",), ("--format", "json")):
        [row] = map(json.loads, stratum("sql", query, *arguments).stdout.splitlines())
        assert row == {"data": {"q": 1}, "j": [1]}
    assert stratum("sql", query, "--format", "csv").stdout == 'data,j\n"{""q"":1}",[1]\n'
    assert '{"q":1}' in stratum("sql", query).stdout


def test_a_file_is_written_in_the_format_of_its_suffix(
    stratum: Any, projector: Any, project: Path
) -> None:
    query = "select i, 'r' || i as r from range(200_000) t(i)"
    for name in ("t.csv", "t.JSON", "t.arrow", "t.parquet"):
        result = stratum("sql", query, "-o", name)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert f"200,000 rows in {name}, as of LOG 2, from projector main" in result.stderr
    expected = pa.table({"i": range(200_000), "r": [f"r{i}" for i in range(200_000)]})
    lines = (project / "t.csv").read_text().splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("i,r", "199999,r199999", 200_001)
    last = (project / "t.JSON").read_bytes().splitlines()[-1]
    assert json.loads(last) == {"i": 199_999, "r": "r199999"}
    assert pa.ipc.open_file((project / "t.arrow").read_bytes()).read_all() == expected
    assert pa.parquet.read_table(project / "t.parquet") == expected
    assert stratum("sql", "select 1 a", "-o", "t.csv", "--format", "json").returncode == 0
    assert (project / "t.csv").read_text() == '{"a":1}\n'
    assert sorted(path.name for path in project.glob("*.new")) == []


def test_a_pipe_takes_what_a_terminal_does_not(process: Any, bus_url: str, projector: Any) -> None:
    command = [sys.executable, "-m", "stratum_cli", "--nats-url", bus_url, "sql", "select 1 a"]
    arrow = subprocess.run([*command, "--format", "arrow"], capture_output=True, check=True)
    assert pa.ipc.open_stream(arrow.stdout).read_all().to_pylist() == [{"a": 1}]
    terminal, end = os.openpty()
    refused = subprocess.run(
        [*command, "--format", "arrow"], stdout=end, stderr=subprocess.PIPE, check=False
    )
    os.close(terminal)
    os.close(end)
    assert (refused.returncode, b"not for a terminal" in refused.stderr) == (2, True)


def test_a_file_that_cannot_be_is_refused_and_nothing_is_left(
    stratum: Any, projector: Any, project: Path
) -> None:
    (project / "folder.csv").mkdir()
    (project / "old.csv").write_text("old")
    for arguments, code, part in (
        (("select 1", "-o", "folder.csv"), 5, "is a folder"),
        (("select 1", "-o", "nowhere/t.csv"), 5, "no such file"),
        (("select 1", "-o", "/dev/null", "--format", "csv"), 5, "not a regular file"),
        (("select 1", "-o", "t.txt"), 2, "names no format"),
        (("select 1", "-o", "t"), 2, "no suffix"),
        (("select 1", "-o", "t.csv", "--format", "table"), 2, "for reading"),
        (("select 1", "--format", "xml"), 2, "'xml' is unknown"),
        (("select interval 1 day", "-o", "t.parquet"), 5, "cast it"),
        (("select nowhere", "-o", "old.csv"), 2, "nowhere"),
        (("select * from range(200_000)", "-o", "old.csv", "--limit", "150000"), 5, "150,000"),
    ):
        result = stratum("sql", *arguments)
        assert (result.returncode, result.stdout) == (code, ""), result.stderr
        assert part in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert (project / "old.csv").read_text() == "old"
    assert not list(project.glob("*.new")) + list(project.glob("t.*"))


def test_a_query_as_of_a_moment(stratum: Any, projector: Any) -> None:
    query = "select count(*) n from events"
    result = stratum("sql", query, "--as-of", "1", "--json")
    assert (result.stdout, result.returncode) == ('{"n":1}\n', 0), result.stderr
    assert "as of LOG 1, from the log" in result.stderr
    assert stratum("sql", query, "--as-of", "-0.1ms", "--json").stdout == '{"n":2}\n'
    now = datetime.now(UTC).isoformat()
    assert stratum("sql", query, "--as-of", now, "--json").stdout == '{"n":2}\n'
    unzoned = stratum("sql", query, "--as-of", now.removesuffix("+00:00"), "--json")
    assert (unzoned.stdout, "in UTC" in unzoned.stderr) == ('{"n":2}\n', True)
    for moment, code, part in (
        ("-90d", 3, "nothing was stored by"),
        ("9", 3, "no sequence 9"),
        ("someday", 2, "is no moment"),
    ):
        refused = stratum("sql", query, "--as-of", moment)
        assert (refused.returncode, refused.stdout) == (code, "")
        assert part in refused.stderr
    assert stratum("sql", query, "--as-of", "1", "--wait-for", "2").returncode == 2


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
