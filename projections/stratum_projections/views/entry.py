"""An entry of a run's journal, as far as tables are made of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec

PREFIX = "stratum.run."
CALLS = ("step.completed", "step.failed", "waiting", "wait.completed")
"""What came of a call of the handler, so far or in the end."""
INPUTS = ("signalled", "fired", "cancel.requested", "pause.requested", "continue.requested")
"""What others may add to a run, before it begins and after its end too."""
ENDS = ("completed", "failed", "cancelled", "continued")
OTHERS = ("resumed", "suspended", "compensating", "parked", "forked", "sent")
TYPES = tuple(PREFIX + kind for kind in (*CALLS, *INPUTS, *ENDS, *OTHERS))

TIMEOUT = "timeout"
"""The `reason` of a wait that ended because its time was over."""

_KINDS = {"step": "step", "sleep": "sleep", "wait": "wait", "reply": "call"}
_SENT_BY = re.compile(r"(r[a-z2-7]{24})-[0-9.]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
_Sequence = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Origin(msgspec.Struct):
    """The message that a run was started by."""

    stream: str = ""
    sequence: _Sequence = 0
    id: str = ""
    type: str = ""
    handler: str = ""


class Failure(msgspec.Struct):
    """An error."""

    type: str = ""
    message: str = ""


class Entry(msgspec.Struct):
    """The data of an entry. Times come out in microseconds since 1970."""

    n: str = ""
    name: str = ""
    error: Failure | None = None
    attempt: _Count = 0
    final: bool = False
    seconds: _Seconds | None = None
    until: datetime | None = None
    suspends: bool = False
    effects: msgspec.Raw = msgspec.Raw(b"[]")
    origin: Origin | None = None
    instance: str = ""
    reason: str = ""
    run: str = ""
    at: str = ""

    @property
    def spent_us(self) -> int:
        """How long its attempt took."""
        return round(self.seconds * 1e6) if self.seconds else 0

    @property
    def until_us(self) -> int | None:
        """When its wait is over or the next attempt is due."""
        if self.until is None:
            return None
        aware = self.until if self.until.tzinfo else self.until.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)

    def call(self) -> tuple[str | None, str | None]:
        """The kind of its call and the name, from `step:pay`, `sleep`, `wait:verdict`, …"""
        if not self.name:
            return None, None
        what, _, name = self.name.partition(":")
        if self.n.startswith("c"):
            return "undo", name.removeprefix("undo ")
        return _KINDS.get(what, what), name or what

    def timer(self) -> str:
        """The name of the timer that it has set, as in TIMERS."""
        name = "t" + self.n.replace(".", "-")
        return f"{name}-a{self.attempt}" if self.attempt else name

    def failure(self) -> str | None:
        """Its error as text."""
        return f"{self.error.type}: {self.error.message}" if self.error else None

    def subjects(self) -> Iterable[str]:
        """Those of the messages and notes that were committed with it."""
        if len(self.effects) <= 2:
            return ()
        try:
            return [effect.subject for effect in _effects_of(self.effects)]
        except msgspec.DecodeError:
            return ()  # it was not written by a run of ours


class _Effect(msgspec.Struct):
    subject: str = ""


decode = msgspec.json.Decoder(Entry).decode
"""Raises msgspec.DecodeError."""
_effects_of = msgspec.json.Decoder(list[_Effect]).decode


def sender_of(event: str | None) -> str | None:
    """The run that sent an event, by the event's id: the run's own, and the call's position."""
    sender = _SENT_BY.fullmatch(event or "")
    return sender[1] if sender else None
