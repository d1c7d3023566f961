"""`stratum tail`: a stream as it grows."""

from __future__ import annotations

from typing import Annotated

import typer

from stratum_bus.bus import Bus
from stratum_bus.errors import NotFound, PermissionDenied
from stratum_bus.tasks import task_group
from stratum_cli import complete, events, position
from stratum_cli.command import command
from stratum_cli.context import Cli

Stream = Annotated[
    str,
    typer.Argument(metavar="STREAM", help="The stream to read.", autocompletion=complete.streams),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="SUBJECT",
        show_default=False,
        help="Only these subjects; `*` stands for one token, `>` for the rest. May be repeated.",
    ),
]


def register(app: typer.Typer) -> None:
    command(app)(tail)


async def tail(
    cli: Cli,
    stream: Stream = "LOG",
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="WHERE",
            show_default=False,
            help=f"Begin there instead of now: {position.FORMS}.",
        ),
    ] = None,
    filters: Filters = None,
    count: Annotated[
        int | None,
        typer.Option(
            "--count", "-n", metavar="N", min=1, show_default=False, help="End after N events."
        ),
    ] = None,
) -> None:
    """Show events as they are stored, until Ctrl-C.

    What cannot be read as an event is shown too, with the reason. A server that goes away is
    waited for, and nothing is missed.

    Example: `stratum tail --from 10m --filter 'inbox.research.>'`
    """
    events.stream_name(stream)
    wanted = events.check_filters(filters or [])
    begin = position.parse(start, "--from") if start is not None else None
    async with cli.bus() as bus, task_group() as tasks:
        tasks.start_soon(cli.out.until_closed)
        forget = bus.connection.on_change(lambda denied: _say(cli, bus, denied))
        try:
            await _follow(cli, bus, stream, wanted, begin, count)
        except NotFound as error:
            raise await events.no_stream(bus, error) from None
        finally:
            forget()
        tasks.cancel_scope.cancel()


async def _follow(
    cli: Cli,
    bus: Bus,
    stream: str,
    filters: list[str],
    begin: position.Position | None,
    count: int | None,
) -> None:
    shown = 0
    async with bus.read(stream, filters=filters, start=begin, follow=True) as reader:
        async for message in reader:
            if cli.out.json:
                cli.out.object(events.row(message))
            else:
                cli.out.line(events.line(message))
            shown += 1
            if shown == count:
                return


def _say(cli: Cli, bus: Bus, denied: PermissionDenied | None) -> None:
    if denied is None and not bus.connection.closed:
        state = "is back" if bus.connection.connected else "went away; waiting for it"
        cli.out.talk(f"the server {state}")
