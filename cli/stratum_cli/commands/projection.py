"""`stratum projection`: the tables that the projector keeps, and copies of their file."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
import typer

from stratum_bus import subject
from stratum_bus.errors import ConnectionLost, QueryError
from stratum_cli.command import command, group
from stratum_cli.context import Cli
from stratum_cli.failure import NoServer, Refusal

if TYPE_CHECKING:
    from stratum_projections.snapshot import Snapshot


def register(app: typer.Typer) -> None:
    projections = group("projection", "Projections: the tables that the projector keeps.")
    command(projections)(snapshot)
    app.add_typer(projections)


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
