"""Turn what a TOML file holds into a Struct, or say in plain words what is wrong where."""

from __future__ import annotations

import difflib
import re
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct

from stratum_bus.errors import ConfigError

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "null": "nothing",
    "array": "a list",
    "object": "a table",
    "datetime": "a date and time",
    "date": "a date",
    "time": "a time",
}

S = TypeVar("S")


def convert(value: object, kind: type[S], key: str, file: str) -> S:
    """Convert TOML values to `kind`, a Struct or any type msgspec knows. `key` is its path.

    :raises ConfigError: an unknown or missing key or a wrong value, each named by its full path
    """
    _check(value, kind, key, file)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:  # a rule of the Struct's own, as in __post_init__
        message, _, path = str(error).partition(" - at `$")
        where = (key + path.rstrip("`")).lstrip(".")
        raise ConfigError(where, "values that fit together", message, file=file) from error


def shown(value: object) -> str:
    """A value as a person would name it, shortened."""
    match value:
        case str():
            return f'the text "{value}"' if len(value) <= 60 else f'the text "{value[:60]}…"'
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case list():
            return "a list"
        case dict():
            return "a table"
    return str(value)


def join(key: str, name: str) -> str:
    """The path of a key below another, as one would write it in TOML."""
    part = name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else f'"{name}"'
    return f"{key}.{part}" if key else part


def _check(value: object, kind: Any, key: str, file: str) -> None:
    """Walk value and type together: msgspec's own errors do not say which key of a dict it was."""
    kind = _alternative(kind, value)
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and isinstance(origin or kind, type):
        if issubclass(origin or kind, Struct):
            return _check_struct(value, kind, key, file)
        if origin is dict:
            for name, item in value.items():
                _check(item, args[1], join(key, name), file)
            return None
    if isinstance(value, list) and (
        origin in (list, set, frozenset) or (origin is tuple and args[1:] == (...,))
    ):
        for i, item in enumerate(value):
            _check(item, args[0], f"{key}[{i}]", file)
        return None
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ConfigError(key, _expected(str(error), kind), shown(value), file=file) from error


def _check_struct(value: dict[str, Any], kind: Any, key: str, file: str) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    tag_field = (get_origin(kind) or kind).__struct_config__.tag_field
    for name, item in value.items():
        if name in fields:
            _check(item, fields[name].type, join(key, name), file)
        elif name != tag_field:
            close = difflib.get_close_matches(name, fields, n=1)
            got = "an unknown key" + (f"; did you mean {close[0]}?" if close else "")
            expected = f"one of {', '.join(fields)}" if fields else "no keys"
            raise ConfigError(join(key, name), expected, got, file=file)
    for name, field in fields.items():
        if field.required and name not in value:
            raise ConfigError(join(key, name), _words_of(field.type), "nothing", file=file)


def _alternative(kind: Any, value: object) -> Any:
    """The one member of a union that a table or a list can be meant for, else the type as it is."""
    if get_origin(kind) is Annotated and isinstance(value, dict):
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, types.UnionType) or not isinstance(value, dict | list):
        return kind
    wanted = (dict, Struct) if isinstance(value, dict) else (list, set, frozenset)
    fits = [
        option
        for option in get_args(kind)
        if isinstance(base := get_origin(option) or option, type) and issubclass(base, wanted)
    ]
    return fits[0] if len(fits) == 1 else kind


def _expected(message: str, kind: Any) -> str:
    """`Expected `int` >= 1, got `str` - at `$`` as `a whole number >= 1`."""
    found = re.match(r"Expected (.+?)(?:, got .*)?(?: - at .*)?$", message)
    if not found:
        return _words_of(kind)
    return re.sub(
        r"`([^`]+)`",
        lambda m: " or ".join(_WORDS.get(w, w) for w in m.group(1).split(" | ") if w != "null"),
        found.group(1),
    )


def _words_of(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words_of(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        return " or ".join(_words_of(option) for option in args if option is not type(None))
    base = origin or kind
    if isinstance(base, type) and issubclass(base, dict | Struct):
        return "a table"
    if isinstance(base, type) and issubclass(base, list | set | frozenset | tuple):
        return "a list"
    return _WORDS.get(getattr(base, "__name__", ""), str(base))
