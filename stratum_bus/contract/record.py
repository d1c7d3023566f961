"""The record: the schema of every version of every type's data, as files that are committed.

`<type>.<version>.json` is what `schemas.data_schema` made of it. A type that is declared otherwise
than recorded is judged: where the log may hold data that would not fit any more, or would lose a
field, there has to be an upcaster. Version n's file changes as long as it does so harmlessly; once
n + 1 is recorded it stands for ever, as the events of it do.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from stratum_bus.contract.compare import Change, compare
from stratum_bus.contract.schemas import Schema, data_schema
from stratum_bus.errors import ConfigError, IncompatibleType
from stratum_bus.schema import TYPES, EventType, schema_uri

FOLDER = "contract"
"""Where a project has its record, beside stratum.toml."""

NEW, SAME, CHANGED, BROKEN, GONE = "new", "same", "changed", "broken", "gone"
"""What has become of a type: `gone` are those that nobody declares any more."""

Versions = dict[int, Schema]


class Verdict(msgspec.Struct, frozen=True):
    """How a type stands to its record.

    `recorded` is the newest recorded version (0: none), `changes` lead from it to `version`, which
    the code declares (0: none). `problem` is there where it is broken.
    """

    type: str
    state: str
    recorded: int = 0
    version: int = 0
    changes: tuple[Change, ...] = ()
    problem: IncompatibleType | None = None


def load(folder: Path) -> dict[str, Versions]:
    """The recorded schemas by type and version; nothing where there is no such folder.

    Raises ConfigError for a file that has such a name and is no schema of it.
    """
    found: dict[str, Versions] = {}
    for file in sorted(folder.glob("*.json")):
        type, _, version = file.stem.rpartition(".")
        if type and version.isdecimal():
            found.setdefault(type, {})[int(version)] = _read(file, type, int(version))
    return found


def judge(record: dict[str, Versions], known: EventType) -> Verdict:
    """How one declared type stands to its record, those under its former names included."""
    versions: Versions = {}
    for name in (*known.former, known.name):
        versions |= record.get(name, {})
    if not versions:
        return Verdict(known.name, NEW, version=known.version)
    latest, schema = max(versions), data_schema(known)
    changes = tuple(compare(versions[latest], schema))
    verdict = Verdict(known.name, SAME, latest, known.version, changes)
    if problem := _problem(known, versions, schema):
        return msgspec.structs.replace(verdict, state=BROKEN, problem=problem)
    same = record.get(known.name, {}).get(known.version) == schema
    return verdict if same else msgspec.structs.replace(verdict, state=CHANGED)


def judge_all(record: dict[str, Versions], known: Sequence[EventType]) -> list[Verdict]:
    """All types, declared and recorded, by their names."""
    verdicts = {each.name: judge(record, each) for each in known}
    there = {*verdicts, *(former for each in known for former in each.former)}
    for name in set(record) - there:
        verdicts[name] = Verdict(name, GONE, max(record[name]))
    return [verdicts[name] for name in sorted(verdicts)]


def check(folder: Path, known: Iterable[EventType]) -> None:
    """Raise IncompatibleType for the first type that is broken; a type that is not recorded is none."""
    if record := load(folder):
        _refuse(judge(record, each) for each in known)


def write(folder: Path, known: Iterable[EventType], *, dry_run: bool = False) -> list[Verdict]:
    """Bring the record up to what is declared; returns what was, or with `dry_run` would be, written.

    Raises IncompatibleType, having written nothing.
    """
    by_name = {each.name: each for each in known}
    record = load(folder)
    verdicts = [judge(record, by_name[name]) for name in sorted(by_name)]
    _refuse(verdicts)
    news = [verdict for verdict in verdicts if verdict.state in (NEW, CHANGED)]
    if news and not dry_run:
        folder.mkdir(parents=True, exist_ok=True)
        for verdict in news:
            each = by_name[verdict.type]
            (folder / file_of(each)).write_text(text(data_schema(each)), encoding="utf-8")
    return news


def file_of(known: EventType) -> str:
    """The name of the file of a type's present version."""
    return f"{known.name}.{known.version}.json"


def text(document: Any) -> str:
    """A document as it is committed."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def declared(*others: EventType) -> list[EventType]:
    """Every declared type once, and others where no declared one has the name."""
    found = {known.name: known for known in (*others, *TYPES.values())}
    return [found[name] for name in sorted(found)]


def _refuse(verdicts: Iterable[Verdict]) -> None:
    for verdict in verdicts:
        if verdict.problem is not None:
            raise verdict.problem


def _problem(known: EventType, versions: Versions, schema: Schema) -> IncompatibleType | None:
    """The first step on the way from the recorded versions to the declared one that is missing."""
    if max(versions) > known.version:
        newest = max(versions)
        said = (f"the code declares version {known.version}",)
        advice = f"declare version={newest}, which the log may hold already"
        return IncompatibleType(known.name, newest, said, advice)
    for old, new, before, now in _steps(known, versions, schema):
        breaking = tuple(str(each) for each in compare(before, now) if each.breaking)
        missing = [step for step in range(old, max(new, old + 1)) if step not in known.upcasters]
        if not breaking or not missing:
            continue
        upcaster = f'@upcaster("{known.name}", since={missing[0]})'
        if old == new:
            advice = f"declare version={old + 1} with {upcaster}, or take the change back"
        else:
            advice = f"declare {upcaster}, or take the change back"
        return IncompatibleType(known.name, old, breaking, advice)
    return None


def _steps(
    known: EventType, versions: Versions, schema: Schema
) -> Iterator[tuple[int, int, Schema, Schema]]:
    """Each recorded version with the one that follows it, and the last with the declared one."""
    order = sorted(versions)
    for old, new in itertools.pairwise(order):
        yield old, new, versions[old], versions[new]
    yield order[-1], known.version, versions[order[-1]], schema


def _read(file: Path, type: str, version: int) -> Schema:
    uri = schema_uri(type, version)
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("the file", "a JSON Schema", str(error), file=str(file)) from error
    if not isinstance(schema, dict) or schema.get("$id") != uri:
        got = schema.get("$id") if isinstance(schema, dict) else "no object"
        raise ConfigError("$id", f"{uri!r}, as its name says", repr(got), file=str(file))
    return schema
