"""docs/projections.md is true: its files work, its commands run in their order, its tables are whole."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import asdict, fields

from stratum_bus import jetstream
from stratum_bus.config import ProjectorConfig, load
from stratum_bus.data_dir import locate
from stratum_bus.jetstream import Reply
from stratum_bus.server import free_port
from stratum_cli.main import main
from stratum_projections import SHIPPED, Projection, metrics
from stratum_projections.batch import COLUMNS
from stratum_projections.found import GROUP, find
from stratum_projections.query import HEADER_ERROR, HEADER_ERROR_TEXT, HEADER_LAST, HEADER_SEQUENCE

PAGE = Path(__file__).parents[1] / "docs" / "projections.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
FILES = {
    found[1]: text
    for _, text in BLOCKS
    if (found := re.match(r"# ([\w/]+\.(?:py|toml))\n", text)) and found[1] != "pyproject.toml"
}
COMMANDS = [
    line.partition("  #")[0].removeprefix("$ ")
    for kind, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page in a folder, which is the working folder."""
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_the_files_of_the_page_are_projections(project: Path) -> None:
    assert {"invoices", "accounts", "words"} <= {each.name for each in find(load(environ={}))}


def test_all_python_of_the_page_can_be_run(project: Path) -> None:
    for kind, text in BLOCKS:
        if kind == "python":
            run_code(text)


def test_the_test_of_the_page_passes(project: Path) -> None:
    for name in [name for name in FILES if name.startswith("tests/")]:
        test = run_code(FILES[name], project / name)
        [each() for key, each in vars(test).items() if key.startswith("test_")]


def test_the_other_projections_of_the_page_keep_their_promises(project: Path) -> None:
    from stratum_projections.testing import project as projected

    tables = projected(
        "views/accounts.py",
        [
            ("inbox.billing.shop.invoice", {"total": 42}),
            ("inbox.billing.bar.invoice", {"total": 1}),
            ("inbox.billing.shop.payment", {"total": 40}),
            ("inbox.billing.shop.reminder", {}),
        ],
    )
    assert tables["accounts"] == [
        {"customer": "bar", "open": 1.0, "last_seq": 2},
        {"customer": "shop", "open": 2.0, "last_seq": 3},
    ]
    note = "topic.alice.note.written"
    given = [(note, {"text": "one two"}), (note, {"text": " "})]
    tables = projected("views/words.py", given, quarantined=[2])
    assert tables["words"] == [{"seq": 1, "words": 2}]
    assert tables["quarantine"][0]["detail"] == "it has no words"


def run_code(text: str, path: Path = PAGE) -> SimpleNamespace:
    module: dict[str, Any] = {"__file__": str(path), "__name__": "docs_projections"}
    exec(compile(text, str(path), "exec"), module)  # noqa: S102 - our page
    return SimpleNamespace(**module)


async def asked(url: str) -> list[dict[str, Any]]:
    """The answer to the request of the page, with nothing but NATS."""
    (request,) = (text for kind, text in BLOCKS if kind == "json")
    payloads: list[bytes] = []
    last = anyio.Event()

    def take(reply: Reply) -> None:
        payloads.append(reply.payload)
        if HEADER_LAST in (reply.headers or {}):
            last.set()

    async with jetstream.connect(url) as connection:
        inbox = connection.new_inbox()
        async with connection.subscribe(inbox, take):
            await connection.send("query.main", request.encode(), reply=inbox)
            with anyio.fail_after(30):
                await last.wait()
    return [json.loads(line) for line in b"".join(payloads).splitlines()]


def start() -> int:
    """`stratum up` in a process of its own: it leaves one behind."""
    up = [sys.executable, "-m", "stratum_cli", "up", "--detach"]
    return subprocess.run(up, check=False).returncode


