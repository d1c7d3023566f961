"""`stratum run`: the runs of agents, what happened in them, and what is asked of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stratum_cli import complete
from stratum_cli.command import DryRun, command, group
from stratum_cli.commands.inbox import Limit
from stratum_cli.context import Cli


class State(StrEnum):
    running = "running"
    waiting = "waiting"
    paused = "paused"
    parked = "parked"
    damaged = "damaged"
    completed = "completed"
    failed = "failed"
    cancelled = "cancelled"
    continued = "continued"
    all = "all"


RunId = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of the run, as `run list` shows it; `last` is the one that changed last.",
    ),
]
OfAgent = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="AGENT",
        show_default=False,
        help="The agent that it is a run of; else it is looked for among all.",
        autocompletion=complete.agents,
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; it is kept.")
]


def register(app: typer.Typer) -> None:
    runs = group("run", "Runs: which there are, what happened in one, and what is asked of it.")
    command(runs, "list")(list_runs)
    command(runs)(show)
    command(runs)(tail)
    command(runs)(cancel)
    command(runs)(pause)
    command(runs)(resume)
    command(runs)(replay)
    command(runs)(fork)
    command(runs)(export)
    app.add_typer(runs)


async def list_runs(
    cli: Cli,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent",
            metavar="AGENT",
            show_default=False,
            help="Only the runs of this agent.",
            autocompletion=complete.agents,
        ),
    ] = None,
    state: Annotated[
        State, typer.Option("--state", metavar="STATE", help=f"{', '.join(State)}.")
    ] = State.all,
    limit: Limit = 50,
) -> None:
    """List runs in the order they began.

    Example: `stratum run list --agent research --state waiting`
    """
    from stratum_cli import runs

    await runs.list_runs(cli, agent, state.value, limit)


async def show(cli: Cli, run: RunId, agent: OfAgent = None) -> None:
    """Show what happened in a run: its steps with their attempts, waits, messages and errors.

    With --json it is one object, with every journal entry as it is stored.
    """
    from stratum_cli import runs

    await runs.show(cli, run, agent)


async def tail(cli: Cli, run: RunId, agent: OfAgent = None) -> None:
    """Show the journal of a run from its start and as it grows, until the run ends or Ctrl-C."""
    from stratum_cli import runs

    await runs.tail(cli, run, agent)


async def cancel(
    cli: Cli, run: RunId, agent: OfAgent = None, reason: Reason = "", dry_run: DryRun = False
) -> None:
    """Ask a run to stop: it undoes what it has to, cancels the runs it spawned, and ends."""
    from stratum_cli import runs

    await runs.ask(cli, run, agent, "cancel", reason, dry_run)


async def pause(
    cli: Cli, run: RunId, agent: OfAgent = None, reason: Reason = "", dry_run: DryRun = False
) -> None:
    """Ask a run to do nothing more until `stratum run resume`. The step in hand is finished."""
    from stratum_cli import runs

    await runs.ask(cli, run, agent, "pause", reason, dry_run)


async def resume(
    cli: Cli, run: RunId, agent: OfAgent = None, reason: Reason = "", dry_run: DryRun = False
) -> None:
    """Have a run that was paused or parked go on."""
    from stratum_cli import runs

    await runs.ask(cli, run, agent, "resume", reason, dry_run)


async def replay(cli: Cli, run: RunId, agent: OfAgent = None) -> None:
    """Replay today's code of stratum.toml against the journal of a run, and say where they differ.

    Nothing is sent and no step is done again. The exit code is 1 where they differ.
    """
    from stratum_cli import runs

    await runs.replay(cli, run, agent)


async def fork(
    cli: Cli,
    run: RunId,
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="K",
            show_default=False,
            help="The first position, or the name of the first step, that is done anew; "
            "`end` keeps all that a run which has ended did.",
        ),
    ],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=JSON",
            show_default=False,
            help="Another result for a step before that, by position or name. May be repeated.",
        ),
    ] = None,
    agent: OfAgent = None,
    dry_run: DryRun = False,
) -> None:
    """Make a new run that shares what a run did before position K, and does the rest live.

    Prints the id of the new run.

    Example: `stratum run fork rmvr2k7… --at pay --set price=42`
    """
    from stratum_cli import runs

    await runs.fork(cli, run, at, sets or [], agent, dry_run)


async def export(
    cli: Cli,
    run: RunId,
    agent: OfAgent = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", show_default=False, help="Write it there."),
    ] = None,
) -> None:
    """Write a run as a recording: a file that a test can replay without a server.

    Example: `stratum run export rmvr2k7… -o tests/recordings/order.jsonl`
    """
    from stratum_cli import runs

    await runs.export(cli, run, agent, output)
