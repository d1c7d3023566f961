"""Building projections anew, pausing and resuming them, as `stratum projection` asks for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from stratum_bus.bus import Bus
from stratum_bus.errors import ConnectionLost, NoAnswer, QueryError
from stratum_cli import projections
from stratum_cli.context import Cli
from stratum_projections import manage
from stratum_projections.manage import State
from stratum_projections.query import ask

_CHANGES = {"pause": manage.pause, "resume": manage.resume}
_POLL_SECONDS = 0.25
_PATIENCE_SECONDS = 30.0
"""How long a projector may be away while it is waited for; `stratum up` starts it again."""


async def rebuild(
    cli: Cli, names: Sequence[str], projector: str, *, compare: bool, wait: bool, dry_run: bool
) -> None:
    """Have them built anew, and wait until they are swapped in where that is asked for."""
    names = list(dict.fromkeys(names))
    async with cli.bus() as bus:
        states = await manage.states(bus, projector)
        projections.known(states, names)
        if compare:
            from stratum_cli import verdicts

            verdicts.say(cli, await verdicts.verdict(cli, bus, names, projector))
        begun = [state for state in states if state.name in names]
        if not dry_run:
            before = await _homes(bus, projector)
            begun = await manage.rebuild(bus, names, projector)
        if dry_run or not wait:
            for state in begun:
                text = "would be built anew" if dry_run else "is being built anew"
                _say(cli, {"name": state.name, "building": not dry_run}, text)
            return
        former = {name: before[name] for name in names}
        for row in await until_built(cli, bus, former, projector):
            text = f"built anew up to LOG {row['sequence']:,}, as version {row['version']}"
            _say(cli, {**row, "rebuilt": True}, f"was {text}")


async def change(
    cli: Cli, names: Sequence[str], projector: str, verb: str, *, dry_run: bool
) -> None:
    """Pause or resume them."""
    names = list(dict.fromkeys(names))
    async with cli.bus() as bus:
        states = await manage.states(bus, projector)
        projections.known(states, names)
        if not dry_run:
            states = await _CHANGES[verb](bus, names, projector)
    for state in (state for state in states if state.name in names):
        row = {"name": state.name, "status": state.status, "sequence": state.sequence}
        be = "would be" if dry_run else "was"
        _say(cli, {**row, f"{verb}d": not dry_run}, f"{be} {verb}d at LOG {state.sequence:,}")


def _say(cli: Cli, row: dict[str, Any], text: str) -> None:
    if cli.out.json:
        cli.out.object(row)
    else:
        cli.out.line(f"{row['name']} {text}")


async def until_built(
    cli: Cli, bus: Bus, former: Mapping[str, str], projector: str
) -> list[dict[str, Any]]:
    """Wait until the tables of projections are others than these, telling how far each is.

    Returns what the projections are then. A projector that is away is waited for: the next one
    goes on.
    """
    began = answered = time.monotonic()
    while True:
        try:
            homes = await _homes(bus, projector)
            states = await manage.states(bus, projector)
        except (QueryError, ConnectionLost, NoAnswer):
            if time.monotonic() - answered > _PATIENCE_SECONDS:
                raise
            cli.out.progress("the projector is away; waiting for it")
        else:
            answered = time.monotonic()
            mine = [state for state in states if state.name in former]
            if all(homes[name] != home for name, home in former.items()):
                cli.out.progress("")
                seconds = round(time.monotonic() - began, 1)
                return [_built(state, seconds) for state in mine]
            cli.out.progress("; ".join(progress(state) for state in mine if state.building))
        await anyio.sleep(_POLL_SECONDS)


async def _homes(bus: Bus, projector: str) -> dict[str, str]:
    """Where the tables of each projection are; a rebuild ends with a new place."""
    found = (await ask(bus, "select name, home from projections", projector=projector)).table
    return dict(zip(*(column.to_pylist() for column in found.columns), strict=True))


def _built(state: State, seconds: float) -> dict[str, Any]:
    names = ("name", "version", "sequence")
    return {**{name: getattr(state, name) for name in names}, "seconds": seconds}


def progress(state: State) -> str:
    """How far the building of a projection is, in words."""
    at = state.building
    assert at is not None
    percent = 100 * at.sequence // max(1, at.end)
    text = f"{state.name}: {percent} %, at LOG {at.sequence:,} of {at.end:,}"
    if at.events_per_s:
        text += f", {at.events_per_s:,.0f} events/s"
    if at.eta_seconds is not None:
        text += f", {seconds_text(at.eta_seconds)} left"
    return text


def seconds_text(seconds: float) -> str:
    """Seconds as one would say them: 12 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
