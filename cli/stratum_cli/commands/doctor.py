"""`stratum doctor`: what is wrong with this installation."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import typer

from stratum_bus.config import Config
from stratum_bus.errors import ConfigError, StratumError
from stratum_cli.checks import machine, projector, server
from stratum_cli.checks.finding import Finding, wrong
from stratum_cli.command import command
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED


def register(app: typer.Typer) -> None:
    command(app)(doctor)


async def doctor(cli: Cli) -> None:
    """Say what is wrong with this installation, one line each, with the mend.

    Looks at this machine, stratum.toml, the server, its streams, the agents and the projector.
    Exit code 1 if something is wrong; a `note` is not.
    """
    broken = False
    async for finding in _findings(cli):
        broken = broken or finding.state == "wrong"
        if cli.out.json:
            cli.out.object(msgspec.structs.asdict(finding))
        else:
            mend = f" -> {finding.mend}" if finding.mend else ""
            line = f"{finding.state:<5}  {finding.check}: {finding.found}{mend}"
            cli.out.line(line, shorten=False)
    if broken:
        raise typer.Exit(FAILED)


async def _findings(cli: Cli) -> AsyncIterator[Finding]:
    try:
        config = cli.config
    except ConfigError as error:
        yield wrong("settings", str(error), "correct the file")
        config = Config()
    for finding in machine.machine(config):
        yield finding
    for finding in machine.agents(config):
        yield finding
    try:
        async with cli.bus() as bus:
            async for finding in server.server(bus, config):
                yield finding
            async for finding in projector.projector(bus):
                yield finding
    except ConfigError:
        pass  # said above
    except StratumError as error:
        found, _, mend = str(error).partition(": ")
        yield wrong("server", found, mend or "look at the server's log")
