"""`stratum contract`: what participants in any language can rely on, and what may change in it."""

from __future__ import annotations

from typing import Annotated

import typer

from stratum_cli.command import DryRun, command, group
from stratum_cli.context import Cli

Shipped = Annotated[
    bool,
    typer.Option("--shipped", help="Only what Stratum itself declares, without stratum.toml."),
]
Folder = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        show_default=False,
        help="Write files into this folder instead of printing.",
    ),
]
RecordFolder = Annotated[
    str | None,
    typer.Option(
        "--record",
        metavar="FOLDER",
        show_default=False,
        help="The record; without it `contract` beside stratum.toml.",
    ),
]


def register(app: typer.Typer) -> None:
    nouns = group(
        "contract", "Contracts: schemas, subjects and AsyncAPI, and what changed in them."
    )
    for each in (asyncapi, jsonschema, subjects, record, diff, check):
        command(nouns)(each)
    app.add_typer(nouns)


def asyncapi(cli: Cli, out: Folder = None, shipped: Shipped = False) -> None:
    """Generate the AsyncAPI 3 document, with the agents of stratum.toml.

    Written as `asyncapi.json`. Channels are the grammar of subjects, messages the event types.

    Example: `stratum contract asyncapi -o docs/contract`
    """
    from stratum_cli import contracts

    contracts.asyncapi(cli, out, shipped)


def jsonschema(
    cli: Cli,
    type: Annotated[
        str | None,
        typer.Argument(metavar="TYPE", show_default=False, help="Only the data of this type."),
    ] = None,
    out: Folder = None,
    shipped: Shipped = False,
) -> None:
    """Generate the JSON Schemas (2020-12) of the envelope and of the data of every event type.

    Printed they are one document that any event can be validated with. Written they are
    `schemas/envelope.json`, `schemas/event.json` and `schemas/TYPE.VERSION.json`; files of older
    versions stay, and one that no longer agrees with its type is refused as by `record`.

    Example: `stratum contract jsonschema paper.published`
    """
    from stratum_cli import contracts

    contracts.jsonschema(cli, type, out, shipped)


def subjects(cli: Cli, out: Folder = None, shipped: Shipped = False) -> None:
    """Generate the grammar of subjects: roles, tokens, streams, and the event types on each.

    Printed as Markdown, or with `--json` as data; written as `subjects.md` and `subjects.json`.

    Example: `stratum contract subjects --json`
    """
    from stratum_cli import contracts

    contracts.subjects(cli, out, shipped)


def record(
    cli: Cli, folder: RecordFolder = None, shipped: Shipped = False, dry_run: DryRun = False
) -> None:
    """Record the schemas of the project's event types, to be committed.

    A type that data of a recorded version does not fit is refused: it needs a new version and an
    upcaster.

    Example: `stratum contract record`
    """
    from stratum_cli import contracts

    contracts.write_record(cli, folder, shipped, dry_run=dry_run)


def diff(cli: Cli, folder: RecordFolder = None, shipped: Shipped = False) -> None:
    """Show how the declared event types differ from the recorded ones.

    Exit code 1 where data of a recorded version does not fit, and no upcaster leads on from it.

    Example: `stratum contract diff --json`
    """
    from stratum_cli import contracts

    contracts.diff(cli, folder, shipped)


def check(cli: Cli, folder: RecordFolder = None, shipped: Shipped = False) -> None:
    """Fail where the record is not what is declared: for CI.

    Exit code 1 where `diff` has it, and where a type is not recorded as it is.

    Example: `stratum contract check`
    """
    from stratum_cli import contracts

    contracts.check(cli, folder, shipped)
