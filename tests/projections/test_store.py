"""The file: one writer, no commit behind an error, nothing reachable outside of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import duckdb
import pytest

from stratum_bus.errors import ProjectorError, QueryError
from stratum_projections import open_read_only, query_file
from stratum_projections.store import StatementFailed, Store


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "projection.duckdb"


def test_a_second_writer_is_refused_in_one_sentence(file: Path) -> None:
    store = Store.open(file)
    with pytest.raises(ProjectorError) as caught:
        Store.open(file)
    store.close()
    assert caught.value.reason == "locked"
    assert str(file) in str(caught.value)
    Store.open(file).close()


def test_a_writer_in_another_process_is_named(file: Path) -> None:
    code = (
        "import sys; from stratum_projections.store import Store; "
        "s = Store.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout and other.stdout.readline() == b"open\n"
        with pytest.raises(ProjectorError, match=f"in use by process {other.pid}"):
            Store.open(file)
        with pytest.raises(QueryError, match=f"in use by process {other.pid}") as caught:
            query_file(file, "select 1")
        assert caught.value.reason == "locked"
    finally:
        other.kill()
        other.communicate()
    Store.open(file).close()


def test_the_lock_holds_although_the_file_was_opened_and_closed(file: Path) -> None:
    """DuckDB's own lock is lost by that."""
    store = Store.open(file)
    file.read_bytes()
    code = "import sys; from stratum_projections.store import Store; Store.open(sys.argv[1])"
    command = [sys.executable, "-c", code, str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    store.close()
    assert ended.returncode == 1
    assert "ProjectorError: " in ended.stderr and "is in use by process" in ended.stderr


@pytest.mark.parametrize("content", [b"", b"garbage" * 5000])
def test_a_damaged_file_is_said_to_be_removable(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(ProjectorError, match="remove it, and it is built anew") as caught:
        Store.open(file)
    assert caught.value.reason == "file"
    file.unlink()
    Store.open(file).close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ProjectorError, match=r"taken/x\.duckdb") as caught:
        Store.open(tmp_path / "taken" / "x.duckdb")
    assert caught.value.reason == "file"


def test_an_ignored_error_cannot_be_committed(file: Path) -> None:
    store = Store.open(file)
    store.execute("create table t(a integer)")
    with pytest.raises(RuntimeError, match="ignored"), store.transaction():
        store.execute("insert into t values (1)")
        with pytest.raises(StatementFailed, match="Could not convert"):
            store.execute("insert into t values ('x'::integer)")
    assert store.execute("select count(*) from t") == [(0,)]
    with store.transaction():
        store.execute("insert into t values (2)")
    assert store.execute("select a from t") == [(2,)]
    store.close()


def test_the_writer_too_cannot_leave_its_file(file: Path, tmp_path: Path) -> None:
    store = Store.open(file)
    for statement in (
        "select * from read_text('/etc/hostname')",
        f"copy (select 1) to '{tmp_path}/out.csv'",
        f"attach '{tmp_path}/other.duckdb'",
        "set enable_external_access = true",
        "install httpfs",
    ):
        with pytest.raises((ProjectorError, StatementFailed)):
            store.execute(statement)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    store.close()


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="there is no projection at") as caught:
        query_file(tmp_path / "nothing.duckdb", "select 1")
    assert caught.value.reason == "no_file"
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_its_projector_is_read(tables: Any, log: Any) -> None:
    log.message()
    tables.apply(log.messages)
    tables.store.close()
    answer = query_file(tables.path, "select id, state from messages")
    assert (answer.table.to_pylist(), answer.sequence) == ([{"id": "e1", "state": "sent"}], 1)
    with open_read_only(tables.path), open_read_only(tables.path):
        again = query_file(tables.path, "select count(*) as n from events")
    assert again.table.to_pylist() == [{"n": 1}]
    tables.store = Store.open(tables.path)


def test_a_file_of_another_layout_is_refused(file: Path, open_tables: Any) -> None:
    file.parent.mkdir()
    with duckdb.connect(str(file.parent.parent / "foreign.duckdb")) as connection:
        connection.execute("create table other as select 1 as a")
    with pytest.raises(ProjectorError, match="made by another version of Stratum: remove it"):
        open_tables("foreign")


def test_what_another_writer_keeps_from_the_file_goes_there_later(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "t.duckdb")
    store.execute("create table t(i integer)")
    store.execute(
        "create view checkpoint as select 'LOG' as stream, i as sequence, true as active from t"
    )
    other = store.beside()
    try:
        other.execute("begin transaction")
        other.execute("create table u(i integer)")
        store.execute("insert into t values (7)")
        store.flush()
        copying = threading.Thread(target=store.snapshot, args=[tmp_path / "copy.duckdb"])
        copying.start()
        other.execute("commit")
        copying.join(timeout=30)
        assert (tmp_path / "copy.duckdb").exists()
    finally:
        other.close()
        store.close()
