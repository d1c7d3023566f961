"""`stratum projection`: the tables that the projector keeps, and what is asked of it about them."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
import typer

from stratum_bus import subject
from stratum_bus.config import FILE
from stratum_bus.errors import ConnectionLost, QueryError
from stratum_cli.command import DryRun, command, group
from stratum_cli.commands import quarantine
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED, NoServer, Refusal

if TYPE_CHECKING:  # Arrow takes a while to load, and most commands need none
    from stratum_projections.snapshot import Snapshot

Name = Annotated[str, typer.Argument(metavar="NAME", help="A projection, as in `list`.")]
Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Projections, as in `list`; one or more.")
]
Projector = Annotated[
    str, typer.Option("--projector", metavar="NAME", help="Which projector to ask.")
]


def register(app: typer.Typer) -> None:
    projections = group("projection", "Projections: the tables that the projector keeps.")
    command(projections, "list")(list_projections)
    command(projections)(show)
    command(projections)(lag)
    command(projections)(new)
    command(projections)(rebuild)
    command(projections)(verify)
    command(projections)(pause)
    command(projections)(resume)
    quarantine.register(projections)
    command(projections)(snapshot)
    app.add_typer(projections)


async def list_projections(cli: Cli, projector: Projector = "main") -> None:
    """List the projections: version, tables, how far each is, and how many events it could not take.

    Where no projector runs, the file is read; nobody knows the lag then.

    Example: `stratum projection list`
    """
    from stratum_cli import projections

    subject.token(projector, "projector name")
    rows = await projections.rows(cli, projector)
    columns = ("name", "version", "status", "sequence", "lag_events", "quarantined", "tables")
    shown = {name.replace("_", " "): name for name in columns}
    cli.out.table(rows, {**shown, "status": projections.status}, nothing="no projections")


async def show(cli: Cli, name: Name, projector: Projector = "main") -> None:
    """Show one projection, with the columns of its tables.

    Example: `stratum projection show messages`
    """
    from stratum_cli import projections

    subject.token(projector, "projector name")
    rows = await projections.rows(cli, projector)
    projections.known(rows, [name])
    (row,) = (row for row in rows if row["name"] == name)
    columns = await projections.columns(cli, projector, row["tables"])
    if cli.out.json:
        cli.out.object({**row, "columns": columns})
        return
    tables = {f"table {table}": columns.get(table, []) for table in row.pop("tables")}
    cli.out.record({**projections.brief(row), **tables})


async def lag(cli: Cli, projector: Projector = "main") -> None:
    """Say how far each projection is behind the end of the log, in events and in seconds.

    Example: `stratum projection lag --json`
    """
    from stratum_cli import projections

    subject.token(projector, "projector name")
    names = ("name", "status", "sequence", "lag_events", "lag_seconds")
    rows = [
        {name: row.get(name) for name in names} for row in await projections.rows(cli, projector)
    ]
    shown = {name.replace("_", " "): name for name in names}
    cli.out.table(rows, shown, nothing="no projections")


def new(
    cli: Cli,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of the projection and its table, as in papers.")
    ],
    folder: Annotated[
        str, typer.Option("--folder", metavar="DIR", help="Where the file is written.")
    ] = "views",
    add: Annotated[bool, typer.Option("--add", help="Name it in stratum.toml, too.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Write a projection to begin with, which works, and its test. Nothing is overwritten.

    The projector keeps it when stratum.toml names it and `stratum up` is started anew.

    Example: `stratum projection new papers --add`
    """
    from stratum_projections import skeleton

    settings = Path(cli.options.config or FILE).absolute()
    made = skeleton.skeleton(name, folder, Path(cli.config.folder))
    if there := [path for path in made.texts if path.exists()]:
        raise Refusal(f"{_near(there[0])} is already there, and nothing is overwritten")
    if not dry_run:
        made.write()
        if add:
            skeleton.add(settings, made.entry)
    cli.out.record({"view": _near(made.view), "test": _near(made.test)})
    if add:
        cli.out.talk(f"{'would be ' if dry_run else ''}named in {_near(settings)}")
    else:
        cli.out.talk(f"to have it kept, write into {settings.name} below [projector]:")
        cli.out.talk(skeleton.line(made.entry))


