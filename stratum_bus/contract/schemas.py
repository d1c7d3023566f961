"""JSON Schemas (2020-12) of the envelope and of the data of event types, from their Structs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect as types

from stratum_bus.event import Event
from stratum_bus.schema import EventType, schema_uri

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ENVELOPE_URI = "urn:stratum:schema:envelope"
EVENT_URI = "urn:stratum:schema:event"

ATTRIBUTES = {
    "specversion": "The version of CloudEvents.",
    "id": "Unique everywhere: what duplicates are known by.",
    "source": "Who says it: `/agents/<name>`, or any URI reference.",
    "type": "The wire name: what kind of event it is, and so what its data is.",
    "time": "When it happened, in UTC.",
    "subject": "What it is about, in the domain's own ids.",
    "datacontenttype": "What `data` is, where that is not JSON.",
    "dataschema": "`urn:stratum:schema:<type>:<version>`: the version of the data, from 2 on.",
    "dataref": "`blob:<sha256>`: where data that is too large to stand in the event is kept.",
    "runid": "The run that it came of.",
    "step": "The position in that run.",
    "correlationid": "The id of the event that began the conversation.",
    "causationid": "The id of the event that it follows from.",
    "traceparent": "W3C trace context.",
    "torun": "The run of the receiver that it is addressed to.",
    "replyto": "`<agent>/<run>`: who waits for what comes of it.",
    "data": "The payload; its schema follows from the type.",
    "data_base64": "The payload, where it is not JSON.",
}
"""Attribute of the envelope to what it means."""

_FORMATS = {"source": "uri-reference", "dataschema": "uri"}
_LIKE_ARRAYS = (types.CollectionType, types.TupleType)
_LIKE_OBJECTS = (
    types.StructType, types.DataclassType, types.NamedTupleType, types.TypedDictType,
)  # fmt: skip


def schemas_of(
    kinds: Sequence[Any], template: str = "#/$defs/{name}"
) -> tuple[list[Schema], dict[str, Schema]]:
    """The schema of each kind of data, and by name what they refer to by `template`."""
    roots, named = msgspec.json.schema_components(
        kinds, schema_hook=_of_custom, ref_template=template
    )
    dates = _Dates(named)
    for kind, root in zip(kinds, roots, strict=True):
        dates.mark(types.type_info(kind), root)
    return [_tidy(root) for root in roots], {name: _tidy(named[name]) for name in sorted(named)}


def data_schema(known: EventType) -> Schema:
    """The schema of a type's data, a document of its own whose `$id` is the `dataschema`."""
    [root], named = schemas_of([known.cls])
    name = root.get("$ref", "").rpartition("/")[2]
    if name and "#/$defs/" + name not in _refs([schema for schema in named.values()]):
        root = named.pop(name)
    head = {"$schema": DIALECT, "$id": schema_uri(known.name, known.version)}
    body = {**head, "title": known.name, **root}
    return {**body, "$defs": named} if named else body


def envelope() -> Schema:
    """The schema of every event, whatever its data."""
    [_], named = schemas_of([Event[Any]])
    [schema] = named.values()
    for name, attribute in schema["properties"].items():
        attribute["description"] = ATTRIBUTES[name]
        if name in _FORMATS:
            attribute["format"] = _FORMATS[name]
        if name in schema["required"] and "type" in attribute:
            attribute["minLength"] = 1
    # Without an offset a time is refused where it is read.
    schema["properties"]["time"]["anyOf"][0]["format"] = "date-time"
    about = "One immutable record: a CloudEvent 1.0. Further attributes are extensions."
    return {
        "$schema": DIALECT, "$id": ENVELOPE_URI, **schema, "title": "Envelope", "description": about,
    }  # fmt: skip


def event_schema(known: Iterable[EventType]) -> Schema:
    """The schema of an event with its data, by its type and version.

    It refers to the others by their `$id`. An older version's data is left unjudged.
    """
    rules = [
        {"if": _is_of(each), "then": {"properties": {"data": {"$ref": _uri(each)}}}}
        for each in known
    ]
    title = "An event, with data that is what its type says"
    head = {"$schema": DIALECT, "$id": EVENT_URI, "title": title}
    return {**head, "$ref": ENVELOPE_URI, **({"allOf": rules} if rules else {})}


def bundle(known: Sequence[EventType]) -> Schema:
    """`event_schema` with all that it refers to in one document."""
    parts = {f"{each.name}.{each.version}": data_schema(each) for each in known}
    return {**event_schema(known), "$defs": {"envelope": envelope(), **parts}}


