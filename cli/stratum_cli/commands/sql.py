"""`stratum sql`: a query on the projections."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
import typer

from stratum_bus import subject
from stratum_cli.command import command
from stratum_cli.context import Cli
from stratum_cli.failure import Usage

if TYPE_CHECKING:
    from stratum_cli.answers import Found
    from stratum_cli.formats import Format

FORMATS = "table, json, csv, arrow or parquet"
LIMIT_ROWS = 100_000
_FILE_ROWS = 1_000_000_000
"""Of an answer that goes to a file, where no limit is given: the projector's own limit holds."""


def register(app: typer.Typer) -> None:
    command(app)(sql)


async def sql(
    cli: Cli,
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="One SELECT in DuckDB's SQL; - reads it from stdin."),
    ],
    format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", show_default=False, help=f"{FORMATS}."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Write to a file as rows come; its suffix names the format.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="ROWS",
            min=1,
            show_default=False,
            help="Refuse an answer with more rows; 100000 where it is not given, none with -o.",
        ),
    ] = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            "--as-of",
            metavar="TIME|SEQ",
            show_default=False,
            help="Answer from the log up to then: a sequence, a time (UTC if it names no zone), or "
            "how long ago, as in -2h.",
        ),
    ] = None,
    wait_for: Annotated[
        int | None,
        typer.Option(
            "--wait-for",
            metavar="SEQ",
            min=1,
            show_default=False,
            help="Wait until the tables reflect this sequence of the log.",
        ),
    ] = None,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.01, help="How long it may take.")
    ] = 10.0,
    projector: Annotated[
        str, typer.Option("--projector", metavar="NAME", help="Which projector to ask.")
    ] = "main",
) -> None:
    """Ask the projections: events, messages, memory, agents, dead_letters, quarantine and others.

    The running projector answers, else its file is read. Which sequence of the log the answer
    reflects is said on stderr. `select table_name from information_schema.tables` lists the tables.

    Example: `stratum sql 'select about, score, text from memory order by score desc limit 10'`

    Example: `stratum sql 'from events' -o events.parquet`

    Example: `stratum sql --as-of 2026-11-01T12:00Z 'select count(*) from messages'`
    """
    from stratum_cli import answers

    subject.token(projector, "projector name")
    if as_of is not None and wait_for is not None:
        raise Usage("--as-of and --wait-for exclude each other: a moment of the log is there")
    wanted = _wanted(cli, format, output)
    text = _stdin() if query == "-" else query
    if not text.strip():
        raise Usage("the query is empty")
    rows = limit or (LIMIT_ROWS if output is None else _FILE_ROWS)
    asked = answers.Question(text, projector, wait_for, timeout_seconds, rows)
    if as_of is None:
        answering = answers.now(cli, asked)
    else:
        at, zoned = answers.moment_of(as_of)
        if not zoned:
            cli.out.talk(f"{as_of} is taken to be in UTC")
        answering = answers.then(cli, asked, at)
    async with answering as found:
        where = f"as of LOG {found.sequence}, from {found.who}"
        if output is not None:
            count = await _to_file(found, wanted, output)
            cli.out.talk(f"{count:,} rows in {output}, {where}")
            return
        await _to_stdout(cli, found, wanted)
        cli.out.talk(where)


def _wanted(cli: Cli, given: str | None, output: Path | None) -> Format:
    """The format, from what was said or from the file's suffix."""
    from stratum_cli.formats import BINARY, SUFFIXES, Format

    if given is not None:
        if given not in list(Format):
            raise Usage(f"--format {given!r} is unknown: it is {FORMATS}")
        wanted = Format(given)
    elif output is not None:
        suffix = output.suffix.lower()
        if suffix not in SUFFIXES:
            said = f"ends in {suffix}, which" if suffix else "has no suffix, which"
            raise Usage(
                f"{output} {said} names no format: add --format json, csv, arrow or parquet"
            )
        wanted = SUFFIXES[suffix]
    else:
        wanted = Format.json if cli.out.json else Format.table
    if output is not None and wanted is Format.table:
        raise Usage("a table is for reading: give -o json, csv, arrow or parquet as --format")
    if output is None and wanted in BINARY and cli.out.terminal:
        raise Usage(f"{wanted} is not for a terminal: name a file with -o, or lead stdout into one")
    return wanted


async def _to_file(found: Found, wanted: Format, path: Path) -> int:
    """Write all rows; returns how many."""
    from stratum_cli.formats import new_file, writing

    count = 0
    with new_file(path) as file, writing(wanted, file, found.schema, is_file=True) as writer:
        async for batch in found.batches:
            await anyio.to_thread.run_sync(writer.write, batch)
            count += batch.num_rows
    return count


async def _to_stdout(cli: Cli, found: Found, wanted: Format) -> None:
    from stratum_cli.formats import Format, Stdout, writing
    from stratum_projections.rows import names, objects

    if wanted is Format.table:
        rows = [row async for batch in found.batches for row in objects(batch)]
        cli.out.table(rows, {name: name for name in names(found.schema)}, nothing="no rows")
        return
    out = Stdout(cli.out, wanted)
    with writing(wanted, out, found.schema, is_file=wanted is Format.parquet) as writer:
        async for batch in found.batches:
            writer.write(batch)


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise Usage(f"the query is not UTF-8: {error}") from None
