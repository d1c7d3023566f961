"""`stratum replay`: a stretch of a stream once more, printed or published elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, InvalidName, NotFound
from stratum_bus.message import Message
from stratum_bus.read import Reader
from stratum_bus.tasks import task_group
from stratum_cli import events, position, republish
from stratum_cli.command import DryRun, command
from stratum_cli.commands.tail import Filters, Stream
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED, Usage
from stratum_cli.republish import Target

if TYPE_CHECKING:  # Arrow takes a while to load
    from stratum_projections.lake.read import Reading

_BATCH = 500
_SPEED_MIN, _SPEED_MAX = 0.001, 1_000_000.0


def register(app: typer.Typer) -> None:
    command(app)(replay)


async def replay(
    cli: Cli,
    stream: Stream = "LOG",
    *,
    start: Annotated[
        str, typer.Option("--from", metavar="WHERE", help=f"Begin there: {position.FORMS}.")
    ],
    end: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="WHERE",
            show_default=False,
            help="End there, it included; without it at what is stored now.",
        ),
    ] = None,
    filters: Filters = None,
    speed: Annotated[
        str,
        typer.Option(
            "--speed", metavar="SPEED", help="1x keeps the pauses, 10x shortens them, max has none."
        ),
    ] = "max",
    to_subject: Annotated[
        str | None,
        typer.Option(
            "--to-subject",
            metavar="SUBJECT",
            show_default=False,
            help="Publish below this subject: topic.NAME, one agent's inbox.NAME, or yours.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Show a stretch of a stream again, or publish it again under another subject.

    Published again, an event gets a new id and names the original as its cause: below `topic.x` it
    keeps its whole former subject, in `inbox.x` its sender and type. A target that what is replayed
    would match is refused, and what cannot be read is named and left out (exit code 1).

    Example: `stratum replay --from 2h --filter 'inbox.research.>' --to-subject inbox.research2`
    """
    events.stream_name(stream)
    wanted = events.check_filters(filters or [])
    begin = position.parse(start, "--from")
    stop = position.parse(end, "--to") if end is not None else None
    factor = _speed(speed)
    async with cli.bus() as bus, task_group() as tasks:
        tasks.start_soon(cli.out.until_closed)
        try:
            to = await _target(bus, stream, wanted, to_subject)
            until = stop if isinstance(stop, int) else None
            async with _reading(cli, bus, stream, wanted, begin, until) as reader:
                stretch = _until(_batches(reader, factor), stop)
                if to is None:
                    await _show(cli, stretch)
                else:
                    await _publish(cli, bus, to, stretch, dry_run=dry_run)
        except NotFound as error:
            raise await events.no_stream(bus, error) from None
        tasks.cancel_scope.cancel()


def _reading(
    cli: Cli,
    bus: Bus,
    stream: str,
    filters: Sequence[str],
    start: position.Position,
    end: int | None,
) -> AbstractAsyncContextManager[Reader | Reading]:
    """Of the stream, and of the lake where that holds what the stream holds no more."""
    lake = cli.config.lake
    if not lake.path or stream not in lake.streams:
        return bus.read(stream, filters=filters, start=start, end=end)
    from stratum_projections.lake.read import read

    return read(bus, lake.path, stream, filters=filters, start=start, end=end)


async def _target(
    bus: Bus, stream: str, filters: Sequence[str], to_subject: str | None
) -> Target | None:
    if to_subject is None:
        return None
    info = await bus.connection.api(f"STREAM.INFO.{stream}")
    return republish.target(to_subject, filters or info["config"].get("subjects") or [">"])


async def _batches(reader: Reader | Reading, speed: float | None) -> AsyncIterator[list[Message]]:
    """What is read, in batches; at a speed each message for itself, when it is due."""
    began, first_ns = anyio.current_time(), 0
    while batch := await reader.batch(_BATCH, None, gather=False):
        if speed is None:
            yield batch
            continue
        for message in batch:
            first_ns = first_ns or message.time_ns
            due = began + (message.time_ns - first_ns) / 1e9 / speed
            await anyio.sleep(max(0.0, due - anyio.current_time()))
            yield [message]


async def _until(
    batches: AsyncIterator[list[Message]], stop: position.Position | None
) -> AsyncIterator[list[Message]]:
    async for batch in batches:
        if isinstance(stop, datetime) and batch[-1].time > stop:
            yield [message for message in batch if message.time <= stop]
            return
        yield batch


async def _show(cli: Cli, stretch: AsyncIterator[list[Message]]) -> None:
    async for batch in stretch:
        for message in batch:
            if cli.out.json:
                cli.out.object(events.row(message))
            else:
                cli.out.line(events.line(message))


async def _publish(
    cli: Cli, bus: Bus, to: Target, stretch: AsyncIterator[list[Message]], *, dry_run: bool
) -> None:
    published = left_out = 0
    async for batch in stretch:
        good = [message for message in batch if _fits(cli, to, message)]
        left_out += len(batch) - len(good)
        published += len(good)
        if not dry_run:
            await republish.publish_all(bus, to, good)
        for message in good if dry_run else ():
            _show_plan(cli, message, to.subject_for(message.subject))
    if dry_run:
        cli.out.talk(f"would publish {published} events, leave out {left_out}")
    else:
        cli.out.record({"to_subject": to.prefix, "published": published, "left_out": left_out})
    if left_out:
        raise typer.Exit(FAILED)


def _show_plan(cli: Cli, message: Message, to: str) -> None:
    if cli.out.json:
        cli.out.object({"sequence": message.sequence, "subject": message.subject, "to": to})
    else:
        cli.out.line(f"{message.sequence:>7}  {message.subject} -> {to}")


def _fits(cli: Cli, to: Target, message: Message) -> bool:
    """Whether the message can be published there; says why where it cannot."""
    try:
        message.event()
        to.subject_for(message.subject)
    except (InvalidEvent, InvalidName) as error:
        cli.out.talk(f"{message.stream} {message.sequence} is left out: {error}")
        return False
    return True


def _speed(text: str) -> float | None:
    """How many times faster than it was stored; None for as fast as can be. Raises Usage."""
    if text == "max":
        return None
    try:
        factor = float(text.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not _SPEED_MIN <= factor <= _SPEED_MAX:
        raise Usage(f"--speed {text!r} is no speed; give max, 1x, 10x, 0.5x …")
    return factor
