"""`stratum research`: papers for the research agent."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stratum_bus import subject
from stratum_cli.command import command, group
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED

_WAIT_SECONDS = 60.0


def register(app: typer.Typer) -> None:
    research = group("research", "The research agent: a monitor of papers.")
    research.callback()(_nothing)
    command(research)(read)
    app.add_typer(research)


def _nothing() -> None:
    """Keeps `read` a command of its own, although it is the only one."""


async def read(
    cli: Cli,
    sources: Annotated[
        list[str],
        typer.Argument(metavar="FILE|URL...", help="Feeds in arXiv's Atom format."),
    ],
    agent: Annotated[
        str, typer.Option("--agent", metavar="AGENT", help="The agent that shall read them.")
    ] = "research",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the agent has handled every paper.")
    ] = False,
    timeout_seconds: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait at most."),
    ] = _WAIT_SECONDS,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the feeds, list the papers, and hand none over.")
    ] = False,
) -> None:
    """Hand the papers of feeds to the research agent.

    A paper that it has read before, in the same version, is not handed over twice.

    Example: `stratum research read papers.xml --wait`
    """
    from stratum_agents.research import feed
    from stratum_agents.research.intake import DONE, hand_over, wait_handled

    subject.token(agent, "agent name")
    if dry_run:
        papers = [paper for source in sources for paper in await feed.papers(source)]
        titles = [{"paper": paper.name, "title": paper.title} for paper in papers]
        cli.out.table(titles, {"paper": "paper", "title": "title"}, nothing="no papers")
        return
    async with cli.bus() as bus:
        handed = await hand_over(bus, sources, agent=agent)
        outcome = {}
        if wait:
            outcome = await wait_handled(bus, handed, agent=agent, timeout_seconds=timeout_seconds)
    rows: list[dict[str, Any]] = []
    for each in handed:
        state = "handed over" if each.new else "known before"
        if wait:
            state = "read" if outcome[each.id].state == DONE else "dead letter"
        place = {"paper": each.paper.name, "sequence": each.sequence, "new": each.new}
        rows.append({**place, "state": state, "title": each.paper.title})
    columns = {name: name for name in ("paper", "sequence", "state", "title")}
    cli.out.table(rows, columns, nothing="the feeds hold no papers")
    if any(row["state"] == "dead letter" for row in rows):
        cli.out.talk(f"see `stratum dead list {agent}`")
        raise typer.Exit(FAILED)