async def rebuild(
    cli: Cli,
    names: Names,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Before, fold the log into tables beside, and say what differs."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when it is done, or when it is begun.")
    ] = True,
    projector: Projector = "main",
    dry_run: DryRun = False,
) -> None:
    """Build projections anew from the log's beginning, while the present tables answer.

    They are swapped in at once when they have caught up. The projector does it: it goes on when
    this command is stopped. A changed version is built so by itself when the projector starts.

    Example: `stratum projection rebuild papers --compare`
    """
    from stratum_cli import rebuilding

    subject.token(projector, "projector name")
    await rebuilding.rebuild(cli, names, projector, compare=compare, wait=wait, dry_run=dry_run)


async def verify(
    cli: Cli,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Only these projections.", show_default=False),
    ] = None,
    projector: Projector = "main",
) -> None:
    """Fold the log anew and compare every table with it, row by row; look for gaps, too.

    The projector goes on meanwhile. Says the first difference of each table, and ends with 1 if
    there is any.

    Example: `stratum projection verify messages`
    """
    from stratum_cli import projections, verdicts

    subject.token(projector, "projector name")
    wanted = list(dict.fromkeys(names or ()))
    if wanted:
        projections.known(await projections.rows(cli, projector), wanted)
    async with cli.bus() as bus:
        verdict = await verdicts.verdict(cli, bus, wanted, projector)
    verdicts.say(cli, verdict)
    if not verdict.ok:
        raise typer.Exit(FAILED)


async def pause(
    cli: Cli, names: Names, projector: Projector = "main", dry_run: DryRun = False
) -> None:
    """Have projections read no further until `stratum projection resume`, also after a restart.

    The others go on. Their tables stay as they are and can be asked.

    Example: `stratum projection pause papers`
    """
    from stratum_cli import rebuilding

    subject.token(projector, "projector name")
    await rebuilding.change(cli, names, projector, "pause", dry_run=dry_run)


async def resume(
    cli: Cli, names: Names, projector: Projector = "main", dry_run: DryRun = False
) -> None:
    """Have paused projections go on from where they stood.

    Example: `stratum projection resume papers`
    """
    from stratum_cli import rebuilding

    subject.token(projector, "projector name")
    await rebuilding.change(cli, names, projector, "resume", dry_run=dry_run)


async def snapshot(
    cli: Cli,
    out: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Put the copy there; without it among the projector's snapshots.",
        ),
    ] = None,
    projector: Annotated[
        str, typer.Option("--projector", metavar="NAME", help="Whose file.")
    ] = "main",
) -> None:
    """Copy the DuckDB file for a notebook: complete, of one moment, free to be opened.

    The running projector makes it, and writes again when it is copied; where none runs, the file is
    copied as it is. Without `-o` the newest three stay in `snapshots/` beside the file.

    Example: `stratum projection snapshot -o today.duckdb`
    """  # fmt: skip
    subject.token(projector, "projector name")
    target = _target(out) if out else None
    made = await _made(cli, projector)
    path = await anyio.to_thread.run_sync(_move, made, target) if target else made.path
    cli.out.record(
        {"file": str(path), "host": made.host, "sequence": made.sequence, "bytes": made.bytes}
    )


async def _made(cli: Cli, projector: str) -> Snapshot:
    """By the projector, or of its file where none runs."""
    from stratum_projections import snapshot as snapshots

    try:
        async with cli.bus() as bus:
            return await snapshots.ask(bus, projector=projector)
    except (NoServer, ConnectionLost) as error:
        silent: Exception = error
    except QueryError as error:
        if error.reason != "no_projector":
            raise
        silent = error
    try:
        return await anyio.to_thread.run_sync(snapshots.of_file, cli.config.projector.path)
    except QueryError as error:
        raise (silent if error.reason == "no_file" else error) from None


def _near(path: Path) -> str:
    """A path as it is shortest to read."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _target(out: str) -> Path:
    path = Path(out).absolute()
    if path.is_dir():
        raise Refusal(f"{out} is a folder: name the file to write")
    return path


def _move(made: Snapshot, to: Path) -> Path:
    """Put the copy where it was asked for, whole or not at all."""
    if made.host != socket.gethostname() or not Path(made.path).exists():
        raise Refusal(
            f"the projector runs on {made.host}: its copy is there, {made.path}; fetch it from there"
        )
    new = to.with_name(f".{to.name}.{os.getpid()}.new")
    try:
        shutil.move(made.path, new)
        new.replace(to)
    except OSError as error:
        new.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise Refusal(f"cannot write {to}: {reason}; the copy is {made.path}") from error
    return to
