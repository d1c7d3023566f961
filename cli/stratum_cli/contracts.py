"""What `stratum contract` does, and whose types and agents it is about: those of Stratum, and of a
project. The command line itself is in `commands/contract.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import msgspec
import typer

from stratum_agents.process import build
from stratum_bus.contract import grammar, record, schemas
from stratum_bus.contract.asyncapi import LOCAL, Contract, Participant, document
from stratum_bus.contract.record import CHANGED, GONE, NEW, SAME, Verdict, text
from stratum_bus.errors import NotFound
from stratum_bus.event import Raw
from stratum_bus.schema import EventType
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED, Refusal

DECLARING = (
    "stratum_bus.control",
    "stratum_bus.dead",
    "stratum_bus.heartbeat",
    "stratum_bus.memory",
    "stratum_agents.journal",
    "stratum_agents.waits",
    "stratum_agents.research.paper",
    "stratum_agents.supervision.escalation",
    "stratum_projections.health.incident",
    "stratum_projections.health.observed",
)
"""The modules that declare event types."""

SCHEMAS = "schemas"
"""The folder of the schemas in that of a contract."""

FINE, NEEDS_UPCASTER = "fine", "needs an upcaster"

_PACKAGES = {"stratum_bus", "stratum_agents", "stratum_projections", "stratum_cli"}


class Project(msgspec.Struct, frozen=True):
    """What is declared: `own` types (handled ones included), those of Stratum, and the agents.

    `doubtful` are sentences on types that are not declared and mean two things.
    """

    shipped: list[EventType]
    own: list[EventType] = []
    agents: list[Participant] = []
    doubtful: list[str] = []

    @property
    def types(self) -> list[EventType]:
        return sorted([*self.shipped, *self.own], key=lambda known: known.name)

    def recorded(self, shipped: bool) -> list[EventType]:
        """The types of which there is to be a record."""
        return self.shipped if shipped else self.own


def shipped() -> list[EventType]:
    """The types that Stratum itself declares."""
    for module in DECLARING:
        importlib.import_module(module)
    return [known for known in record.declared() if _is_ours(known)]


def project(cli: Cli, *, only_shipped: bool = False) -> Project:
    """What the agents of the settings declare, beside what is shipped. Raises ConfigError."""
    ours = shipped()
    if only_shipped:
        return Project(ours)
    agents: list[Participant] = []
    handled: dict[str, EventType] = {}
    doubtful: list[str] = []
    for name, settings in sorted(cli.config.agents.items()):
        if settings.command:
            agents.append(Participant(name, None))
            continue
        agent = build(cli.config, name)
        agents.append(Participant(name, tuple(agent.handlers), agent.follows))
        for each in agent.types():
            other = handled.setdefault(each.name, each)
            if other.cls != each.cls:
                doubtful.append(_doubt(each.name))
    names = {known.name for known in ours}
    own = [each for each in record.declared(*handled.values()) if each.name not in names]
    return Project(ours, own, agents, list(dict.fromkeys(doubtful)))


def asyncapi(cli: Cli, out: str | None, shipped: bool) -> None:
    found = project(cli, only_shipped=shipped)
    url = (cli.config.server.url if found.agents else None) or LOCAL
    _give(cli, document(Contract(found.types, found.agents, url)), out, "asyncapi.json")


def jsonschema(cli: Cli, type: str | None, out: str | None, shipped: bool) -> None:
    found = project(cli, only_shipped=shipped)
    if type is not None:
        _give(cli, schemas.data_schema(_named(found.types, type)), out, f"{type}.json")
    elif out is None:
        _give(cli, schemas.bundle(found.types), None, "")
    else:
        folder = _folder(out) / SCHEMAS
        write_schemas(folder, found.types)
        cli.out.talk(f"{folder}: {len(found.types)} types")


def subjects(cli: Cli, out: str | None, shipped: bool) -> None:
    types = project(cli, only_shipped=shipped).types
    if out is None and not cli.out.json:
        cli.out.raw(grammar.page(types))
        return
    if out is not None:
        (_folder(out) / "subjects.md").write_text(grammar.page(types), encoding="utf-8")
    _give(cli, grammar.grammar(types), out, "subjects.json")


def write_record(cli: Cli, folder: str | None, shipped: bool, *, dry_run: bool) -> None:
    found = project(cli, only_shipped=shipped)
    for doubt in found.doubtful:
        cli.out.talk(doubt)
    to = _record_folder(cli, folder)
    news = record.write(to, found.recorded(shipped), dry_run=dry_run)
    rows = [{"type": v.type, "version": v.version, "was": v.recorded or None} for v in news]
    columns = {name: name for name in ("type", "version", "was")}
    cli.out.table(rows, columns, nothing=f"{to} is up to date")


def diff(cli: Cli, folder: str | None, shipped: bool) -> None:
    verdicts = _verdicts(cli, folder, shipped)
    rows = [row for verdict in verdicts for row in _rows(verdict)]
    columns = {name: name for name in ("type", "from", "to", "path", "change", "verdict")}
    cli.out.table(rows, columns, nothing="nothing has changed")
    _fail_if_broken(cli, verdicts)


def check(cli: Cli, folder: str | None, shipped: bool) -> None:
    verdicts = _verdicts(cli, folder, shipped)
    _fail_if_broken(cli, verdicts)
    stale = [verdict.type for verdict in verdicts if verdict.state in (NEW, CHANGED)]
    if stale:
        cli.out.talk(f"not recorded as declared: {', '.join(stale)}; run `stratum contract record`")
        raise typer.Exit(FAILED)
    cli.out.talk(f"{len(verdicts)} types are as recorded")


def write_schemas(folder: Path, types: list[EventType]) -> None:
    """All schemas as files. Raises IncompatibleType where the recorded ones do not allow it."""
    record.write(folder, types)
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in (("envelope", schemas.envelope()), ("event", schemas.event_schema(types))):
        (folder / f"{name}.json").write_text(text(schema), encoding="utf-8")


def _is_ours(known: EventType) -> bool:
    """By the Struct's module; any data is nobody's Struct, so there the name has to say it."""
    if known.cls is Raw:
        return known.name.startswith("stratum.")
    return str(getattr(known.cls, "__module__", "")).partition(".")[0] in _PACKAGES


def _doubt(type: str) -> str:
    return f"{type} is handled as two types of data: declare the one that it is with @event_type"


def _record_folder(cli: Cli, folder: str | None) -> Path:
    return Path(folder) if folder else Path(cli.config.folder) / record.FOLDER


def _verdicts(cli: Cli, folder: str | None, shipped: bool) -> list[Verdict]:
    types = project(cli, only_shipped=shipped).recorded(shipped)
    return record.judge_all(record.load(_record_folder(cli, folder)), types)


def _rows(verdict: Verdict) -> list[dict[str, Any]]:
    """A line for each change, and one for what is not about a path."""
    head = {"type": verdict.type, "from": verdict.recorded or None, "to": verdict.version or None}
    if verdict.state in (NEW, GONE):
        said = "not recorded yet" if verdict.state == NEW else "not declared any more"
        return [{**head, "path": "", "change": said, "verdict": FINE}]
    if verdict.state == SAME:
        return []
    breaks = "has an upcaster" if verdict.problem is None else NEEDS_UPCASTER
    rows = [
        {
            **head,
            "path": each.path,
            "change": each.what,
            "verdict": breaks if each.breaking else FINE,
        }
        for each in verdict.changes
    ]
    if verdict.problem and not any(each.breaking for each in verdict.changes):
        head["from"] = verdict.problem.version  # an older step on the way
        for said in verdict.problem.changes:
            path, _, what = said.rpartition(": ")
            rows.append({**head, "path": path, "change": what, "verdict": NEEDS_UPCASTER})
    return rows or [{**head, "path": "", "change": "its description", "verdict": FINE}]


def _fail_if_broken(cli: Cli, verdicts: list[Verdict]) -> None:
    problems = [verdict.problem for verdict in verdicts if verdict.problem is not None]
    for problem in problems:
        cli.out.talk(str(problem))
    if problems:
        raise typer.Exit(FAILED)


def _named(types: list[EventType], name: str) -> EventType:
    for known in types:
        if name in (known.name, *known.former):
            return known
    raise NotFound(
        "event type", f"{name}; `stratum contract subjects` lists those that are declared"
    )


def _give(cli: Cli, document: Any, out: str | None, name: str) -> None:
    if out is not None:
        file = _folder(out) / name
        file.write_text(text(document), encoding="utf-8")
        cli.out.talk(str(file))
    elif cli.out.json:
        cli.out.object(document)
    else:
        cli.out.raw(text(document))


def _folder(out: str) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"{out} is a file: name the folder to write into")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
