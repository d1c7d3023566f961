"""Which projections a projector keeps: the shipped ones, and those of its users.

A user names files or `module:name` in `[projector] projections` of stratum.toml; a package that is
installed offers its own as entry points of the group `stratum.projections`. What cannot be loaded
is a ConfigError that says where and why.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from stratum_bus.config import FILE, Config, is_file
from stratum_bus.errors import ConfigError, ProjectorError
from stratum_projections.catalog import install
from stratum_projections.fold import Fold
from stratum_projections.projection import Projection
from stratum_projections.store import Store
from stratum_projections.views import SHIPPED

GROUP = "stratum.projections"
"""The group of entry points; each is a module, a Projection or a list of them."""

_SHIPPED_FROM = "Stratum itself"


def find(config: Config) -> tuple[Projection, ...]:
    """The shipped projections, then those of stratum.toml, then those of installed packages.

    Raises ConfigError, also where two have a name or a table in common.
    """
    _import_from(Path(config.folder))
    found: list[tuple[str, Sequence[Projection]]] = [(_SHIPPED_FROM, SHIPPED)]
    named = config.projector.projections
    for i, each in enumerate(named):
        key = f"projector.projections[{i}]"
        if each in named[:i]:
            continue
        if is_file(each):
            path = Path(each)
            file = _near(path, config.folder)
            if not path.exists():
                expected = "a file with projections"
                advice = f"make it with `stratum projection new {path.stem}`, or leave it out"
                raise ConfigError(key, expected, f"no file {file}: {advice}")
            found.append((file, load(path)))
        else:
            found.append((each, _named(each, key)))
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        found.append((entry.value, _offered(entry)))
    return _together(found)


def load(path: Path | str) -> tuple[Projection, ...]:
    """All projections that a Python file holds at its top level, but the shipped ones it imports.

    Raises ConfigError with the line: it cannot be read or imported, or holds none.
    """
    path = Path(path).resolve()
    file = _near(path, ".")
    module = ModuleType(str(path))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # types that are named in it are looked up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)  # noqa: S102 - its user asked for it
    except OSError as error:
        got = (error.strerror or str(error)).lower()
        raise ConfigError("the file", "to be readable", got, file=file) from error
    except SyntaxError as error:
        where = f"line {error.lineno}" if error.filename == str(path) else str(error.filename)
        raise ConfigError(where, "Python", f"a mistake: {error.msg}", file=file) from error
    except (Exception, SystemExit) as error:
        where = f"line {_line(error, path)}"
        raise ConfigError(where, "what can be imported", _said(error), file=file) from error
    if not (projections := _of_module(module)):
        expected = "a Projection, as in PAPERS = Projection(name=…)"
        raise ConfigError("its top level", expected, "none", file=file)
    return projections


def check(projections: Sequence[Projection]) -> None:
    """Raise ProjectorError `projection` where the SQL of one is wrong. Blocking."""
    with tempfile.TemporaryDirectory(prefix="stratum-") as folder:
        store = Store.open(Path(folder) / "projection.duckdb")
        try:
            for projection in (each for each in projections if each not in SHIPPED):
                try:
                    checkpoint, _ = install(store, [projection])
                    Fold(store, checkpoint, [projection])
                except ProjectorError as error:
                    name = f"projection {projection.name}: "
                    said = f"{name}{str(error).removeprefix(name)}"
                    raise ProjectorError(error.reason, said) from error
        finally:
            store.close()


def _named(path: str, key: str) -> tuple[Projection, ...]:
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (Exception, SystemExit) as error:
        expected = "module:name that can be imported"
        raise ConfigError(key, expected, f"{path!r}: {_said(error)}") from error
    return _checked(found, key, path, FILE)


def _offered(entry: EntryPoint) -> tuple[Projection, ...]:
    key = f"its entry point {entry.name} = {entry.value}"
    file = entry.dist.name if entry.dist else GROUP
    try:
        found = entry.load()
    except (Exception, SystemExit) as error:
        raise ConfigError(key, "what can be imported", _said(error), file=file) from error
    return _checked(found, key, entry.value, file)


def _checked(found: Any, key: str, path: str, file: str) -> tuple[Projection, ...]:
    if isinstance(found, ModuleType):
        projections = _of_module(found)
    elif isinstance(found, Projection):
        projections = (found,)
    elif isinstance(found, list | tuple) and all(isinstance(p, Projection) for p in found):
        projections = tuple(found)
    else:
        projections = ()
    if not projections:
        expected = "a Projection, or a list or module of them"
        got = "none" if isinstance(found, ModuleType) else f"a {type(found).__name__}"
        raise ConfigError(key, expected, f"{got} at {path}", file=file)
    return projections


def _of_module(module: ModuleType) -> tuple[Projection, ...]:
    found: list[Projection] = []
    for each in vars(module).values():
        if isinstance(each, Projection) and each not in (*SHIPPED, *found):
            found.append(each)
    return tuple(found)


def _together(found: Iterable[tuple[str, Sequence[Projection]]]) -> tuple[Projection, ...]:
    """All of them, each once; no two may share a name or a table."""
    projections: list[Projection] = []
    owners: dict[tuple[str, str], str] = {}
    for where, each in ((where, each) for where, several in found for each in several):
        if each in projections:
            continue  # imported by another file
        projections.append(each)
        for what in (("name", each.name), *(("table", table) for table in each.tables)):
            if what in owners:
                kind, name = what
                expected = f"a {kind} that no other projection has"
                raise ConfigError(
                    f"projection {each.name}", expected,
                    f"the {kind} {name}, which that of {owners[what]} has: rename one", file=where,
                )  # fmt: skip
            owners[what] = where
    return tuple(projections)


def _import_from(folder: Path) -> None:
    """Let a project's own modules be imported, which are beside its stratum.toml."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _line(error: BaseException, path: Path) -> int:
    """The last line of the file that was being run."""
    line, at = 1, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == str(path):
            line = at.tb_lineno
        at = at.tb_next
    return line


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _near(path: Path, folder: str) -> str:
    """The path from the folder, where it is below it."""
    below = Path(folder).absolute()
    return str(path.relative_to(below) if path.is_relative_to(below) else path)
