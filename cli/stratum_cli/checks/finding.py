"""What a check of `stratum doctor` found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Finding(Struct, frozen=True):
    """One line: what was looked at and what is there. `mend` says what to do, where it is wrong."""

    check: str
    state: Literal["ok", "note", "wrong"]
    found: str
    mend: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def note(check: str, found: str, mend: str = "") -> Finding:
    """Worth knowing, but nothing is broken."""
    return Finding(check, "note", found, mend)


def wrong(check: str, found: str, mend: str) -> Finding:
    return Finding(check, "wrong", found, mend)
