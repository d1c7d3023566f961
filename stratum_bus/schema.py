"""Event types: the wire name of a Struct, its former names, its versions and their upcasters.

A type is declared where its Struct is:

    @event_type("paper.published", version=2, former=("paper.seen",))
    class Paper(msgspec.Struct): ...

    @upcaster("paper.published", since=1)
    def _(data: dict) -> dict:          # from version 1 to 2
        return {**data, "categories": []}

On the wire a version above 1 stands in `dataschema`. Data of a version without an upcaster is taken
as it is: for an optional field that was added that is all it needs, and where it is not enough
`contract.record` refuses the type. A type that nobody declared is still a valid event; it just has no
Struct.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from stratum_bus import subject as subjects

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
C = TypeVar("C", bound=type)

_SCHEMA_PREFIX = "urn:stratum:schema:"
_VERSION = re.compile(r"[0-9]{1,9}", re.ASCII)


MESSAGE = ("inbox", "topic")
"""The roles of subjects on which messages of agents are."""


class EventType(msgspec.Struct):
    """What is known of one wire name. `upcasters[n]` turns version n into n + 1.

    `roles` are the first tokens of the subjects that its events are on.
    """

    name: str
    cls: type
    version: int
    former: tuple[str, ...]
    upcasters: dict[int, Upcaster]
    roles: tuple[str, ...] = MESSAGE

    def schema_uri(self) -> str | None:
        """The `dataschema` of the newest version; None for version 1, which needs none."""
        return schema_uri(self.name, self.version) if self.version > 1 else None

    def version_of(self, dataschema: str | None) -> int:
        """The version that an event says it has; 1 where it says none."""
        if dataschema and dataschema.startswith(_SCHEMA_PREFIX):
            _, _, version = dataschema.rpartition(":")
            if _VERSION.fullmatch(version):
                return int(version)
        return 1


TYPES: dict[str, EventType] = {}
"""Every declared wire name, former ones included."""


def schema_uri(name: str, version: int) -> str:
    """The address of the schema of one version of a type's data."""
    return f"{_SCHEMA_PREFIX}{name}:{version}"


def event_type(
    name: str,
    *,
    version: int = 1,
    former: tuple[str, ...] = (),
    roles: tuple[str, ...] = MESSAGE,
) -> Callable[[C], C]:
    """Declare the wire name of a Struct. `roles`: the first tokens of the subjects it is on.

    Raises ValueError where another Struct has the name, for a version below 1 and an unknown role.
    """

    def declare(cls: C) -> C:
        if version < 1:
            raise ValueError(f"{name}: versions count from 1, not from {version}")
        if unknown := set(roles) - set(subjects.ROLES):
            there = ", ".join(subjects.ROLES)
            raise ValueError(f"{name}: {min(unknown)} is no role of subjects; there are {there}")
        known = EventType(name, cls, version, former, {}, roles)
        for wire_name in (name, *former):
            subjects.event_type(wire_name)
            other = TYPES.get(wire_name)
            if other and f"{other.cls.__module__}.{other.cls.__qualname__}" != (
                f"{cls.__module__}.{cls.__qualname__}"
            ):
                raise ValueError(f"{wire_name} is already the name of {other.cls.__qualname__}")
        TYPES.update(dict.fromkeys((name, *former), known))
        return cls

    return declare


def upcaster(name: str, *, since: int) -> Callable[[Upcaster], Upcaster]:
    """Declare how data of version `since` becomes data of version `since + 1`.

    Raises ValueError where the type is not declared yet, or has no such version before its newest.
    """

    def declare(function: Upcaster) -> Upcaster:
        if name not in TYPES:
            raise ValueError(
                f"no event type {name} is declared; put its Struct before the upcaster"
            )
        if not 1 <= since < TYPES[name].version:
            raise ValueError(
                f"{name} is at version {TYPES[name].version}: an upcaster since {since} would never "
                "be called; raise the version of the type to the one that it leads to"
            )
        TYPES[name].upcasters[since] = function
        return function

    return declare


def canonical(name: str) -> str:
    """The newest wire name of a type; the name itself where nothing is declared."""
    known = TYPES.get(name)
    return known.name if known else name


def name_of(cls: type) -> str | None:
    """The wire name of a Struct, or None where it has none."""
    return next((known.name for known in TYPES.values() if known.cls is cls), None)


def upcast(known: EventType, data: Any, version: int) -> Any:
    """Bring data from `version` to the newest; raises msgspec.ValidationError without a way."""
    if version < 1:
        raise msgspec.ValidationError(f"there is no version {version} of {known.name}")
    for step in range(version, known.version):
        function = known.upcasters.get(step)
        if function is None:
            continue  # it fits as it is, or the caller's conversion says where it does not
        try:
            data = function(data)
        except Exception as error:
            detail = f"the upcaster of {known.name} from version {step} failed: {error!r}"
            raise msgspec.ValidationError(detail) from error
    return data
