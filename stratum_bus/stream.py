"""The declared streams, and how the server's are made like them.

The declaration is `nats/streams.toml`. What a server has more or otherwise is drift: harmless
differences are mended, those that would lose data or immutability are refused unless forced.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from stratum_bus.config import duration_ns
from stratum_bus.errors import ConfigError, NotFound, Refused, StreamDrift
from stratum_bus.jetstream import Connection
from stratum_bus.settings import convert, shown

_DURATIONS = ("max_age", "duplicate_window")
_LIMITS = (
    "max_age",
    "max_bytes",
    "max_consumers",
    "max_msg_size",
    "max_msgs",
    "max_msgs_per_subject",
)
_HARMLESS_ONCE_ON = (
    "allow_atomic",
    "allow_batched",
    "allow_direct",
    "allow_msg_schedules",
    "deny_delete",
    "deny_purge",
    "discard_new_per_subject",
)
_LETS_MESSAGES_VANISH = ("allow_msg_ttl", "allow_rollup_hdrs")
_STREAM_EXISTS, _INVALID_CONFIG = 10058, 10052
_ROUNDS = 5


class StreamSpec(Struct, frozen=True, forbid_unknown_fields=True):
    """One declared stream: the server's own field names and defaults, durations in nanoseconds.

    Without `num_replicas` a new stream has one, and an existing one keeps what it has.
    """

    name: str
    subjects: list[str]
    description: str = ""
    retention: Literal["limits", "interest", "workqueue"] = "limits"
    storage: Literal["file", "memory"] = "file"
    persist_mode: Literal["default", "async"] = "default"
    compression: Literal["none", "s2"] = "none"
    num_replicas: int | None = None
    max_age: int = 0
    max_bytes: int = -1
    max_consumers: int = -1
    max_msg_size: int = -1
    max_msgs: int = -1
    max_msgs_per_subject: int = -1
    discard: Literal["old", "new"] = "old"
    discard_new_per_subject: bool = False
    duplicate_window: int = 120_000_000_000
    deny_delete: bool = False
    deny_purge: bool = False
    allow_atomic: bool = False
    allow_batched: bool = False
    allow_direct: bool = False
    allow_msg_schedules: bool = False
    allow_msg_ttl: bool = False
    allow_rollup_hdrs: bool = False

    def config(self) -> dict[str, Any]:
        """What the server is asked for."""
        config: dict[str, Any] = msgspec.structs.asdict(self)
        return {key: value for key, value in config.items() if value is not None}


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    streams: list[dict[str, Any]]


class Change(Struct, frozen=True):
    """How a stream differed from its declaration, and what was (or would be) done about it.

    `fields` maps a field to (declared, actual); `destructive` are those of them that would lose
    data or immutability. `overruled` are the fields that the server, asked for the declared value,
    set to another one without saying so: the declaration does not hold there.
    """

    stream: str
    action: Literal["create", "update"]
    fields: dict[str, tuple[object, object]] = {}
    destructive: tuple[str, ...] = ()
    overruled: dict[str, tuple[object, object]] = {}


def load_streams(path: Path | None = None) -> list[StreamSpec]:
    """The declared streams; without `path` those that Stratum ships.

    :raises ConfigError: an unknown field or a wrong value in the file
    """
    file = path or _shipped()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("the file", "readable TOML", str(error), file=file.name) from error
    tables = convert(content, _File, "", file.name).streams
    return [_spec(table, f"streams[{i}]", file.name) for i, table in enumerate(tables)]


async def examine(connection: Connection, spec: StreamSpec) -> Change | None:
    """What `provision` would have to do to one stream; None where it is as declared."""
    return _compare(spec, await _actual(connection, spec.name))


async def provision(
    connection: Connection,
    specs: Sequence[StreamSpec],
    *,
    force: Collection[str] = (),
    dry_run: bool = False,
) -> list[Change]:
    """Make the server's streams like the declared ones; returns what was done, nothing the second
    time. All are judged before the first is touched. Any number of processes may do this at once.

    :param force: names of streams whose data or immutability may be lost
    :param dry_run: only judge
    :raises StreamDrift: a difference may not be mended unforced, or the server refuses to mend it
    :raises Refused: the server does not accept a declaration
    """
    for name in force:
        if name not in [spec.name for spec in specs]:
            raise NotFound("declared stream", name)
    judged = [_allowed(await examine(connection, spec), force) for spec in specs]
    if dry_run:
        return [change for change in judged if change]
    done = [await _mend(connection, spec, force) for spec in specs]
    return [change for change in done if change]


async def _mend(connection: Connection, spec: StreamSpec, force: Collection[str]) -> Change | None:
    change = Change(spec.name, "create")
    for _ in range(_ROUNDS):
        actual = await _actual(connection, spec.name)
        judged = _allowed(_compare(spec, actual), force)
        if judged is None:
            return None
        change = judged
        try:
            verb = change.action.upper()
            await connection.api(f"STREAM.{verb}.{spec.name}", {**(actual or {}), **spec.config()})
        except NotFound:
            continue  # another process deleted it meanwhile
        except Refused as error:
            if error.code == _STREAM_EXISTS:
                continue  # another process was faster, with another declaration
            if change.action == "create" or error.code != _INVALID_CONFIG:
                raise
            raise _unchangeable(change, error) from error
        # What the server took without a word may still not be what it was asked for.
        if (now := await _actual(connection, spec.name)) is not None:
            return msgspec.structs.replace(change, overruled=_differences(spec, now))
    advice = "another process changes it at the same time; stop that one and try again"
    raise StreamDrift(spec.name, change.fields, advice)


def _unchangeable(change: Change, error: Refused) -> StreamDrift:
    advice = (
        f"the server refuses to change it: {error.description}. Declare it as it is, or delete "
        "the stream with all its data and provision it again"
    )
    return StreamDrift(change.stream, change.fields, advice)


def _allowed(change: Change | None, force: Collection[str]) -> Change | None:
    if change is not None and change.destructive and change.stream not in force:
        fields = {field: change.fields[field] for field in change.destructive}
        raise StreamDrift(
            change.stream,
            fields,
            "changing that could lose data or immutability: declare it as it is, or force it "
            f"with --force {change.stream}",
        )
    return change


async def _actual(connection: Connection, name: str) -> dict[str, Any] | None:
    try:
        answer = await connection.api(f"STREAM.INFO.{name}")
    except NotFound:
        return None
    config: dict[str, Any] = answer["config"]
    return config


def _compare(spec: StreamSpec, actual: dict[str, Any] | None) -> Change | None:
    if actual is None:
        return Change(spec.name, "create")
    if not (fields := _differences(spec, actual)):
        return None
    destructive = tuple(field for field in fields if not _is_harmless(field, spec, actual))
    return Change(spec.name, "update", fields, destructive)


def _differences(spec: StreamSpec, actual: dict[str, Any]) -> dict[str, tuple[object, object]]:
    """Field to (declared, actual). The server leaves out some fields that have their default."""
    defaults = StreamSpec("", []).config()
    found: dict[str, tuple[object, object]] = {}
    for field, declared in spec.config().items():
        is_: Any = actual.get(field, defaults.get(field))
        same = sorted(declared) == sorted(is_) if field == "subjects" else declared == is_
        if field in _LIMITS and declared <= 0 and is_ <= 0:
            same = True  # 0 and -1 are both the server's "no limit"
        if not same:
            found[field] = (declared, is_)
    return found


def _is_harmless(field: str, spec: StreamSpec, actual: dict[str, Any]) -> bool:
    """Whether setting a field to its declared value can lose neither data nor immutability."""
    declared, is_ = getattr(spec, field), actual.get(field)
    if field in ("description", "compression"):
        return True
    if field == "subjects":
        return set(declared) >= set(is_ or ())
    if field in _LIMITS:
        return bool(declared <= 0 or 0 < (is_ or 0) <= declared)
    if field in ("duplicate_window", "num_replicas"):
        return bool(declared >= (is_ or 0))
    if field in _HARMLESS_ONCE_ON:
        return bool(declared)
    if field in _LETS_MESSAGES_VANISH:
        return not (declared and (actual.get("deny_delete") or actual.get("deny_purge")))
    return field == "discard" and declared == "new"


def _spec(table: dict[str, Any], key: str, file: str) -> StreamSpec:
    for field in _DURATIONS:
        if field not in table:
            continue
        try:
            table = {**table, field: duration_ns(table[field])}
        except (ValueError, TypeError) as error:
            got, expected = shown(table[field]), "a duration such as 90s, 2m or 30d"
            raise ConfigError(f"{key}.{field}", expected, got, file=file) from error
    return convert(table, StreamSpec, key, file)


def _shipped() -> Path:
    package = Path(__file__).parent
    installed = package / "streams.toml"
    return installed if installed.exists() else package.parent / "nats" / "streams.toml"
