"""Settings: frozen Structs, read once from `stratum.toml`, passed on as arguments.

The environment is read here and nowhere else: `STRATUM_NATS_URL` wins over `server.url`,
`STRATUM_DATA_DIR` over `server.data_dir`. A mistake is a ConfigError that names the key, what was
expected and what is there.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from stratum_bus import gateway
from stratum_bus.errors import ConfigError, InvalidName
from stratum_bus.gateway import GatewayConfig
from stratum_bus.settings import convert, join, shown
from stratum_bus.subject import token
from stratum_bus.supervision import SupervisorConfig
from stratum_bus.thresholds import HealthConfig

FILE = "stratum.toml"
RESERVED = ("projector", "health", "supervisor", "gateway")
"""What agents are not called: the names by which these parts beat and are commanded."""

AT_LEAST_ONE = Meta(ge=1)
MORE_THAN_ZERO = Meta(gt=0)

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)", re.ASCII)
_CREATE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)

S = TypeVar("S")


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[server]`: which nats-server to use.

    `url` is a server or cluster of yours; without it one is started, with its data in `data_dir`.
    `port` of the started one; without it 4222, or a free one if that is taken.
    `sync`: when stored events are fsynced, `always` (before the acknowledgement) or an interval.
    `max_store_bytes`: how much it may store; without it three quarters of the free disk more.
    """

    url: Annotated[str, Meta(min_length=1)] | None = None
    port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    data_dir: Annotated[str, Meta(min_length=1)] = ".stratum"
    sync: str = "always"
    max_store_bytes: Annotated[int, AT_LEAST_ONE] | None = None


class ProjectorConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[projector]`: the DuckDB file, your projections, its batches, and the limits of a query.

    `path` is `projection.duckdb` in the data folder where it is not given. `projections` are Python
    files, all of whose projections are meant, or `module:name`.
    """

    path: str = ""
    projections: tuple[str, ...] = ()
    batch_events: Annotated[int, AT_LEAST_ONE] = 5000
    batch_milliseconds: Annotated[int, AT_LEAST_ONE] = 100
    query_seconds: Annotated[float, MORE_THAN_ZERO] = 10.0
    query_rows: Annotated[int, AT_LEAST_ONE] = 1_000_000


class LakeConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[lake]`: the stored events as Parquet files in the folder `path`; without it there is none.

    A file is closed at `segment_events` events or after `segment_seconds`, whichever comes first.
    `keep_hot_days` is how many whole days before the latest stay in the DuckDB file's `events`;
    without it all do. `delta` is the folder of a Delta table with the same rows, which needs the
    extra `stratum-bus[delta]`.
    """

    path: str = ""
    streams: tuple[Annotated[str, Meta(min_length=1)], ...] = ("LOG",)
    segment_events: Annotated[int, AT_LEAST_ONE] = 100_000
    segment_seconds: Annotated[float, MORE_THAN_ZERO] = 60.0
    keep_hot_days: Annotated[int, AT_LEAST_ONE] | None = None
    delta: str = ""


class AgentConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """`[agents.<name>]`: an agent in Python, or any program that takes part as one.

    `create` is `module:callable`, which takes the settings Struct; `command` is a command line that
    finds STRATUM_NATS_URL, STRATUM_AGENT and STRATUM_INSTANCE in its environment and is run in the
    file's folder. `grace_seconds` is how long it may take to stop. The rest is for `create` alone:
    `concurrency` counts deliveries handled at once by one instance, `max_attempts` those of one
    message before it becomes a dead letter.
    """

    create: str = ""
    command: list[str] = []
    instances: Annotated[int, AT_LEAST_ONE] = 1
    concurrency: Annotated[int, AT_LEAST_ONE] = 16
    max_attempts: Annotated[int, AT_LEAST_ONE] = 5
    ack_wait_seconds: Annotated[float, MORE_THAN_ZERO] = 30.0
    grace_seconds: Annotated[float, MORE_THAN_ZERO] = 10.0
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class _Sections(Struct, frozen=True, forbid_unknown_fields=True):
    server: ServerConfig = ServerConfig()
    projector: ProjectorConfig = ProjectorConfig()
    lake: LakeConfig = LakeConfig()
    health: HealthConfig = HealthConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    gateway: GatewayConfig | None = None
    agents: dict[str, AgentConfig] = msgspec.field(default_factory=dict)


class Config(_Sections, frozen=True, forbid_unknown_fields=True):
    """All settings. Paths in it are absolute; `folder` is what relative ones were taken from."""

    folder: str = "."


def load(path: Path | str | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings; without `path` from `stratum.toml` in the working folder, if it is there.

    :raises ConfigError: no file at `path`, not TOML, an unknown key, a wrong type or a bad value
    """
    file = Path(FILE) if path is None else Path(path)
    content = {} if path is None and not file.exists() else _read(file)
    sections = convert(content, _Sections, "", file.name)
    _check_values(sections, file.name)
    return _resolve(sections, file.absolute().parent, environ)


def instance(environ: Mapping[str, str] = os.environ) -> str:
    """The name that a supervisor gave to this process, "" for none."""
    return environ.get("STRATUM_INSTANCE", "")


