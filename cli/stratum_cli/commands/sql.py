"""`stratum sql`: a query on the projections."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from stratum_bus import subject
from stratum_cli.command import command
from stratum_cli.context import Cli
from stratum_cli.failure import Usage


class Format(StrEnum):
    table = "table"
    json = "json"
    csv = "csv"


def register(app: typer.Typer) -> None:
    command(app)(sql)


async def sql(
    cli: Cli,
    query: Annotated[
        str,
        typer.Argument(metavar="QUERY", help="One SELECT in DuckDB's SQL; - reads it from stdin."),
    ],
    format: Annotated[
        Format | None,
        typer.Option("--format", metavar="FORMAT", show_default=False, help="table, json or csv."),
    ] = None,
    limit: Annotated[
        int,
        typer.Option("--limit", metavar="ROWS", min=1, help="Refuse an answer with more rows."),
    ] = 100_000,
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
    """
    from stratum_cli import answers

    subject.token(projector, "projector name")
    text = _stdin() if query == "-" else query
    if not text.strip():
        raise Usage("the query is empty")
    found, who = await answers.answer(
        cli,
        text,
        projector=projector,
        wait_for=wait_for,
        timeout_seconds=timeout_seconds,
        max_rows=limit,
    )
    wanted = format or (Format.json if cli.out.json else Format.table)
    if wanted is Format.csv:
        cli.out.raw(answers.as_csv(found.table))
    elif wanted is Format.json:
        for row in answers.objects(found.table):
            cli.out.object(row)
    else:
        rows = list(answers.objects(found.table))
        names = {name: name for name in (rows[0] if rows else ())}
        cli.out.table(rows, names, nothing="no rows")
    cli.out.talk(f"as of LOG {found.sequence}, from {who}")


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode() if sys.stdin else ""
    except UnicodeDecodeError as error:
        raise Usage(f"the query is not UTF-8: {error}") from None
