"""A copy is of one moment, complete, and costs the projector neither its lock nor an event."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stratum_bus.errors import ProjectorError, QueryError
from stratum_projections import query_file
from stratum_projections.snapshot import of_file, take


def test_copies_that_are_made_while_events_come_are_each_of_one_moment(
    log: Any, tables: Any
) -> None:
    for _ in range(1200):
        log.message()
    copies = []
    done = threading.Event()

    def copy() -> None:
        while not done.is_set():
            copies.append(take(tables.store))
            made = copies[-1]
            sql = "select count(*) as n, max(seq) as last from events"
            [row] = query_file(made.path, sql).table.to_pylist()
            assert (row["n"], row["last"] or 0) == (made.sequence, made.sequence)

    copying = threading.Thread(target=copy)
    copying.start()
    try:
        for at in range(0, 1200, 40):
            tables.apply(log.messages[at : at + 40])
    finally:
        done.set()
        copying.join()
    assert len({made.sequence for made in copies}) > 1
    assert tables.one("select count(*) n from events") == {"n": 1200}


def test_the_lock_is_still_held_after_a_copy(tables: Any) -> None:
    take(tables.store)
    code = "import sys; from stratum_projections.store import Store; Store.open(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tables.path)]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is in use by process" in other.stderr


def test_the_file_of_a_projector_that_does_not_run_is_copied(
    log: Any, open_tables: Callable[..., Any], tmp_path: Path
) -> None:
    log.message()
    tables = open_tables("one")
    tables.apply(log.messages)
    with pytest.raises(ProjectorError, match="is in use by process"):
        of_file(tables.path)
    tables.store.close()
    made = of_file(tables.path)
    assert query_file(made.path, "select count(*) as n from events").table.to_pylist() == [{"n": 1}]
    with pytest.raises(QueryError, match="there is no projection at"):
        of_file(tmp_path / "nothing.duckdb")
    assert not (tmp_path / "nothing.duckdb").exists()


def test_a_copy_that_cannot_be_written_is_said(tables: Any) -> None:
    (tables.path.parent / "snapshots").write_text("a file")
    with pytest.raises(ProjectorError, match=r"cannot write a snapshot to .*: file exists"):
        take(tables.store)
    log_rows = tables.one("select count(*) n from events")
    assert log_rows == {"n": 0}
