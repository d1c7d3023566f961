"""`stratum health`: how everything is, what was wrong, and why something was done."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
import msgspec
import typer

from stratum_bus import subject
from stratum_bus.tasks import task_group
from stratum_cli import complete, delivery, known, position
from stratum_cli.command import callback, command, group
from stratum_cli.commands.inbox import AgentName
from stratum_cli.context import Cli
from stratum_cli.output import Columns, Row, time_text

WATCH_SECONDS = 1.0

Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHERE",
        show_default=False,
        help=f"Only what was so since then: {position.FORMS}.",
    ),
]


def register(app: typer.Typer) -> None:
    health = group("health", "How everything is, what was wrong, and why something was done.")
    callback(health)(show)
    command(health)(incidents)
    command(health)(why)
    app.add_typer(health)


async def show(
    cli: Cli,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every second, until Ctrl-C.")
    ] = False,
) -> None:
    """Show agents and their instances, how they are, and what is wrong now.

    With a verb behind it: what was wrong (`incidents`), and why something was done (`why`).
    """
    async with cli.bus() as bus, task_group() as tasks:
        if watch:
            tasks.start_soon(cli.out.until_closed)
        while True:
            found = await _picture(cli, bus)
            if watch:
                cli.out.clear()
            _show(cli, found)
            if not watch:
                break
            await anyio.sleep(WATCH_SECONDS)
        tasks.cancel_scope.cancel()


async def incidents(
    cli: Cli,
    only_open: Annotated[bool, typer.Option("--open", help="Only what is not over.")] = False,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="AGENT",
            show_default=False,
            help="Only those of this agent.",
            autocompletion=complete.agents,
        ),
    ] = None,
    since: Since = None,
) -> None:
    """List what was found wrong, oldest first, and how it ended."""
    from stratum_projections.health import story

    if agent is not None:
        subject.token(agent, "agent name")
    start = position.parse(since, "--since") if since is not None else 1
    async with cli.bus() as bus:
        found = await story.cases(bus, agent, start)
    rows = [_case(case) for case in found if case.open or not only_open]
    names = ("sequence", "since", "agent", "kind", "severity", "status", "command")
    columns: Columns = {
        **{name: name for name in names},
        "what": lambda row: "; ".join(part for part in (row["text"], row["over"]) if part),
    }
    nothing = "nothing is wrong" if only_open else "nothing was found wrong"
    cli.out.table(rows, columns, nothing=nothing)


async def why(cli: Cli, agent: AgentName, since: Since = None) -> None:
    """Tell the story of an agent: what was seen, what was decided, and what happened.

    Example: `stratum health why research --since 1h`
    """
    from stratum_projections.health import story

    subject.token(agent, "agent name")
    start = position.parse(since, "--since") if since is not None else 1
    async with cli.bus() as bus:
        told = await story.story(bus, agent, start)
        if not told:
            everybody = await delivery.receivers(bus)
            if agent not in known.names(cli, everybody):
                raise known.unknown(cli, agent, everybody)
    rows = [msgspec.to_builtins(each) for each in told]
    columns: Columns = {
        "sequence": "sequence",
        "time": lambda row: _time(row["time"]),
        "what": "what",
        "event": "name",
        "by": "by",
        "story": "text",
    }
    cli.out.table(rows, columns, nothing=f"nothing happened to {agent}")


async def _picture(cli: Cli, bus: Any) -> Any:
    from stratum_projections.health.picture import picture

    return await picture(bus, cli.config.health, list(cli.config.agents))


def _show(cli: Cli, found: Any) -> None:
    columns: Columns = {
        "agent": "agent",
        "instance": "instance",
        "state": "state",
        "beat": lambda row: _seconds(row.get("beat_seconds_ago")),
        "in hand": "in_hand",
        "waits": "pending",
        "restarts": "restarts",
        "memory": lambda row: _mebibytes(row.get("resident_bytes")),
        "incidents": lambda row: ", ".join(row["incidents"]),
    }
    rows = [{name: getattr(row, name) for name in row.__struct_fields__} for row in found.rows]
    cli.out.table(rows, columns, nothing="nothing runs, and nothing is configured")
    if not found.judged:
        cli.out.talk("no health projector runs, so nothing is judged: `stratum up` starts one")
    if cli.out.json:
        return
    for opened in found.open:
        incident = opened.incident
        who = " ".join(part for part in (incident.agent, incident.instance) if part)
        done = f" ({', '.join(opened.given)} was asked for)" if opened.given else ""
        since = time_text(incident.since)
        cli.out.line(f"{who} {incident.kind} since {since}: {incident.text}{done}", shorten=False)


def _case(case: Any) -> Row:
    incident = case.incident
    return {
        "incident": case.id,
        "sequence": case.sequence,
        "kind": incident.kind,
        "agent": incident.agent,
        "instance": incident.instance,
        "about": incident.about,
        "severity": incident.severity,
        "status": incident.status,
        "since": incident.since,
        "until": incident.until,
        "closed_sequence": case.closed_sequence or None,
        "command": incident.command,
        "text": incident.text,
        "over": incident.over,
        "evidence": incident.evidence,
    }


def _time(text: str) -> str:
    """Times of a story are close together: the day is of no interest."""
    return text.partition("T")[2][:12]


def _seconds(value: float | None) -> str:
    return f"{value:.1f} s ago" if value is not None else ""


def _mebibytes(value: int | None) -> str:
    return f"{value >> 20} MiB" if value else ""