def settings(config: Config, key: str, kind: type[S]) -> S:
    """Convert an agent's settings, as in `settings(config, "agents.research.settings", Research)`.

    Unknown keys are refused at every depth, also where the Struct itself would let them pass.

    :raises ConfigError: the agent is not there, or its settings do not fit
    """
    section, _, rest = key.partition(".")
    name, _, last = rest.rpartition(".")
    if section != "agents" or last != "settings":
        raise ConfigError(key, "a key of the form agents.<name>.settings", "another key")
    if name not in config.agents:
        there = ", ".join(sorted(config.agents)) or "none"
        raise ConfigError(f"agents.{name}", "an agent of this file", f"no such table ({there})")
    return convert(config.agents[name].settings, kind, key, FILE)


def is_file(projections: str) -> bool:
    """Whether an entry of `projector.projections` is a file, and not `module:name`."""
    return projections.endswith(".py")


def duration_ns(text: str) -> int:
    """Nanoseconds of `90s`, `1h30m`, `30d`; raise ValueError for anything else."""
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 500ms, 90s, 1h30m or 30d")
    return sum(round(float(number) * _UNITS_NS[unit]) for number, unit in parts)


def sync_interval(text: str) -> str:
    """The server's `sync_interval` for `always` or a duration; raise ValueError for another."""
    if text == "always":
        return text
    if not (interval := duration_ns(text)):
        raise ValueError("an interval of nothing is not possible; use always")
    return f"{interval}ns"


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "the file", "to be readable", error.strerror or "", file=file.name
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError("the file", "UTF-8", str(error), file=file.name) from error
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).rpartition(" (at ")
        where = place.rstrip(")") or "the file"
        raise ConfigError(where, "TOML", f"a mistake: {message}", file=file.name) from error


def _check_values(sections: _Sections, file: str) -> None:
    """What a type cannot say."""
    try:
        sync_interval(sections.server.sync)
    except ValueError as error:
        expected = "always, or an interval such as 1s or 500ms"
        got = shown(sections.server.sync)
        raise ConfigError("server.sync", expected, got, file=file) from error
    for i, found in enumerate(sections.projector.projections):
        if not (is_file(found) or _CREATE.fullmatch(found)):
            expected = "a file such as views/papers.py, or module:name as in mypackage.views:PAPERS"
            raise ConfigError(f"projector.projections[{i}]", expected, shown(found), file=file)
    for name in sections.health.agents:
        _check_name(name, join("health.agents", name), "agent name", file)
    for key in ("name", "human"):
        _check_name(getattr(sections.supervisor, key), f"supervisor.{key}", "name", file)
    if sections.gateway is not None:
        gateway.check(sections.gateway, file, RESERVED)
    for name, agent in sections.agents.items():
        _check_name(name, join("agents", name), "agent name", file)
        _check_agent(agent, f"agents.{name}", name, file)


def _check_agent(agent: AgentConfig, key: str, name: str, file: str) -> None:
    if name in RESERVED:
        raise ConfigError(key, "another name: this one is Stratum's own", shown(name), file=file)
    if bool(agent.create) == bool(agent.command):
        expected = "either create (a callable in Python) or command (a command line)"
        raise ConfigError(key, expected, "both" if agent.create else "none", file=file)
    if agent.create and not _CREATE.fullmatch(agent.create):
        expected = "module:callable, as in my_agents.research:create"
        raise ConfigError(f"{key}.create", expected, shown(agent.create), file=file)
    if agent.command and agent.settings:
        expected = "no settings beside a command: only Python's create takes them"
        raise ConfigError(f"{key}.settings", expected, "a table", file=file)


def _check_name(name: str, key: str, what: str, file: str) -> None:
    try:
        token(name, what)
    except InvalidName as error:
        article = "an" if what[0] in "aeiou" else "a"
        expected = f"{article} {what} ({error.rule})"
        raise ConfigError(key, expected, shown(name), file=file) from error


def _resolve(sections: _Sections, folder: Path, environ: Mapping[str, str]) -> Config:
    server, projector = sections.server, sections.projector
    data_dir = folder / Path(server.data_dir).expanduser()
    if from_environ := environ.get("STRATUM_DATA_DIR"):
        data_dir = Path(from_environ).expanduser().absolute()
    projection = data_dir / "projection.duckdb"
    if projector.path:
        projection = folder / Path(projector.path).expanduser()
    projections = tuple(
        str(folder / Path(found).expanduser()) if is_file(found) else found
        for found in projector.projections
    )
    lake = {
        key: str(folder / Path(value).expanduser())
        for key in ("path", "delta")
        if (value := getattr(sections.lake, key))
    }
    url = environ.get("STRATUM_NATS_URL") or server.url
    return Config(
        server=msgspec.structs.replace(server, url=url, data_dir=str(data_dir)),
        projector=msgspec.structs.replace(projector, path=str(projection), projections=projections),
        lake=msgspec.structs.replace(sections.lake, **lake),
        health=sections.health,
        supervisor=sections.supervisor,
        gateway=sections.gateway and gateway.with_secrets(sections.gateway, environ),
        agents=sections.agents,
        folder=str(folder),
    )
