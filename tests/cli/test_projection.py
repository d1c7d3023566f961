"""`stratum projection`: what the projector, or its file, says of projections, and what is asked of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratum_bus.bus import Bus
from stratum_bus.config import load
from stratum_bus.errors import QueryError
from stratum_bus.testing import eventually
from stratum_cli import rebuilding
from stratum_projections import ask
from stratum_projections.manage import State
from stratum_projections.rebuild import Building

SETTINGS = '[projector]\npath = "tables.duckdb"\nprojections = ["views/numbers.py"]\n'
NUMBERS = """\
from stratum_projections import Projection

NUMBERS = Projection(
    name="numbers",
    types=("number",),
    tables={"numbers": "seq bigint, n bigint"},
    statements=("insert into numbers select seq, (data->>'$.n')::bigint from batch",),
)
"""


class Projector:
    """One that keeps a projection of a user's, too."""

    def __init__(self, url: str, folder: Path) -> None:
        config = load(folder / "stratum.toml", {})
        self.command = [
            sys.executable, "-m", "stratum_projections", "--url", url, "--path",
            config.projector.path, "--folder", str(folder), "--config",
            json.dumps({"projections": list(config.projector.projections)}),
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(timeout=20)
        self.process = None


@pytest.fixture
def projector(bus_url: str, project: Path) -> Iterator[Projector]:
    (project / "views").mkdir()
    (project / "views" / "numbers.py").write_text(NUMBERS)
    (project / "stratum.toml").write_text(SETTINGS)
    made = Projector(bus_url, project)
    yield made
    if made.process:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def running(projector: Projector, log: Any) -> Projector:
    """It has read three numbers, one of which is none."""
    log.send("bob", "number", {"n": 1}, {"n": "many"}, {"n": 3})
    projector.start()
    until_reflected(log, 3)
    return projector


def until_reflected(log: Any, sequence: int) -> None:
    async def reflected(bus: Bus) -> bool:
        try:
            await ask(bus, "select 1", wait_for=sequence)
        except QueryError:
            return False
        return True

    log.do(lambda bus: eventually(lambda: reflected(bus), within_seconds=40))


def rows(result: Any) -> list[dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def row(result: Any, name: str = "numbers") -> dict[str, Any]:
    (found,) = (each for each in rows(result) if each["name"] == name)
    return found


def refuses_unknown_names(stratum: Any) -> None:
    for arguments in (
        ("show", "nubers"), ("rebuild", "numbers", "nubers"), ("verify", "nubers"),
        ("pause", "nubers"), ("resume", "nubers"), ("quarantine", "retry", "nubers"),
        ("quarantine", "list", "--projection", "nubers"),
    ):  # fmt: skip
        result = stratum("projection", *arguments)
        assert (result.returncode, result.stdout) == (3, ""), arguments
        assert "there is no projection nubers: did you mean numbers? there are" in result.stderr
    assert row(stratum("projection", "list", "--json"))["building"] is None


def test_lists_shows_says_the_lag_and_refuses_a_name_with_the_nearest(
    stratum: Any, running: Projector
) -> None:
    listed = row(stratum("projection", "list", "--json"))
    assert (listed["version"], listed["status"], listed["tables"]) == (1, "live", ["numbers"])
    assert (listed["sequence"], listed["lag_events"], listed["quarantined"]) == (3, 0, 1)
    assert "numbers" in stratum("projection", "list").stdout
    shown = row(stratum("projection", "show", "numbers", "--json"))
    assert shown["columns"] == {"numbers": ["seq bigint", "n bigint"]}
    assert shown["events"] >= 3
    text = stratum("projection", "show", "numbers").stdout
    assert "table numbers  seq bigint" in text
    lag = row(stratum("projection", "lag", "--json"))
    assert (lag["lag_events"], lag["lag_seconds"]) == (0, 0)
    refuses_unknown_names(stratum)


def test_without_a_projector_its_file_is_read(stratum: Any, running: Projector) -> None:
    running.stop()
    listed = stratum("projection", "list", "--json")
    found = row(listed)
    assert (found["status"], found["sequence"], found["quarantined"]) == ("not running", 3, 1)
    assert "no projector runs; this is what" in listed.stderr
    assert row(stratum("projection", "lag", "--json"))["lag_events"] is None
    shown = row(stratum("projection", "show", "numbers", "--json"))
    assert shown["columns"] == {"numbers": ["seq bigint", "n bigint"]}
    (parked,) = rows(stratum("projection", "quarantine", "list", "--json"))
    assert (parked["sequence"], parked["projection"]) == (2, "numbers")
    for command in ("pause", "resume", "rebuild"):
        refused = stratum("projection", command, "numbers")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert "no projector 'main' answers" in refused.stderr


def test_without_a_projector_and_a_file_the_sentence_says_so(stratum: Any, project: Path) -> None:
    for arguments in (("list",), ("show", "events"), ("lag",), ("quarantine", "list")):
        result = stratum("projection", *arguments)
        assert (result.returncode, result.stdout) == (4, "")
        assert "no projector 'main' answers" in result.stderr


def test_a_paused_projection_reads_no_further(stratum: Any, log: Any, running: Projector) -> None:
    would = stratum("projection", "pause", "numbers", "--dry-run")
    assert would.stdout == "numbers would be paused at LOG 3\n"
    assert row(stratum("projection", "list", "--json"))["status"] == "live"
    assert stratum("projection", "pause", "numbers").stdout == "numbers was paused at LOG 3\n"
    log.send("bob", "number", {"n": 4})
    others = "select max(seq) from events"
    log.do(lambda bus: eventually(lambda: is_answer(bus, others, 4), within_seconds=40))
    paused = row(stratum("projection", "list", "--json"))
    assert (paused["status"], paused["sequence"], paused["lag_events"]) == ("paused", 3, 1)
    running.stop()
    assert row(stratum("projection", "list", "--json"))["status"] == "paused"
    running.start()
    until_reflected(log, 4)
    assert row(stratum("projection", "list", "--json"))["status"] == "paused"
    doctor = stratum("doctor").stdout
    assert "paused: numbers -> let them go on with `stratum projection resume numbers`" in doctor
    assert "1 events could not be taken in -> look at them with" in doctor
    resumed = row(stratum("projection", "resume", "numbers", "--json"))
    assert resumed["resumed"] is True
    numbers = "select max(n) from numbers"
    log.do(lambda bus: eventually(lambda: is_answer(bus, numbers, 4), within_seconds=40))


async def is_answer(bus: Bus, sql: str, value: int) -> bool:
    table = (await ask(bus, sql)).table
    return bool(table.column(0)[0].as_py() == value)


def test_a_rebuild_is_waited_for_and_can_be_compared_before(
    stratum: Any, log: Any, running: Projector
) -> None:
    would = stratum("projection", "rebuild", "numbers", "--dry-run")
    assert would.stdout == "numbers would be built anew\n"
    done = row(stratum("projection", "rebuild", "numbers", "--json"))
    assert (done["rebuilt"], done["sequence"], done["version"]) == (True, 3, 1)
    compared = stratum("projection", "rebuild", "numbers", "events", "--compare")
    assert compared.returncode == 0, compared.stderr
    lines = compared.stdout.splitlines()
    for table in ("events", "numbers"):
        assert [table, table] in [line.split()[:2] for line in lines if line.endswith("yes")]
    assert sorted(line for line in lines if "was built anew" in line) == [
        "events was built anew up to LOG 3, as version 1",
        "numbers was built anew up to LOG 3, as version 1",
    ]
    begun = row(stratum("projection", "rebuild", "numbers", "--no-wait", "--json"))
    assert begun["building"] is True


def test_verify_is_green_or_names_the_first_difference_of_a_table(
    stratum: Any, project: Path, running: Projector
) -> None:
    verified = stratum("projection", "verify", "numbers", "events")
    assert verified.returncode == 0, verified.stderr
    found = [line.split() for line in verified.stdout.splitlines()[1:]]
    assert ["events", "events", "3", "yes"] in found
    assert ["numbers", "numbers", "2", "yes"] in found
    assert "up to LOG 3, 3 messages: all is as a fresh fold of the log has it" in verified.stderr
    view = project / "views" / "numbers.py"
    view.write_text(NUMBERS.replace("::bigint from", "::bigint * 10 from"))
    result = stratum("projection", "verify", "numbers", "--json")
    assert result.returncode == 1
    (found,) = (row for row in map(json.loads, result.stdout.splitlines()) if not row["same"])
    assert (found["projection"], found["table"]) == ("numbers", "numbers")
    assert (found["difference"]["live"], found["difference"]["fresh"]) == ("1", "10")
    said = stratum("projection", "verify", "numbers")
    assert "n 1, and a fresh fold 10" in said.stdout.splitlines()[-1]
    assert "3 messages: 1 difference" in said.stderr


def test_what_is_quarantined_is_listed_shown_and_tried_again(
    stratum: Any, running: Projector
) -> None:
    (parked,) = rows(stratum("projection", "quarantine", "list", "--json"))
    assert (parked["sequence"], parked["projection"], parked["reason"]) == (
        2, "numbers", "statement",
    )  # fmt: skip
    (shown,) = rows(stratum("projection", "quarantine", "show", "2", "--json"))
    assert '"many"' in shown["payload"]
    assert shown["kept_from"][0]["projection"] == "numbers"
    missing = stratum("projection", "quarantine", "show", "1")
    assert (missing.returncode, missing.stdout) == (3, "")
    assert "there is no quarantined event LOG 1" in missing.stderr
    would = stratum("projection", "quarantine", "retry", "--dry-run")
    assert would.stdout == "LOG 2 of numbers: would be tried again\n"
    (retried,) = rows(stratum("projection", "quarantine", "retry", "numbers", "--json"))
    assert (retried["sequence"], retried["released"]) == (2, False)
    assert "many" in retried["detail"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)  # fmt: skip
def test_what_is_left_is_said_as_one_would(seconds: float, said: str) -> None:
    assert rebuilding.seconds_text(seconds) == said


def test_progress_says_how_far_how_fast_and_how_long() -> None:
    at = Building(version=2, sequence=430, end=1000, events_per_s=1500.4, eta_seconds=12.2)
    state = State(
        name="papers", version=1, tables=["papers"], status="building", sequence=1000,
        lag_events=0, lag_seconds=0, quarantined=0, events=0, batches=0, seconds=0, building=at,
    )  # fmt: skip
    said = "papers: 43 %, at LOG 430 of 1,000, 1,500 events/s, 12 s left"
    assert rebuilding.progress(state) == said
