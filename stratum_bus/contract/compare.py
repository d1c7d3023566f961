"""What changed between two schemas of one type's data, and whether old data still fits.

The log is for ever, so the question is always the same: can today's code take what yesterday's
wrote, without losing any of it? What it can is fine; what it cannot needs an upcaster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from stratum_bus.contract.schemas import Schema

ROOT = "$.data"

_AT_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_AT_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EXACTLY = ("pattern", "multipleOf", "contentEncoding", "uniqueItems")
_NULL = {"type": "null"}
_ANYTHING = {"title", "description", "default", "$schema", "$id", "$defs"}
"""Keys that say nothing of which data is allowed."""


class Change(msgspec.Struct, frozen=True):
    """One difference: where, what, and whether data written before needs an upcaster for it."""

    path: str
    what: str
    breaking: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def compare(old: Schema, new: Schema) -> list[Change]:
    """The differences of two documents as `schemas.data_schema` makes them, the worst first."""
    if old == new:
        return []
    found = list(dict.fromkeys(_Comparison(old, new).values(old, new, ROOT)))
    return sorted(found, key=lambda change: not change.breaking)


def shown(schema: Schema) -> str:
    """A schema in a word or two."""
    if reference := schema.get("$ref"):
        return str(reference).rpartition("/")[2]
    if alternatives := schema.get("anyOf"):
        return " | ".join(map(shown, alternatives))
    if "enum" in schema:
        return " | ".join(msgspec.json.encode(value).decode() for value in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"array of {shown(schema.get('items') or {})}"
    if kind == "object" and "properties" not in schema:
        inner = schema.get("additionalProperties")
        return f"map to {shown(inner)}" if isinstance(inner, dict) else "map"
    return f"{kind} ({schema['format']})" if "format" in schema else kind


class _Comparison:
    """Of two documents; `_seen` are the pairs of named schemas that have been looked at."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old, self._new = old.get("$defs", {}), new.get("$defs", {})
        self._seen: set[tuple[str, str]] = set()

    def values(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, now = _alternatives(old), _alternatives(new)
        if _is_anything(new):
            if not _is_anything(old):
                yield Change(path, f"{shown(old)} -> anything", False)
            return
        if _is_anything(old):
            yield Change(path, f"anything -> {shown(new)}", True)
            return
        if (_NULL in before) != (_NULL in now):
            yield Change(path, f"{shown(old)} -> {shown(new)}", _NULL in before)
        before, now = [s for s in before if s != _NULL], [s for s in now if s != _NULL]
        if len(before) == len(now) == 1:
            yield from self._one(before[0], now[0], path)
            return
        for each in before:
            yield from self._among(each, now, path, old, new)
        if len(now) > len(before):
            yield Change(path, f"{shown(old)} -> {shown(new)}", False)

    def _among(
        self, each: Schema, now: list[Schema], path: str, old: Schema, new: Schema
    ) -> Iterator[Change]:
        """One of several alternatives, against the one that is most like it."""
        named = [s for s in now if "$ref" in each and s.get("$ref") == each["$ref"]]
        sort = _sort(self._resolved(each, self._old))
        alike = named or [s for s in now if _sort(self._resolved(s, self._new)) == sort]
        for candidate in alike:
            trial = _Comparison({"$defs": self._old}, {"$defs": self._new})
            changes = list(trial._one(each, candidate, path))
            if len(alike) == 1 or not any(change.breaking for change in changes):
                yield from changes
                return
        yield Change(path, f"{shown(old)} -> {shown(new)}", True)

    def _one(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        pair = (old.get("$ref", ""), new.get("$ref", ""))
        if any(pair):
            if pair in self._seen:
                return
            self._seen.add(pair)
        words = f"{shown(old)} -> {shown(new)}"
        old, new = self._resolved(old, self._old), self._resolved(new, self._new)
        before, now = _kind(old), _kind(new)
        if before != now:
            yield Change(path, words, (before, now) != ("integer", "number"))
        elif old.get("format") != new.get("format"):
            yield Change(path, words, "format" in new)
        elif "enum" in old or "enum" in new:
            yield from _values_allowed(old, new, path)
        elif now == "array":
            yield from self._items(old, new, path)
        elif now == "object":
            yield from self._object(old, new, path)
        yield from _limits(old, new, path)

    def _items(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, now = old.get("prefixItems"), new.get("prefixItems")
        if now is not None and before is None:
            yield Change(path, f"{shown(old)} -> tuple of {len(now)}", True)
            return
        items = new.get("items", {})
        for number, each in enumerate(before or []):
            if now is None:
                yield from self.values(each, items, f"{path}[{number}]")
            elif number < len(now):
                yield from self.values(each, now[number], f"{path}[{number}]")
            else:
                yield Change(f"{path}[{number}]", "removed", True)
        if before is None:
            yield from self.values(old.get("items", {}), items, f"{path}[]")

    def _object(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        if "properties" not in old:
            if "properties" in new:
                yield Change(path, f"{shown(old)} -> object", True)
                return
            inner = (_inner(old), _inner(new))
            yield from self.values(*inner, f"{path}.*")
        elif "properties" not in new:
            if not _is_anything(_inner(new)):
                yield Change(path, f"object -> {shown(new)}", True)
        else:
            yield from self._fields(old, new, path)

    def _fields(self, old: Schema, new: Schema, path: str) -> Iterator[Change]:
        before, now = old["properties"], new["properties"]
        had_to, must = set(old.get("required", ())), set(new.get("required", ()))
        for name in before:
            at = f"{path}.{name}"
            if name not in now:
                yield Change(at, "removed", True)
                continue
            if (name in must) != (name in had_to):
                what = "optional -> required" if name in must else "required -> optional"
                yield Change(at, what, name in must)
            yield from self.values(before[name], now[name], at)
        for name in now:
            if name not in before:
                kind = shown(now[name])
                added = f"added, {'required' if name in must else 'optional'}: {kind}"
                yield Change(f"{path}.{name}", added, name in must)
        closed = [schema.get("additionalProperties") is False for schema in (old, new)]
        if closed == [False, True]:
            yield Change(path, "further fields are refused", True)

    def _resolved(self, schema: Schema, named: dict[str, Schema]) -> Schema:
        while reference := schema.get("$ref"):
            schema = named.get(str(reference).rpartition("/")[2], {})
        return schema


def _alternatives(schema: Schema) -> list[Schema]:
    if "anyOf" not in schema:
        return [schema]
    return [inner for each in schema["anyOf"] for inner in _alternatives(each)]


def _is_anything(schema: Schema) -> bool:
    return set(schema) <= _ANYTHING


def _inner(schema: Schema) -> Schema:
    inner = schema.get("additionalProperties", {})
    return inner if isinstance(inner, dict) else {}


def _kind(schema: Schema) -> str:
    if "type" in schema:
        return str(schema["type"])
    if not (values := schema.get("enum")):
        return "anything"
    kinds = {_kind_of_value(value) for value in values}
    return kinds.pop() if len(kinds) == 1 else "several"


def _sort(schema: Schema) -> tuple[str, ...]:
    """What tells the alternatives of a union apart: the kind, and the tag of a tagged Struct."""
    fields = schema.get("properties", {})
    tags = [f"{name}={fields[name]['enum']}" for name in fields if "enum" in fields[name]]
    return (_kind(schema), *tags)


def _kind_of_value(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer", float: "number"}.get(type(value), "null")


def _values_allowed(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    if old.get("enum") == new.get("enum"):
        return
    gone = "enum" in new and (
        "enum" not in old or any(value not in new["enum"] for value in old["enum"])
    )
    yield Change(path, f"{shown(old)} -> {shown(new)}", gone)


def _limits(old: Schema, new: Schema, path: str) -> Iterator[Change]:
    for key in (*_AT_LEAST, *_AT_MOST, *_EXACTLY):
        before, now = old.get(key), new.get(key)
        if before == now or (
            key.endswith("Items") and ("prefixItems" in old or "prefixItems" in new)
        ):
            continue
        if now is None:
            yield Change(path, f"no {key} any more", False)
            continue
        looser = before is not None and key not in _EXACTLY
        looser = looser and (now < before if key in _AT_LEAST else now > before)
        what = f"{key} {now}" if before is None else f"{key} {before} -> {now}"
        yield Change(path, what, not looser)
