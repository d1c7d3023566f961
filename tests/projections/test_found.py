"""The projections of users: from files, modules and installed packages, or why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stratum_bus.config import Config, load
from stratum_bus.errors import ConfigError, ProjectorError
from stratum_projections import SHIPPED
from stratum_projections.found import GROUP, check, find

PAPERS = """\
from stratum_projections import Projection

PAPERS = Projection(
    name="papers",
    tables={"papers": "seq bigint"},
    statements=("insert into papers select seq from batch",),
)
"""


class Project:
    """A folder with a stratum.toml."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str) -> Path:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def config(self, *entries: str) -> Config:
        named = ", ".join(f'"{entry}"' for entry in entries)
        return load(self.write("stratum.toml", f"[projector]\nprojections = [{named}]\n"), {})

    def found(self, *entries: str) -> list[str]:
        """The names of what is found beside the shipped ones."""
        return [each.name for each in find(self.config(*entries))[len(SHIPPED) :]]

    def refused(self, *entries: str) -> str:
        with pytest.raises(ConfigError) as caught:
            find(self.config(*entries))
        text = str(caught.value)
        assert len(text.splitlines()) == 1
        return text


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """What it makes Python import is forgotten afterwards."""
    path, modules = list(sys.path), set(sys.modules)
    yield Project(tmp_path)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_without_any_the_shipped_ones_are_kept(project: Project) -> None:
    assert find(project.config()) == SHIPPED
    assert find(Config()) == SHIPPED


def test_a_file_is_meant_from_the_folder_of_the_settings(project: Project) -> None:
    project.write("views/papers.py", PAPERS + "ALSO = PAPERS\n")
    assert project.found("views/papers.py", "views/papers.py") == ["papers"]


def test_a_file_may_import_from_the_project_and_shipped_projections(project: Project) -> None:
    project.write("mine.py", "NAME = 'papers'\n")
    text = "import mine\nfrom stratum_projections.views.events import EVENTS\n" + PAPERS
    project.write("views/papers.py", text.replace('"papers"', "mine.NAME", 1))
    assert project.found("views/papers.py") == ["papers"]


def test_one_that_another_file_imports_is_one(project: Project) -> None:
    project.write("first.py", PAPERS)
    more = PAPERS.replace("papers", "more").replace("PAPERS", "MORE")
    project.write("second.py", "from first import PAPERS\n" + more)
    assert project.found("first.py", "second.py") == ["papers", "more"]


def test_a_module_gives_one_or_a_list(project: Project) -> None:
    project.write("stratum_test_views.py", PAPERS + "ALL = [PAPERS]\n")
    assert project.found("stratum_test_views:PAPERS") == ["papers"]
    assert project.found("stratum_test_views:ALL", "stratum_test_views:PAPERS") == ["papers"]


def test_an_installed_package_offers_its_own(project: Project) -> None:
    project.write("stratum_test_package.py", PAPERS)
    metadata = "Metadata-Version: 2.1\nName: stratum-test-package\nVersion: 1.0\n"
    project.write("stratum_test_package-1.0.dist-info/METADATA", metadata)
    entry = "stratum_test_package-1.0.dist-info/entry_points.txt"
    for value in ("stratum_test_package", "stratum_test_package:PAPERS"):
        project.write(entry, f"[{GROUP}]\npapers = {value}\n")
        assert project.found() == ["papers"]
    project.write(entry, f"[{GROUP}]\npapers = stratum_test_package:__name__\n")
    said = project.refused()
    assert "stratum-test-package: its entry point papers = stratum_test_package:__name__" in said
    assert "expected a Projection, or a list or module of them, got a str" in said
    project.write(entry, f"[{GROUP}]\npapers = stratum_test_nowhere\n")
    assert "No module named 'stratum_test_nowhere'" in project.refused()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "its top level: expected a Projection, as in PAPERS = Projection(name=…), got none"),
        ("\nx = (", "line 2: expected Python, got a mistake: '(' was never closed"),
        ("\n\nimport nowhere_at_all", "line 3: expected what can be imported, got Module"),
        ("raise SystemExit(3)", "line 1: expected what can be imported, got SystemExit: 3"),
        ("\ndef f(): g()\ndef g(): 1 / 0\nf()", "line 3: expected what can be imported, got Zero"),
        (
            PAPERS.replace('"papers"', '"Pa pers"', 1),
            "line 3: expected what can be imported, got V",
        ),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(
    project: Project, text: str, said: str
) -> None:
    file = project.write("views/bad.py", text)
    answer = project.refused("views/bad.py")
    assert str(file) in answer or "views/bad.py" in answer
    assert said in answer


def test_a_file_that_is_not_there_says_how_to_make_it(project: Project) -> None:
    said = project.refused("views/papers.py")
    assert said.startswith("stratum.toml: projector.projections[0]: expected a file with project")
    assert "no file views/papers.py: make it with `stratum projection new papers`" in said
    (project.folder / "folder.py").mkdir()
    assert "expected to be readable, got is a directory" in project.refused("folder.py")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("views/papers", "expected a file such as views/papers.py, or module:name as in"),
        ("nowhere_at_all:X", "got 'nowhere_at_all:X': ModuleNotFoundError: No module named"),
        ("sys:nothing", "got 'sys:nothing': AttributeError"),
        ("sys:path", "expected a Projection, or a list or module of them, got a list at sys:path"),
        ("os:path", "expected a Projection, or a list or module of them, got none at os:path"),
    ],
)
def test_an_entry_that_names_none_is_refused_by_its_place(
    project: Project, entry: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find(project.config(entry))
    assert str(caught.value).startswith("stratum.toml: projector.projections[0]: ")
    assert said in str(caught.value)


def test_entries_are_texts(project: Project) -> None:
    file = project.write("stratum.toml", "[projector]\nprojections = ['a.py', 3]\n")
    with pytest.raises(ConfigError, match=r"projector\.projections\[1\]: expected text, got 3"):
        load(file)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("select seq from", "select sequence from", "sequence"),
        ("seq bigint", "seq bigint, seq int", "seq"),
        ("seq bigint", "seq number_of", "number_of"),
        ("from batch", "frm batch", "syntax error"),
    ],
)
def test_wrong_sql_is_seen_without_an_event(
    project: Project, old: str, new: str, said: str
) -> None:
    project.write("a.py", PAPERS)
    check(find(project.config("a.py")))
    project.write("a.py", PAPERS.replace(old, new))
    with pytest.raises(ProjectorError) as caught:
        check(find(project.config("a.py")))
    assert caught.value.reason == "projection"
    assert str(caught.value).startswith("projection papers: ")
    assert said in str(caught.value)


def test_two_of_one_name_or_table_say_which_files_have_them(project: Project) -> None:
    project.write("a.py", PAPERS)
    project.write("b.py", PAPERS.replace("seq bigint", "seq int"))
    same = project.refused("a.py", "b.py")
    assert "b.py: projection papers: expected a name that no other projection has" in same
    assert "which that of a.py has: rename one" in same
    project.write("b.py", PAPERS.replace('name="papers"', 'name="more"'))
    assert "got the table papers, which that of a.py has" in project.refused("a.py", "b.py")
    project.write("b.py", PAPERS.replace('name="papers"', 'name="events"'))
    assert "the name events, which that of Stratum itself has" in project.refused("b.py")
