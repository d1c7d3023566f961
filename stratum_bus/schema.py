"""Event types: the wire name of a Struct, its former names, its versions and their upcasters.

A type is declared where its Struct is:

    @event_type("paper.published", version=2, former=("paper.seen",))
    class Paper(msgspec.Struct): ...

    @upcaster("paper.published", since=1)
    def _(data: dict) -> dict:          # from version 1 to 2
        return {**data, "categories": []}

On the wire a version above 1 stands in `dataschema`. A type that nobody declared is still a valid
event; it just has no Struct.
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


class EventType(msgspec.Struct):
    """What is known of one wire name. `upcasters[n]` turns version n into n + 1."""

    name: str
    cls: type
    version: int
    former: tuple[str, ...]
    upcasters: dict[int, Upcaster]

    def schema_uri(self) -> str | None:
        """The `dataschema` of the newest version; None for version 1, which needs none."""
        return f"{_SCHEMA_PREFIX}{self.name}:{self.version}" if self.version > 1 else None

    def version_of(self, dataschema: str | None) -> int:
        """The version that an event says it has; 1 where it says none."""
        if dataschema and dataschema.startswith(_SCHEMA_PREFIX):
            _, _, version = dataschema.rpartition(":")
            if _VERSION.fullmatch(version):
                return int(version)
        return 1


TYPES: dict[str, EventType] = {}
"""Every declared wire name, former ones included."""


def event_type(name: str, *, version: int = 1, former: tuple[str, ...] = ()) -> Callable[[C], C]:
    """Declare the wire name of a Struct. Raises ValueError where another Struct has the name."""

    def declare(cls: C) -> C:
        known = EventType(name, cls, version, former, {})
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

    Raises ValueError where the type is not declared yet.
    """

    def declare(function: Upcaster) -> Upcaster:
        if name not in TYPES:
            raise ValueError(
                f"no event type {name} is declared; put its Struct before the upcaster"
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
    for step in range(version, known.version):
        function = known.upcasters.get(step)
        if function is None:
            raise msgspec.ValidationError(f"no upcaster of {known.name} from version {step}")
        try:
            data = function(data)
        except Exception as error:
            detail = f"the upcaster of {known.name} from version {step} failed: {error!r}"
            raise msgspec.ValidationError(detail) from error
    return data
