"""`stratum inbox` and `stratum outbox`: what an agent received and sent, and how far that is."""

from __future__ import annotations

from typing import Annotated

import typer

from stratum_bus import subject
from stratum_bus.message import Message
from stratum_cli import complete, delivery, events, known
from stratum_cli.command import command
from stratum_cli.context import Cli
from stratum_cli.output import Columns, Row

AgentName = Annotated[
    str,
    typer.Argument(metavar="AGENT", help="Name of the agent.", autocompletion=complete.agents),
]
Limit = Annotated[
    int, typer.Option("--limit", "-n", metavar="N", min=0, help="The newest N; 0 shows all.")
]


def register(app: typer.Typer) -> None:
    command(app)(inbox)
    command(app)(outbox)


async def inbox(
    cli: Cli,
    agent: AgentName,
    limit: Limit = 50,
    pending: Annotated[
        bool, typer.Option("--pending", help="Only what is not yet handled.")
    ] = False,
) -> None:
    """Show what an agent received, from others and from topics it follows.

    The state is pending, in hand, handled, or what became of its dead letter: dead, redriven,
    dropped.
    """
    subject.token(agent, "agent name")
    async with cli.bus() as bus:
        own = await delivery.receiver(bus, agent)
        filters = own.messages if own else subject.inbox_filters(agent)
        messages = await events.newest(bus, filters, limit)
        if not messages and not own and agent not in cli.config.agents:
            raise known.unknown(cli, agent, await delivery.receivers(bus))
        states = await delivery.states(bus, messages, [own] if own else [])
    rows = [
        {
            **events.row(message),
            "from": events.sender(message),
            "state": state.get(agent, delivery.PENDING),
        }
        for message, state in zip(messages, states, strict=True)
    ]
    if pending:
        rows = [row for row in rows if row["state"] in (delivery.PENDING, delivery.IN_HAND)]
    columns: Columns = {"sequence": "sequence", "time": "time", "from": "from", "state": "state"}
    cli.out.table(rows, {**columns, **events.COLUMNS}, nothing=f"nothing in the inbox of {agent}")


async def outbox(cli: Cli, agent: AgentName, limit: Limit = 50) -> None:
    """Show what an agent sent, to others and to topics, and what became of it at each receiver."""
    subject.token(agent, "agent name")
    async with cli.bus() as bus:
        messages = await events.newest(bus, subject.outbox_filters(agent), limit)
        everybody = await delivery.receivers(bus)
        if not messages and agent not in known.names(cli, everybody):
            raise known.unknown(cli, agent, everybody)
        states = await delivery.states(bus, messages, everybody)
    rows = [
        {**events.row(message), "to": _to(message), "deliveries": state}
        for message, state in zip(messages, states, strict=True)
    ]
    columns: Columns = {"sequence": "sequence", "time": "time", "to": "to", "state": _summary}
    cli.out.table(rows, {**columns, **events.COLUMNS}, nothing=f"{agent} has sent nothing")


def _to(message: Message) -> str:
    place = subject.parse(message.subject)
    return place.to or "(all who follow)"


def _summary(row: Row) -> str:
    states: dict[str, str] = row["deliveries"]
    return ", ".join(f"{state} at {agent}" for agent, state in states.items()) or "nobody takes it"
