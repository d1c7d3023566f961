"""What a server refused, as a named error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stratum_bus import errors

_LAST_SEQUENCE = re.compile(r"wrong last sequence: (\d+)")
_NOT_FOUND = {10059: "stream", 10014: "consumer", 10037: "message"}
_WRONG_SEQUENCE = (10071, 10164)
_STORAGE = {10023, 10047, 10077}
_NO_SPACE = ("no space left on device", "error creating store")
"""A full disk comes with the code of whatever could not be written."""


def refusal(subject: str, error: Mapping[str, Any], expected: int | None = None) -> errors.BusError:
    """The named error for a JetStream error object (`code`, `err_code`, `description`)."""
    code = int(error.get("err_code", error.get("code", 0)))
    description = str(error.get("description", ""))
    if code in _WRONG_SEQUENCE:
        found = _LAST_SEQUENCE.search(description)
        return errors.WrongSequence(subject, expected, int(found[1]) if found else None)
    if code in _NOT_FOUND:
        return errors.NotFound(_NOT_FOUND[code], _name_in(subject, _NOT_FOUND[code]))
    if code in _STORAGE or any(words in description for words in _NO_SPACE):
        return errors.StorageFull(subject, description)
    return errors.Refused(subject, code, description)


def _name_in(subject: str, kind: str) -> str:
    """The name of what an API request was about: `CONSUMER.CREATE.<stream>.<consumer>`."""
    tokens = subject.removeprefix("$JS.API.").split(".")
    if tokens[0] == "CONSUMER" and len(tokens) > 3:
        stream, consumer = tokens[-2], tokens[-1]
        return stream if kind == "stream" else f"{consumer} of stream {stream}"
    return tokens[-1] if kind == "stream" else f"as asked for in stream {tokens[-1]}"
