"""What was posted, as events: a CloudEvent structured, binary or a batch of them, or bare JSON."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

import msgspec
from msgspec import Raw, Struct

from stratum_bus import event as events
from stratum_bus import subject
from stratum_bus.errors import InvalidEvent
from stratum_bus.event import HEADER_CONTENT_TYPE, HEADER_ID, Event, RawEvent, uuid7
from stratum_bus.publish import BATCH_MAX, Append
from stratum_cli.gateway.access import Holder
from stratum_cli.gateway.problem import Problem

BATCH = "application/cloudevents-batch+json"
ID_MAX = 256
EXTENSIONS_MAX = 64

_KNOWN = {*Event.__struct_fields__, "specversion"}
_EXTENSION = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
_as_object = msgspec.json.Decoder(dict[str, Raw]).decode
_as_list = msgspec.json.Decoder(list[Raw]).decode


class Place(Struct, frozen=True):
    """Where an address leads: an agent's inbox, or a topic (`to` is empty). `type` may be open."""

    to: str = ""
    type: str = ""

    def subject(self, sender: str, type: str) -> str:
        """Raises InvalidName for what no subject can have."""
        return subject.inbox(self.to, sender, type) if self.to else subject.topic(sender, type)


def read(body: bytes, headers: Mapping[str, str], place: Place, holder: Holder) -> list[Append]:
    """What is to be stored. Raises Problem, InvalidEvent and InvalidName: nothing of it is."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    kind = kind.strip()
    if kind == BATCH:
        return _batch(body, place, holder)
    attributes = {name: value for name, value in headers.items() if name.startswith("ce-")}
    if attributes and not kind.startswith("application/cloudevents"):
        _check_charset(kind, parameters)
        given = {**attributes, HEADER_CONTENT_TYPE: headers.get("content-type", "application/json")}
        found = _event(body, given, "")
        names = {name[3:] for name in attributes} - _KNOWN
        extensions = {name: unquote(attributes[f"ce-{name}"]) for name in names}
        return [_append(_extended(found, extensions, "header `ce-{}`"), place, holder, "")]
    if kind == events.CONTENT_TYPE:
        _check_charset("json", parameters)
        return [_structured(body, place, holder, "$")]
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise Problem(415, _unsupported(kind))
    _check_charset("json", parameters)
    return [_bare(body, headers, place, holder)]


def _batch(body: bytes, place: Place, holder: Holder) -> list[Append]:
    try:
        each = _as_list(body)
    except msgspec.ValidationError as error:
        raise InvalidEvent("shape", str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidEvent("json", str(error)) from None
    if len(each) > BATCH_MAX:
        raise Problem(413, f"{len(each)} events in a batch: at most {BATCH_MAX:,} are taken")
    found = [_structured(bytes(raw), place, holder, f"$[{i}]") for i, raw in enumerate(each)]
    first: dict[str, int] = {}
    for i, append in enumerate(found):
        if (at := first.setdefault(append.event.id, i)) != i:
            raise Problem(400, f"`id` is that of another event of the batch, $[{at}] - at `$[{i}]`")
    return found


def _structured(body: bytes, place: Place, holder: Holder, path: str) -> Append:
    found = _event(body, {HEADER_CONTENT_TYPE: events.CONTENT_TYPE}, path)
    members = _as_object(body)
    extensions = {}
    for name in members.keys() - _KNOWN:
        value = _attribute(members[name], name, path)
        if value is None:  # as if it were not there
            continue
        if not isinstance(value, str | int | float | bool):
            text = f"the extension `{name}` must be text, a number or a boolean - at `{path}`"
            raise InvalidEvent("shape", text)
        extensions[name] = value
    return _append(_extended(found, extensions, "the attribute `{}`"), place, holder, path)


def _attribute(member: Raw, name: str, path: str) -> Any:
    try:
        return msgspec.json.decode(member)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidEvent("json", f"{error} - at `{path}.{name[:80]}`") from None


def _bare(body: bytes, headers: Mapping[str, str], place: Place, holder: Holder) -> Append:
    """As everywhere: an object that says its specversion is an envelope, anything else is data."""
    type = place.type or "message"
    given = {HEADER_ID: headers.get(holder.id_header.lower()) or uuid7()}
    found = _event(body, given, "", place.subject(holder.agent, type))
    if body.lstrip().startswith(b"{") and "specversion" in _as_object(body):
        return _structured(body, place, holder, "$")
    if not place.type:
        text = "JSON without an envelope has no type: add one to the address, as in …/note.ready"
        raise Problem(400, text)
    return _append(found, place, holder, "")


def _event(body: bytes, headers: dict[str, str], path: str, to: str = "topic.x.x") -> RawEvent:
    try:
        now = datetime.now(UTC)
        return events.read(body, headers, subject=to, stream="", sequence=0, time=now)
    except InvalidEvent as error:
        if path in ("", "$"):
            raise
        where = error.detail.replace("- at `$", f"- at `{path}")
        detail = where if where != error.detail else f"{error.detail} - at `{path}`"
        raise InvalidEvent(error.reason, detail) from None


def _append(found: Event[Any], place: Place, holder: Holder, path: str) -> Append:
    """Check what a stored event may not be wrong in, and say where it goes."""
    at = f" - at `{path}`" if path not in ("", "$") else ""
    if not (len(found.id) <= ID_MAX and found.id.isprintable() and " " not in found.id):
        text = f"`id` must have 1 to {ID_MAX} printable characters and no space{at}"
        raise InvalidEvent("shape", text)
    if place.type and found.type != place.type:
        raise Problem(400, f"`type` is {found.type}, the address says {place.type}{at}")
    if found.source.startswith("/agents/") and found.source != events.agent_source(holder.agent):
        text = f"the token {holder.name} posts as {holder.agent}, `source` is {found.source[:80]}"
        raise Problem(403, text + at)
    if found.data_base64 is not None:
        if found.data is not None:
            raise InvalidEvent("shape", f"there are both `data` and `data_base64`{at}")
        try:
            base64.b64decode(found.data_base64, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidEvent("shape", f"`data_base64` is no Base64{at}") from None
    to = place.subject(holder.agent, found.type)
    holder.check_post(to)
    return Append(to, found)


def _extended(found: RawEvent, extensions: Mapping[str, Any], what: str) -> Event[Any]:
    """The event with the attributes that are not ours: they are stored as they came."""
    if not extensions:
        return found
    if len(extensions) > EXTENSIONS_MAX:
        text = f"{len(extensions)} extension attributes: at most {EXTENSIONS_MAX} are taken"
        raise InvalidEvent("shape", text)
    for name in extensions:
        if not _EXTENSION.fullmatch(name):
            rule = "its name must be 1 to 64 small letters and digits"
            raise InvalidEvent("shape", f"{what.format(name[:80])} is not allowed: {rule}")
    names = tuple(sorted(extensions))
    ours = {name: getattr(found, name) for name in found.__struct_fields__}
    return _class_with(names)(**ours, **extensions)


@lru_cache(maxsize=256)
def _class_with(names: tuple[str, ...]) -> type[Event[Any]]:
    made = msgspec.defstruct(
        "ExtendedEvent",
        [(name, Any, None) for name in names],
        bases=(Event,),
        frozen=True,
        kw_only=True,
        omit_defaults=True,
        tag_field="specversion",
        tag="1.0",
    )
    return made  # type: ignore[return-value]


def _check_charset(kind: str, parameters: str) -> None:
    _, named, charset = parameters.partition("charset=")
    charset = charset.partition(";")[0].strip().strip('"')
    if (
        named
        and charset not in ("utf-8", "utf8", "us-ascii")
        and ("json" in kind or "text" in kind)
    ):
        raise Problem(415, f"the charset {charset[:40]}: only UTF-8 is taken")


def _unsupported(kind: str) -> str:
    taken = f"{events.CONTENT_TYPE}, {BATCH} and application/json are taken"
    return f"{kind[:80]} is not taken: {taken}, and anything beside headers ce-id, ce-type, …"
