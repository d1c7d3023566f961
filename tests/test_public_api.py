"""What the packages say is public is all of it, is there, and is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stratum_agents
import stratum_bus
import stratum_projections
from stratum_bus import errors

PACKAGES = [stratum_bus, stratum_agents, stratum_projections]
REPOSITORY = Path(__file__).parents[1]
ROOTS = ["stratum_bus", "agents/stratum_agents", "projections/stratum_projections"]


def bound_in(module: ModuleType) -> set[str]:
    """The public names that the source of a module binds at its top."""
    names: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")} - {"annotations"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_package_holds_its_public_names_and_nothing_else(package: ModuleType) -> None:
    assert set(package.__all__) == bound_in(package)
    assert len(set(package.__all__)) == len(package.__all__)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_everything_public_is_documented(package: ModuleType) -> None:
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing):
            assert inspect.getdoc(thing), f"{package.__name__}.{name} has no docstring"


def modules() -> list[str]:
    found = []
    for root in ROOTS:
        base = (REPOSITORY / root).parent
        for file in sorted((REPOSITORY / root).rglob("*.py")):
            if file.name != "__main__.py":
                parts = file.relative_to(base).with_suffix("").parts
                found.append(".".join(part for part in parts if part != "__init__"))
    return found


@pytest.mark.parametrize("name", modules())
def test_what_a_module_lists_is_there_and_it_says_what_it_is(name: str) -> None:
    importlib.import_module(name)
    module = sys.modules[name]  # the package may have a public name like it
    is_empty = not Path(str(module.__file__)).read_text(encoding="utf-8")
    assert module.__doc__ or is_empty, f"{name} has no docstring"
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public), f"{name} lists {public}, which is not there"


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ├└─]*)(\w+)(?:\s{2,}|$)", line):
            depth = len(match[1]) // 4
            if match[2] == "StratumError" or depth:
                above[depth:] = [match[2]]
                drawn[match[2]] = above[depth - 1] if depth else "Exception"
    defined = {
        name: thing.__bases__[0].__name__
        for name, thing in vars(errors).items()
        if inspect.isclass(thing) and issubclass(thing, Exception)
    }
    assert drawn == defined


def test_an_error_is_one_sentence_without_line_breaks() -> None:
    examples = [
        errors.InvalidName("agent name", "a\nb" * 100, "it has a line break"),
        errors.EncodeError("$.data", "object"),
        errors.NoStream("inbox.a.b.c"),
        errors.NotFound("stream", "X"),
        errors.TooLarge("inbox.a.b.c", 2_000_000, 1_000_000),
        errors.WrongSequence("run.a.b", 0, None),
        errors.WrongSequence("run.a.b", 0, 7),
        errors.PermissionDenied("topic.a.b"),
        errors.Refused("X", 10025, "unknown field"),
        errors.InvalidEvent("json", "not JSON", stream="LOG", sequence=7),
    ]
    for error in examples:
        assert len(str(error).splitlines()) == 1
        assert not str(error).endswith(".")


def test_the_bus_loads_nothing_that_it_does_not_need() -> None:
    heavy = (
        "duckdb",
        "pyarrow",
        "typer",
        "rich",
        "stratum_agents",
        "stratum_projections",
        "pytest",
    )
    program = f"import sys, stratum_bus; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_the_names_of_the_readme_are_there() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^from (stratum_\w+) import (.+)$", readme, re.MULTILINE)
    assert found
    for package, names in found:
        module = importlib.import_module(package)
        for name in names.split(", "):
            assert name in module.__all__
