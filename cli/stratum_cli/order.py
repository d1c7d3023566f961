"""Giving a command to an agent's supervisor, and waiting for what becomes of it."""

from __future__ import annotations

from typing import Any

import anyio

from stratum_bus import control, subject
from stratum_bus.bus import Bus
from stratum_bus.config import RESERVED
from stratum_bus.control import Command, Outcome
from stratum_bus.errors import InvalidEvent, NoAnswer, StratumError
from stratum_bus.event import typed
from stratum_bus.read import Reader
from stratum_cli import delivery, known
from stratum_cli.context import Cli

PEOPLE = "/people"
"""The source of a command that a person gave."""


async def order(
    cli: Cli,
    agent: str,
    command: str,
    what: Command,
    *,
    wait: bool,
    timeout_seconds: float,
    dry_run: bool,
) -> None:
    """Store the command, wait for its outcome where that is wanted, and print both.

    Raises NotFound for an agent that nobody knows, NoAnswer where no supervisor executed it in
    time, StratumError where it could not be done.
    """
    subject.token(agent, "agent name")
    async with cli.bus() as bus:
        everybody = await delivery.receivers(bus)
        if agent not in (*known.names(cli, everybody), *RESERVED):
            raise known.unknown(cli, agent, everybody)
        row: dict[str, Any] = {"agent": agent, "command": command}
        if dry_run:
            _print(cli, {**row, "given": False}, f"{agent}: {command} would be given")
            return
        outcomes = [subject.control(agent, control.OUTCOME)]
        async with bus.read(filters=outcomes, start=None, follow=True) as reader:
            row |= await _give(bus, agent, command, what)
            if not wait:
                _print(cli, row, f"{agent}: {command} is given ({row['sequence']})")
                return
            outcome = await _outcome(reader, row["id"], timeout_seconds)
    if outcome is None:
        raise NoAnswer(
            f"no supervisor executed {command} for {agent} within {timeout_seconds:g} s; it stands "
            f"in the log as {row['sequence']} and is executed when one starts: is `stratum up` "
            "running?"
        )
    if not outcome.done:
        raise StratumError(f"{command} of {agent} was not done: {outcome.detail}")
    row |= {"done": True, "detail": outcome.detail}
    if outcome.instance:
        row |= {"instance": outcome.instance, "pid": outcome.pid}
    process = f" (pid {outcome.pid})" if outcome.pid else ""
    _print(cli, row, f"{agent}: {outcome.detail}{process}")


async def _give(bus: Bus, agent: str, command: str, what: Command) -> dict[str, Any]:
    event = control.new_command(command, what, source=PEOPLE)
    stored = await bus.publish(subject.control(agent, command), event)
    return {"id": event.id, "sequence": stored.sequence, "given": True}


async def _outcome(reader: Reader, command: str, timeout_seconds: float) -> Outcome | None:
    with anyio.move_on_after(timeout_seconds):
        async for message in reader:
            try:
                outcome = typed(message.event(), Outcome).data
            except InvalidEvent:
                continue
            if outcome.command == command:
                return outcome
    return None


def _print(cli: Cli, row: dict[str, Any], line: str) -> None:
    if cli.out.json:
        cli.out.object(row)
    else:
        cli.out.line(line, shorten=False)
