"""Dependencies point one way, foreign libraries end at one border, and no folder hides a library."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {
    "stratum_bus": REPOSITORY / "stratum_bus",
    "stratum_agents": REPOSITORY / "agents" / "stratum_agents",
    "stratum_projections": REPOSITORY / "projections" / "stratum_projections",
    "stratum_cli": REPOSITORY / "cli" / "stratum_cli",
}
KNOWS = {
    "stratum_bus": set[str](),
    "stratum_agents": {"stratum_bus"},
    "stratum_projections": {"stratum_bus"},
    "stratum_cli": {"stratum_bus", "stratum_agents", "stratum_projections"},
}
BORDER = {
    "nats": {"stratum_bus/jetstream.py", "stratum_bus/wire.py"},
    "typer": {"stratum_cli"},
    "rich": {"stratum_cli"},
    "starlette": {f"stratum_cli/gateway/{name}.py" for name in ("access", "app", "stream")},
    "uvicorn": {"stratum_cli/gateway/serve.py", "stratum_cli/gateway/connection.py"},
    "duckdb": {"stratum_projections/select.py", "stratum_projections/store.py"},
}
"""Which files, or packages, may import a library."""


@functools.cache
def imports_of(file: Path) -> set[str]:
    """The first part of everything that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            found.add((node.module or "").partition(".")[0])
    return found


def files_of(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_dependencies_point_one_way(package: str) -> None:
    for file in files_of(package):
        others = {name for name in imports_of(file) if name in PACKAGES and name != package}
        assert others <= KNOWS[package], f"{file} imports {others}"


@pytest.mark.parametrize("library", BORDER)
def test_a_foreign_library_ends_at_one_border(library: str) -> None:
    for package, folder in PACKAGES.items():
        for file in files_of(package):
            if library in imports_of(file):
                place = f"{package}/{file.relative_to(folder)}"
                assert {place, package} & BORDER[library], f"{place} imports {library}"


def test_no_source_imports_by_the_name_of_a_folder() -> None:
    """`import projections.stratum_projections` would load a second copy."""
    for package in PACKAGES:
        for file in files_of(package):
            assert not {"agents", "projections", "cli"} & imports_of(file), file


@pytest.mark.parametrize("folder", ["nats", "agents", "projections", "cli", "tests"])
def test_only_packages_are_packages(folder: str) -> None:
    assert not (REPOSITORY / folder / "__init__.py").exists()


def test_nats_is_the_client_also_where_our_folder_of_that_name_stands() -> None:
    program = "import nats; assert hasattr(nats, 'connect'), nats.__path__"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
    assert not list((REPOSITORY / "nats").rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed_and_shipped(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert str(PACKAGES[package].relative_to(REPOSITORY)) in shipped


def test_a_module_is_loaded_under_one_name() -> None:
    """As it is where a folder is on the path twice."""
    program = (
        "import collections, sys, stratum_bus, stratum_agents, stratum_projections, stratum_cli.main;"
        "files = [m.__file__ for m in list(sys.modules.values())"
        " if getattr(m, '__file__', None) and 'stratum_' in m.__file__];"
        "print([f for f, n in collections.Counter(files).items() if n > 1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True
    )
    assert done.stdout.strip() == b"[]"