def _uri(known: EventType) -> str:
    return schema_uri(known.name, known.version)


def _is_of(known: EventType) -> Schema:
    """The condition that an event is of the newest version of a type."""
    names = [known.name, *known.former]
    type = {"const": known.name} if len(names) == 1 else {"enum": names}
    uris = [schema_uri(name, known.version) for name in names]
    if known.version > 1:
        version: Schema = {"properties": {"dataschema": {"enum": uris}}, "required": ["dataschema"]}
    else:
        # Somebody else's address of a schema says nothing about the version.
        ours = {"pattern": "^urn:stratum:schema:.*:[1-9][0-9]*$", "not": {"enum": uris}}
        version = {
            "not": {
                "properties": {"dataschema": {**ours, "type": "string"}},
                "required": ["dataschema"],
            }
        }
    return {"properties": {"type": type}, "required": ["type"], **version}


def _of_custom(kind: type) -> Schema:
    """What a type of the user's own looks like as JSON is not known."""
    return {"description": f"As {kind.__qualname__} is written."}


def _refs(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(_refs, schema)) if schema else set()
    if not isinstance(schema, Mapping):
        return set()
    found = set().union(*map(_refs, schema.values())) if schema else set()
    return found | {schema["$ref"]} if isinstance(schema.get("$ref"), str) else found


def _tidy(schema: Any, *, names: bool = False) -> Any:
    """Without what other readers take for something else; `names`: its keys are fields' names."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidied: Schema = {}
    for key, value in schema.items():
        if not names and (key == "discriminator" or (key == "required" and not value)):
            continue  # OpenAPI's; and not allowed to be empty in older drafts
        if not names and key == "description":
            tidied[key] = inspect.cleandoc(value)
        elif not names and key in ("default", "enum"):
            tidied[key] = msgspec.json.decode(msgspec.json.encode(value))  # as others read it
        else:
            tidied[key] = _tidy(value, names=key in ("properties", "$defs") and not names)
    return tidied


class _Dates:
    """Marks times as such: msgspec does so only where a type demands a time zone, since without one
    they are not RFC 3339. Ours always have one, and a text that becomes a time is another type.
    """

    def __init__(self, named: dict[str, Schema]) -> None:
        self._named = named
        self._seen: set[str] = set()

    def mark(self, kind: types.Type, schema: Schema) -> None:
        while isinstance(kind, types.Metadata):
            kind = kind.type
        if reference := schema.get("$ref"):
            name = reference.rpartition("/")[2]
            if name in self._seen:
                return
            self._seen.add(name)
            schema = self._named[name]
        match kind:
            case types.DateTimeType():
                schema["format"] = "date-time"
            case types.UnionType():
                for member in kind.types:
                    self._mark_member(member, schema.get("anyOf", []))
            case types.CollectionType() if "items" in schema:
                self.mark(kind.item_type, schema["items"])
            case types.TupleType():
                for item, its in zip(kind.item_types, schema.get("prefixItems", []), strict=False):
                    self.mark(item, its)
            case types.DictType() if "additionalProperties" in schema:
                self.mark(kind.value_type, schema["additionalProperties"])
            case _ if isinstance(kind, _LIKE_OBJECTS):
                self._mark_fields(kind.fields, schema)

    def _mark_fields(self, fields: Sequence[Any], schema: Schema) -> None:
        if "properties" in schema:
            for field in fields:
                name = getattr(field, "encode_name", field.name)
                self.mark(field.type, schema["properties"][name])
            return
        items = schema.get("prefixItems", [])
        for field, its in zip(fields, items[len(items) - len(fields) :], strict=False):
            self.mark(field.type, its)

    def _mark_member(self, member: types.Type, alternatives: list[Schema]) -> None:
        """There is one of each sort in a union, but for Structs, which go by their name."""
        while isinstance(member, types.Metadata):
            member = member.type
        for schema in alternatives:
            if "anyOf" in schema:
                self._mark_member(member, schema["anyOf"])
            elif reference := schema.get("$ref"):
                title = self._named[reference.rpartition("/")[2]].get("title")
                if getattr(getattr(member, "cls", None), "__name__", None) == title:
                    self.mark(member, schema)
            elif schema.get("type") == _json_type(member):
                self.mark(member, schema)


def _json_type(kind: types.Type) -> str:
    if isinstance(kind, types.DateTimeType):
        return "string"
    if isinstance(kind, _LIKE_ARRAYS):
        return "array"
    return "object" if isinstance(kind, types.DictType) else ""
