"""What is done about an end: pure functions of what is known and what happened.

Nothing here looks at a clock, at random numbers or at the log: the same facts give the same
decisions, whenever they are looked at again.
"""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Collection, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from stratum_bus import control
from stratum_bus.control import Command
from stratum_bus.supervision import SupervisorConfig

SUSPECTS_MAX = 256


class Again(Struct, frozen=True):
    """Start it again after `delay_seconds`."""

    delay_seconds: float


class GiveUp(Struct, frozen=True):
    """No more restarts. `for_good`: until a person says otherwise, also after a new start of the
    supervisor; else a new start may try it."""

    reason: str
    for_good: bool = True


class History(Struct, frozen=True):
    """The ends of an agent's processes that nobody wanted, within the time that counts: when they
    were, in seconds of any steady clock; `failures` of them since one was last healthy."""

    ends: tuple[float, ...] = ()
    failures: int = 0


def after_end(
    settings: SupervisorConfig,
    history: History,
    *,
    instance: str,
    code: int,
    lived_seconds: float,
    now: float,
) -> tuple[History, Again | GiveUp]:
    """Whether and when what ended is started again."""
    failures = 1 if lived_seconds >= settings.healthy_seconds else history.failures + 1
    since = now - settings.restart_seconds
    ends = (*(end for end in history.ends if end > since), now)
    history = History(ends, failures)
    if code == os.EX_CONFIG:
        return history, GiveUp("its settings or its command are wrong, see what it said", False)
    if len(ends) > settings.restarts:
        seconds = f"{settings.restart_seconds:g} s"
        return history, GiveUp(f"it ended {len(ends)} times within {seconds}")
    return history, Again(delay_seconds(settings, failures, instance))


def delay_seconds(settings: SupervisorConfig, failures: int, instance: str) -> float:
    """None for the first restart; then growing, less up to half of it by the instance's name."""
    if failures <= 1:
        return 0.0
    full = min(settings.first_delay_seconds * 2 ** (failures - 2), settings.max_delay_seconds)
    return float(full * (1 - zlib.crc32(instance.encode()) / 2**33))


class Suspect(Struct, frozen=True):
    """A message that was worked on at `deaths` ends in a row, its run standing at `mark`."""

    deaths: int
    mark: str


Suspects = Mapping[str, Suspect]
"""By message, as `<stream>-<sequence>`."""


def after_death(
    settings: SupervisorConfig, known: Suspects, begun: Mapping[str, str]
) -> tuple[dict[str, Suspect], list[str]]:
    """Count a death for what was worked on (`begun`: message to mark); returns what is now known,
    and what is to be parked.

    A run that moved on since is not stuck on its message, and begins anew. Where several were
    worked on, the death is not proof against any one of them: the last one that is needed has to be
    found alone, so suspects are handled alone from then on.
    """
    suspects = dict(known)
    for message, mark in begun.items():
        before = suspects.pop(message, None)
        deaths = before.deaths + 1 if before and before.mark == mark else 1
        if len(begun) > 1:
            deaths = min(deaths, settings.poison_deaths - 1)
        suspects[message] = Suspect(deaths, mark)
    poison = [m for m in begun if suspects[m].deaths >= settings.poison_deaths]
    for message in poison:
        del suspects[message]
    for message in list(suspects)[:-SUSPECTS_MAX]:
        del suspects[message]
    return suspects, poison


def most_suspect(suspects: Suspects, begun: Collection[str]) -> list[str]:
    """What to park where an agent is given up before a message reached its limit: the one that was
    worked on alone at this end and at the one before."""
    if len(begun) != 1:
        return []
    return [m for m in begun if m in suspects and suspects[m].deaths > 1]


class Wanted(Struct, frozen=True):
    """The state that an agent is to be in. `since` is the sequence of the command that said so."""

    instances: int
    stopped: bool = False
    quarantined: bool = False
    reason: str = ""
    since: int = 0

    @property
    def count(self) -> int:
        """How many instances are to run."""
        return 0 if self.stopped or self.quarantined else self.instances


STATE_COMMANDS = (
    control.START,
    control.STOP,
    control.SCALE,
    control.RESUME,
    control.QUARANTINE,
)
"""The commands that say what state an agent is to be in. A person's restart is a start, too."""


def wanted(state: Wanted, command: str, what: Command, sequence: int) -> Wanted:
    """The state after one more command."""
    state = replace(state, since=sequence)
    match command:
        case control.START | control.RESUME:
            return replace(state, stopped=False, quarantined=False, reason="")
        case control.RESTART if not what.incident:
            return replace(state, stopped=False, quarantined=False, reason="")
        case control.STOP:
            return replace(state, stopped=True, reason=what.reason)
        case control.QUARANTINE:
            return replace(state, quarantined=True, reason=what.reason)
        case control.SCALE:
            return replace(state, instances=max(0, what.instances))
    return state


def fold(state: Wanted, commands: Iterable[tuple[int, str, Command]]) -> Wanted:
    """The state after commands (sequence, name, data), in the order of the log."""
    for sequence, command, what in sorted(commands, key=lambda each: each[0]):
        state = wanted(state, command, what, sequence)
    return state


def ending(code: int) -> str:
    """An exit code in words."""
    if code < 0:
        return f"signal {signal_name(code)}"
    return f"exit code {code}" if code else "by itself"


def signal_name(code: int) -> str:
    """The name of the signal in a negative exit code, "" for an exit by itself."""
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return str(-code)
