"""`stratum agent`: who takes part, how far they are, and one instance by hand."""

from __future__ import annotations

from typing import Any

import typer

from stratum_bus import subject
from stratum_cli import delivery, known
from stratum_cli.command import command, group
from stratum_cli.commands.inbox import AgentName
from stratum_cli.context import Cli
from stratum_cli.delivery import Receiver


def register(app: typer.Typer) -> None:
    agents = group("agent", "Agents: who there is, how far each is, and running one.")
    command(agents, "list")(list_agents)
    command(agents)(show)
    command(agents)(run)
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
            "create": settings.create,
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
