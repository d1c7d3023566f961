"""`stratum projection new`: what it writes works as it is, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stratum_bus.config import load
from stratum_bus.errors import ConfigError
from stratum_projections import SHIPPED
from stratum_projections.found import find
from stratum_projections.skeleton import add


def run_tests(project: Path) -> subprocess.CompletedProcess[str]:
    """As a newcomer does, in the project's folder, with pytest's own defaults."""
    (project / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project, capture_output=True, text=True, timeout=50, check=False,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
    )  # fmt: skip


def test_the_projection_and_its_test_work_as_they_are_written(stratum: Any, project: Path) -> None:
    done = stratum("projection", "new", "papers", "--add")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["view  views/papers.py", "test  tests/test_papers.py"]
    assert "named in stratum.toml" in done.stderr
    text = (project / "views" / "papers.py").read_text()
    assert len(text.splitlines()) <= 25
    config = load(project / "stratum.toml", {})
    assert [each.name for each in find(config)[len(SHIPPED) :]] == ["papers"]
    tested = run_tests(project)
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout


def test_up_refuses_a_projection_with_a_mistake_in_one_sentence(
    stratum: Any, alone: Any, project: Path
) -> None:
    stratum("projection", "new", "papers", "--add")
    view = project / "views" / "papers.py"
    view.write_text(view.read_text().replace("papers by name", "paper by name"))
    done = alone("up")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("stratum: projection papers: ")
    assert not (project / ".stratum" / "jetstream").exists()


def test_it_can_stand_in_any_folder(stratum: Any, project: Path) -> None:
    done = stratum("projection", "new", "papers", "--folder", "src/tables", "--json")
    assert json.loads(done.stdout) == {
        "view": "src/tables/papers.py", "test": "tests/test_papers.py",
    }  # fmt: skip
    assert 'projections = ["src/tables/papers.py"]' in done.stderr
    assert not (project / "stratum.toml").exists()
    assert "../src/tables/papers.py" in (project / "tests" / "test_papers.py").read_text()


@pytest.mark.parametrize("there", ["views/papers.py", "tests/test_papers.py"])
def test_nothing_is_overwritten(stratum: Any, project: Path, there: str) -> None:
    (project / there).parent.mkdir()
    (project / there).write_text("mine")
    done = stratum("projection", "new", "papers", "--add")
    assert (done.returncode, done.stdout) == (5, "")
    assert f"{there} is already there, and nothing is overwritten" in done.stderr
    files = [str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()]
    assert files == [there]
    assert (project / there).read_text() == "mine"


def test_a_dry_run_writes_nothing(stratum: Any, project: Path) -> None:
    done = stratum("projection", "new", "papers", "--add", "--dry-run")
    assert (done.returncode, list(project.iterdir())) == (0, [])
    assert "would be named in stratum.toml" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_sentence(stratum: Any, project: Path) -> None:
    (project / "views").write_text("a file")
    done = stratum("projection", "new", "papers")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot write" in done.stderr
    assert not (project / "tests").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("events", "Stratum has a table of that name"),
        ("memory_changes", "Stratum has a table of that name"),
        ("batch", "it must be of a-z 0-9 _ and none of"),
        ("My-Papers", "it must be of a-z 0-9 _"),
        ("../papers", "it must be of a-z 0-9 _"),
    ],
)
def test_a_name_that_cannot_be_a_table_is_refused(
    stratum: Any, project: Path, name: str, said: str
) -> None:
    done = stratum("projection", "new", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"projection name '{name}' is not allowed: {said}" in done.stderr
    assert not list(project.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# mine\n[server]\nport = 4222\n",
        "[projector]\n",
        "[projector] # here\npath = 'x]'\n\n[server]\n",
        "[projector]\nprojections = []\n",
        "[projector]\nprojections = ['a[0].py']  # so far\n[server]\n",
        "[projector]\nprojections = [\n    'a.py',  # one\n    'b:c',\n]\n",
        "[projector]\nprojections = [\n    'a.py',\n    'b:c' # no comma\n]\npath = 'x'\n",
        "projector.projections = ['a.py']\n",
        "[lake]\nstreams = ['LOG']\n[projector]\n  projections = ['a.py', ]",
        "[server]\nport = 1",
    ],
)
def test_it_is_added_to_stratum_toml_and_nothing_else_is_changed(text: str, tmp_path: Path) -> None:
    file = tmp_path / "stratum.toml"
    file.write_text(text)
    before = tomllib.loads(text)
    add(file, "views/papers.py")
    add(file, "views/papers.py")
    after = tomllib.loads(file.read_text())
    named = after["projector"].pop("projections")
    there = before.get("projector", {}).pop("projections", [])
    assert sorted(named) == sorted([*there, "views/papers.py"])
    assert after == {"projector": {}, **before}
    kept = [
        line for line in text.splitlines() if "projections" not in line and "no comma" not in line
    ]
    assert set(kept) <= set(file.read_text().splitlines())


def test_a_form_that_cannot_be_added_to_says_what_to_write(tmp_path: Path) -> None:
    file = tmp_path / "stratum.toml"
    file.write_text("projector = {projections = ['a.py']}\n")
    with pytest.raises(ConfigError, match=r'write "views/papers\.py" into it yourself'):
        add(file, "views/papers.py")
    assert file.read_text() == "projector = {projections = ['a.py']}\n"
    file.write_text("not toml")
    with pytest.raises(ConfigError, match="expected TOML"):
        add(file, "views/papers.py")
