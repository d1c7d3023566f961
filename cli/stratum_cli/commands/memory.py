"""`stratum memory`: what an agent believes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from stratum_bus import subject
from stratum_bus.memory import Memory
from stratum_cli import delivery, known, position
from stratum_cli.command import command
from stratum_cli.commands.inbox import AgentName
from stratum_cli.context import Cli
from stratum_cli.output import Columns

_COLUMNS: Columns = {
    "noted": "time",
    "kind": "kind",
    "about": "about",
    "score": lambda row: None if row["score"] is None else round(row["score"], 3),
    "tags": "tags",
    "text": "text",
}


def register(app: typer.Typer) -> None:
    command(app)(memory)


async def memory(
    cli: Cli,
    agent: AgentName,
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="KIND", show_default=False, help="Only this kind of note."),
    ] = None,
    about: Annotated[
        str | None,
        typer.Option("--about", metavar="ID", show_default=False, help="Only notes about this."),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="TAG",
            show_default=False,
            help="Only notes that have this tag. May be repeated: all of them.",
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            metavar="WHERE",
            show_default=False,
            help=f"What it believed then: {position.FORMS}.",
        ),
    ] = None,
    retracted: Annotated[
        bool, typer.Option("--retracted", help="Show notes that were taken back too.")
    ] = False,
) -> None:
    """Show the notes of an agent as they stand, oldest first.

    Example: `stratum memory research --tag cs.SE --as-of 7d`
    """
    subject.token(agent, "agent name")
    if kind is not None:
        subject.token(kind, "memory kind")
    when = position.parse(as_of, "--as-of") if as_of is not None else None
    if isinstance(when, datetime) and when > datetime.now(UTC):
        when = None
    async with cli.bus() as bus:
        notes = await Memory(bus, agent).notes(
            kind=kind, about=about, tags=tags or (), as_of=when, retracted=retracted
        )
        if not notes:
            everybody = await delivery.receivers(bus)
            if agent not in known.names(cli, everybody) and not await Memory(bus, agent).notes(
                retracted=True
            ):
                raise known.unknown(cli, agent, everybody)
    rows = [msgspec.structs.asdict(note) for note in notes]
    cli.out.table(rows, _COLUMNS, nothing=f"{agent} has no such notes")