@pytest.mark.timeout(240)
def test_the_commands_of_the_page_run_in_their_order(
    project: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with (project / "stratum.toml").open("a") as file:
        file.write(f"[server]\nport = {free_port()}\n[supervisor]\nhttp_port = {free_port()}\n")
    printed: dict[str, str] = {}
    try:
        sent = ""
        for line in COMMANDS:
            capfdbinary.readouterr()
            words = [sent if word == "SEQ" else word for word in shlex.split(line)]
            code = start() if words[1] == "up" else main(words[1:])
            out, err = capfdbinary.readouterr()
            assert code == 0, f"{line}: {err.decode()}"
            printed[line] = out.decode()
            if words[1] == "send":
                sent = re.findall(r"\d+", printed[line])[0]
        found = locate(project / ".stratum")
        assert found
        (code,) = (text for kind, text in BLOCKS if kind == "python" and "import ask" in text)
        page = run_code(code)
        both = [{"sender": "shop", "total": 42.0}, {"sender": "shop", "total": 7.5}]
        assert anyio.run(page.totals) == both
        assert anyio.run(page.totals_up_to, found.url, int(sent)) == 2
        assert anyio.run(asked, found.url) == both
        served = urllib.request.urlopen(
            f"http://127.0.0.1:{load(environ={}).supervisor.http_port}/metrics"
        )
        with served:
            assert (
                'stratum_projection_events_total{projection="invoices"}' in served.read().decode()
            )
    finally:
        main(["down"])
    assert (project / "today.duckdb").stat().st_size
    said = {line.split("'")[1]: out for line, out in printed.items() if " sql '" in line}
    sums = said["select sender, count(*), sum(total) from invoices group by sender"]
    assert sums.splitlines()[1].split() == ["shop", "2", "49.5"]
    quarantined = said["select seq, projection, reason, detail from quarantine"]
    assert [row.split()[:3] for row in quarantined.splitlines()[1:]] == [
        [sent, "accounts", "statement"], [sent, "invoices", "statement"],
    ]  # fmt: skip
    assert said["select count(*) from invoices"].split()[-1] == "2"
    assert "still quarantined" in printed["stratum projection quarantine retry invoices"]
    assert "invoices" in printed["stratum projection list"]


def rows(heading: str) -> list[list[str]]:
    """The table with this first heading."""
    table = TEXT.partition(f"\n| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in table]


def named(heading: str) -> list[str]:
    return [name for row in rows(heading) for name in re.findall(r"`(\w+)`", row[0])]


def test_every_field_of_a_projection_is_explained() -> None:
    assert sorted(named("field")) == sorted(field.name for field in fields(Projection))


def test_every_shipped_projection_is_there() -> None:
    told = set(named("table"))
    assert {each.name for each in SHIPPED} <= told
    assert told - {table for each in SHIPPED for table in each.tables} == {"quarantine"}


def test_every_column_of_batch_is_explained_with_its_type() -> None:
    told = {
        name: kinds[i] if len(kinds) > 1 else kinds[0]
        for names, kind, _ in rows("column")
        for kinds in [kind.split(", ")]
        for i, name in enumerate(re.findall(r"`(\w+)`", names))
    }
    assert told == {**COLUMNS, "cause": "bigint"}


def test_every_metric_is_there_and_no_other() -> None:
    there = {
        *(f"stratum_projection_{name}_total" for name in metrics.COUNTERS),
        *(f"stratum_projection_{name}" for name in metrics.GAUGES),
    }
    assert set(named("metric")) == there


def test_every_setting_is_there_with_its_default() -> None:
    examples = [tomllib.loads(text) for kind, text in BLOCKS if kind == "toml"]
    (shown,) = (each["projector"] for each in examples if "path" in each.get("projector", {}))
    assert shown == {
        **msgspec.to_builtins(ProjectorConfig()), "path": ".stratum/projection.duckdb",
        "projections": [],
    }  # fmt: skip
    assert asdict(load(environ={}).projector)["path"].endswith(shown["path"])


def test_the_words_of_the_page_are_those_of_the_code() -> None:
    assert f'[project.entry-points."{GROUP}"]' in TEXT
    for header in (HEADER_LAST, HEADER_SEQUENCE, HEADER_ERROR, HEADER_ERROR_TEXT):
        assert f"`{header}`" in TEXT
