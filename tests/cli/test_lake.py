"""`stratum lake`, and `stratum projection snapshot`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from stratum_bus.bus import Bus, connect
from stratum_bus.errors import QueryError
from stratum_bus.tasks import task_group
from stratum_projections import ask, query_file, run
from stratum_projections.lake.read import lake_messages
from stratum_projections.lake.segment import Folder

LOG = {"name": "LOG", "subjects": ["inbox.>"], "allow_direct": True, "allow_atomic": True}


@pytest.fixture
def lake(project: Path) -> Folder:
    """The lake that stratum.toml names; a file holds ten events."""
    (project / "stratum.toml").write_text('[lake]\npath = "lake"\nsegment_events = 10\n')
    return Folder(project / "lake")


def rows(result: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def ranges(result: Any) -> list[tuple[int, int]]:
    return [(row["first"], row["last"]) for row in rows(result)]


def test_exports_what_is_stored_and_then_has_nothing_to_do(
    stratum: Any, log: Any, lake: Folder
) -> None:
    log.send("research", "task", *range(25))
    planned = stratum("lake", "export", "--dry-run", "--json")
    assert rows(planned) == [{"stream": "LOG", "first": 1, "last": 25}]
    assert not lake.lake.exists()
    assert ranges(stratum("lake", "export", "--json")) == [(1, 10), (11, 20), (21, 25)]
    again = stratum("lake", "export")
    assert (again.returncode, again.stdout) == (0, "")
    assert "the lake holds all of it" in again.stderr
    assert [message.sequence for message in lake_messages(lake.lake)] == list(range(1, 26))


def test_lists_the_files_and_what_is_none_of_them(stratum: Any, log: Any, lake: Folder) -> None:
    assert "the lake is empty" in stratum("lake", "list").stderr
    log.send("research", "task", *range(15))
    stratum("lake", "export")
    first, second = lake.listing().segments
    (first.path.parent / "notes.txt").write_text("x")
    second.path.write_bytes(b"damaged")
    shown = rows(stratum("lake", "list", "--json"))
    assert [(row["state"], row.get("events")) for row in shown] == [
        ("whole", 10),
        ("damaged", None),
        ("foreign", None),
    ]
    assert shown[0]["date"] == first.day.isoformat()
    assert shown[0]["file"] == str(first.path.relative_to(lake.lake))
    assert shown[0]["bytes"] == first.path.stat().st_size


def test_compacts_days_with_many_files(stratum: Any, log: Any, lake: Folder) -> None:
    log.send("research", "task", *range(620))
    stratum("lake", "export")
    planned = stratum("lake", "compact", "--dry-run", "--json")
    assert rows(planned) == [{"stream": "LOG", "first": 1, "last": 620, "replaced": 62}]
    [done] = rows(stratum("lake", "compact", "--json"))
    assert (done["first"], done["last"], done["events"], done["replaced"]) == (1, 620, 620, 62)
    states = [row["state"] for row in rows(stratum("lake", "list", "--json"))]
    assert sorted(states) == ["replaced"] * 62 + ["whole"]
    assert "no day has files to put together" in stratum("lake", "compact").stderr
    assert stratum("lake", "verify").returncode == 0


def test_verifies_and_says_what_is_wrong(stratum: Any, log: Any, lake: Folder) -> None:
    missing = stratum("lake", "verify")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "there is no lake of LOG in" in missing.stderr
    log.send("research", "task", *range(25))
    stratum("lake", "export")
    fine = stratum("lake", "verify")
    assert (fine.returncode, fine.stdout) == (0, "")
    assert "25 events in 3 files, 25 compared with the stream" in fine.stderr
    lake.listing().segments[1].path.unlink()
    result = stratum("lake", "verify", "--json")
    assert result.returncode == 1
    [finding] = rows(result)
    assert (finding["kind"], finding["where"]) == ("missing", "LOG 11 to 20")


def test_a_lake_and_a_stream_can_be_named(stratum: Any, log: Any, project: Path) -> None:
    nothing = stratum("lake", "list")
    assert nothing.returncode == 2
    assert "which lake? Set `path` in [lake] of stratum.toml" in nothing.stderr
    log.send("research", "task", 1, 2)
    assert ranges(stratum("lake", "export", "--path", "other", "--json")) == [(1, 2)]
    unknown = stratum("lake", "export", "--path", "other", "--stream", "NOPE")
    assert unknown.returncode == 3
    assert "there are ADVISORIES" in unknown.stderr
    assert stratum("lake", "list", "--path", "other", "--stream", "../x").returncode == 2


def test_a_second_exporter_is_refused_with_who_the_first_is(
    stratum: Any, log: Any, lake: Folder
) -> None:
    log.send("research", "task", 1)
    with lake.locked("export"):
        result = stratum("lake", "export")
    assert result.returncode == 5
    assert "already writes to" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_replays_what_only_the_lake_holds(stratum: Any, log: Any, lake: Folder) -> None:
    async def trimmable(bus: Bus) -> None:
        await bus.connection.api("STREAM.DELETE.LOG")
        await bus.connection.api("STREAM.CREATE.LOG", LOG)

    async def trim(bus: Bus) -> None:
        await bus.connection.api("STREAM.PURGE.LOG", {"keep": 3})

    log.do(trimmable)
    log.send("research", "task", *range(12))
    log.send("editor", "task", *range(4))
    stratum("lake", "export")
    log.do(trim)
    shown = rows(stratum("replay", "--from", "start", "--json"))
    assert [row["sequence"] for row in shown] == list(range(1, 17))
    some = stratum("replay", "--from", "9", "--filter", "inbox.editor.>", "--to", "14", "--json")
    assert [row["sequence"] for row in rows(some)] == [13, 14]


@pytest.fixture
def delta(project: Path) -> Iterator[Path]:
    text = '[lake]\npath = "lake"\ndelta = "delta"\nsegment_events = 10\n'
    (project / "stratum.toml").write_text(text)
    yield project / "delta"


def test_the_delta_table_follows(stratum: Any, log: Any, delta: Path) -> None:
    from deltalake import DeltaTable

    log.send("research", "task", *range(25))
    assert stratum("lake", "export").returncode == 0
    log.send("research", "task", 1)
    assert stratum("lake", "export").returncode == 0
    assert stratum("lake", "compact").returncode == 0
    assert DeltaTable(str(delta)).to_pyarrow_table().num_rows == 26


def test_a_snapshot_by_the_projector_can_be_opened(stratum: Any, log: Any, project: Path) -> None:
    file = project / ".stratum" / "projection.duckdb"
    sequence = log.send("research", "task", *range(5))[-1]

    async def work() -> Any:
        stop = anyio.Event()
        async with connect(log.url) as bus, task_group() as tasks:

            async def project_events() -> None:
                await run(bus, file, stop=stop)

            tasks.start_soon(project_events)
            await reflected(bus, sequence)
            command = ("projection", "snapshot", "--json", "-o", "copy.duckdb")
            result = await anyio.to_thread.run_sync(lambda: stratum(*command))
            stop.set()
        return result

    result = anyio.run(work)
    assert (result.returncode, result.stderr) == (0, "")
    [row] = rows(result)
    assert (row["file"], row["sequence"]) == (str(project / "copy.duckdb"), sequence)
    answer = query_file(project / "copy.duckdb", "select count(*) as n from events")
    assert (answer.table.to_pylist(), answer.sequence) == ([{"n": 5}], sequence)
    assert not list(file.parent.glob("snapshots/*"))

    without = [rows(stratum("projection", "snapshot", "--json"))[0]["file"] for _ in range(5)]
    assert len(set(without)) == 5
    kept = sorted(map(str, file.parent.glob("snapshots/*")))
    assert kept == sorted(without[-3:])
    assert query_file(kept[0], "select count(*) as n from events").sequence == sequence


async def reflected(bus: Bus, sequence: int) -> None:
    while True:
        try:
            await ask(bus, "select 1", wait_for=sequence)
            return
        except QueryError as error:
            if error.reason != "no_projector":
                raise
        await anyio.sleep(0.02)


def test_no_snapshot_without_a_projection(stratum: Any) -> None:
    result = stratum("projection", "snapshot")
    assert result.returncode == 4
    assert "no projector 'main' answers" in result.stderr
    into_folder = stratum("projection", "snapshot", "-o", ".")
    assert into_folder.returncode == 5
    assert ". is a folder: name the file to write" in into_folder.stderr
