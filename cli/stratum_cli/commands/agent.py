"""`stratum agent`: who takes part, how far they are, one instance by hand, and commands to all."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stratum_bus import control, subject
from stratum_bus.control import Command
from stratum_cli import delivery, known
from stratum_cli.command import DryRun, command, group
from stratum_cli.commands.inbox import AgentName
from stratum_cli.context import Cli
from stratum_cli.delivery import Receiver
from stratum_cli.order import order

Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; it is kept.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return when the command is stored.")]
Timeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait.")
]
TIMEOUT_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    agents = group("agent", "Agents: who there is, how far each is, and commands to them.")
    command(agents, "list")(list_agents)
    command(agents)(show)
    command(agents)(run)
    for each in (restart, pause, resume, stop, start, scale):
        command(agents)(each)
    app.add_typer(agents)


async def list_agents(cli: Cli) -> None:
    """List the agents that ever ran and those of stratum.toml."""
    async with cli.bus() as bus:
        everybody = await delivery.receivers(bus)
    by_name = {each.name: each for each in everybody}
    rows = [_row(cli, name, by_name.get(name)) for name in known.names(cli, everybody)]
    columns = {
        key.replace("_", " "): key for key in ("agent", "configured", "state", "pending", "in_hand")
    }
    cli.out.table(
        rows, {**columns, "follows": "follows"}, nothing="no agent ever ran, and none is configured"
    )


async def show(cli: Cli, agent: AgentName) -> None:
    """Show one agent: its settings, its consumer, and what waits for it."""
    subject.token(agent, "agent name")
    async with cli.bus() as bus:
        own = await delivery.receiver(bus, agent)
        if own is None and agent not in cli.config.agents:
            raise known.unknown(cli, agent, await delivery.receivers(bus))
    details: dict[str, Any] = {}
    if own:
        details = {
            "redelivered": own.redelivered,
            "handled_to": own.settled,
            "delivered_to": own.delivered,
            "filters": list(own.filters),
        }
    if agent in cli.config.agents:
        settings = cli.config.agents[agent]
        details |= {
            "create": settings.create or None,
            "command": settings.command or None,
            "instances": settings.instances,
            "concurrency": settings.concurrency,
            "max_attempts": settings.max_attempts,
            "settings": settings.settings,
        }
    cli.out.record({**_row(cli, agent, own), **details})


def run(cli: Cli, agent: AgentName) -> None:
    """Run one instance of an agent of stratum.toml here, until Ctrl-C.

    A first Ctrl-C lets it finish what it has in hand, a second one ends it at once.
    """
    import anyio

    from stratum_agents.process import run_agent
    from stratum_bus.service import log_to_stderr

    subject.token(agent, "agent name")
    config, url = cli.config, cli.url()
    log_to_stderr(agent)
    anyio.run(run_agent, config, agent, url)


async def restart(
    cli: Cli,
    agent: AgentName,
    instance: Annotated[
        str, typer.Option("--instance", metavar="ID", show_default=False, help="Only this one.")
    ] = "",
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """Start the instances of an agent again: each finishes what it has in hand, within its grace.

    One that was stopped or given up is started. `projector` and `health` can be named, too.
    """
    what = Command(instance=instance, reason=reason)
    await _order(cli, agent, control.RESTART, what, no_wait, timeout, dry_run)


async def pause(
    cli: Cli,
    agent: AgentName,
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """Hold the messages of an agent back; what it has in hand is finished. See `resume`."""
    await _order(cli, agent, control.PAUSE, Command(reason=reason), no_wait, timeout, dry_run)


async def resume(
    cli: Cli,
    agent: AgentName,
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """Let an agent go on that was paused, stopped or given up."""
    await _order(cli, agent, control.RESUME, Command(reason=reason), no_wait, timeout, dry_run)


async def stop(
    cli: Cli,
    agent: AgentName,
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """End all instances of an agent, until `start`; also after the next `stratum up`."""
    await _order(cli, agent, control.STOP, Command(reason=reason), no_wait, timeout, dry_run)


async def start(
    cli: Cli,
    agent: AgentName,
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """Start an agent that was stopped, or that its supervisor gave up."""
    await _order(cli, agent, control.START, Command(reason=reason), no_wait, timeout, dry_run)


async def scale(
    cli: Cli,
    agent: AgentName,
    instances: Annotated[
        int, typer.Argument(metavar="N", min=0, max=1000, help="How many are to run.")
    ],
    reason: Reason = "",
    no_wait: NoWait = False,
    timeout: Timeout = TIMEOUT_SECONDS,
    dry_run: DryRun = False,
) -> None:
    """Run as many instances of an agent; this goes before `instances` in stratum.toml.

    Example: `stratum agent scale research 3`
    """
    what = Command(instances=instances, reason=reason)
    await _order(cli, agent, control.SCALE, what, no_wait, timeout, dry_run)


async def _order(
    cli: Cli, agent: str, name: str, what: Command, no_wait: bool, timeout: float, dry_run: bool
) -> None:
    await order(cli, agent, name, what, wait=not no_wait, timeout_seconds=timeout, dry_run=dry_run)


def _row(cli: Cli, name: str, own: Receiver | None) -> dict[str, Any]:
    state = "never ran" if own is None else "listening" if own.listening else "not listening"
    return {
        "agent": name,
        "configured": name in cli.config.agents,
        "state": state,
        "pending": own.pending if own else None,
        "in_hand": own.in_hand if own else None,
        "follows": own.follows if own else None,
    }
