"""`stratum send` and `stratum publish`: one event into the log."""

from __future__ import annotations

import contextlib
import sys
from typing import Annotated, Any

import msgspec
import typer
from msgspec.structs import replace

from stratum_bus import blob, subject
from stratum_bus.errors import BusError
from stratum_bus.event import Event, Raw, agent_source, new
from stratum_cli import complete, delivery
from stratum_cli.command import DryRun, command
from stratum_cli.context import Cli
from stratum_cli.failure import Refusal, Usage

_ID_MAX = 256

Type = Annotated[str, typer.Argument(metavar="TYPE", help="The event's type, as in note.ready.")]
Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA|-", help="JSON, or - to read it from stdin; without it there is no data."
    ),
]
Sender = Annotated[str, typer.Option("--from", metavar="NAME", help="Who sends it.")]
Id = Annotated[
    str | None,
    typer.Option(
        "--id",
        metavar="ID",
        show_default=False,
        help="The event's id; the same id again within two minutes is not stored twice.",
    ),
]
About = Annotated[
    str | None,
    typer.Option(
        "--about", metavar="ID", show_default=False, help="What it is about, in your own ids."
    ),
]


def register(app: typer.Typer) -> None:
    command(app)(send)
    command(app)(publish)


async def send(
    cli: Cli,
    to: Annotated[
        str,
        typer.Argument(
            metavar="TO", help="The agent to send it to.", autocompletion=complete.agents
        ),
    ],
    type: Type,
    data: Data = None,
    sender: Sender = "cli",
    id: Id = None,
    about: About = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="RUN", show_default=False, help="The run of TO that waits for it."
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Send a message to an agent's inbox, or to one of its runs.

    Prints the sequence and the id under which it is stored. An agent that never ran finds it when
    it runs for the first time.

    Example: `stratum send research question '{"q": "what is new?"}'`
    """
    torun = None if run is None else subject.token(run, "run id")
    event = replace(_event(type, data, sender, id, about), torun=torun)
    await _store(cli, subject.inbox(to, sender, type), event, dry_run=dry_run, to=to)


async def publish(
    cli: Cli,
    type: Type,
    data: Data = None,
    sender: Sender = "cli",
    id: Id = None,
    about: About = None,
    dry_run: DryRun = False,
) -> None:
    """Publish an event to all agents that follow its type.

    Example: `stratum publish price.changed '{"sku": 7, "cents": 250}'`
    """
    event = _event(type, data, sender, id, about)
    await _store(cli, subject.topic(sender, type), event, dry_run=dry_run)


async def _store(
    cli: Cli, at: str, event: Event[Any], *, dry_run: bool, to: str | None = None
) -> None:
    if dry_run:
        size = len(event.data or b"")
        cli.out.record({"subject": at, "id": event.id, "data_bytes": size, "stored": False})
        return
    async with cli.bus() as bus:
        ack = await bus.publish(at, event)
        place = {"stream": ack.stream, "sequence": ack.sequence, "id": event.id, "subject": at}
        cli.out.record({**place, "duplicate": ack.duplicate})
        if ack.duplicate:
            cli.out.talk(f"an event with this id was stored before, as {ack.stream} {ack.sequence}")
        elif to and to not in cli.config.agents:
            # It is stored: whoever may not look at consumers must not be told of a failure.
            with contextlib.suppress(BusError):
                if not await delivery.receiver(bus, to):
                    cli.out.talk(f"no agent {to} ever ran: the message waits in its inbox")


def _event(
    type: str, data: str | None, sender: str, id: str | None, about: str | None
) -> Event[Any]:
    """The event to store; names are checked before stdin is read."""
    subject.topic(sender, type)
    for option, value in (("--id", id), ("--about", about)):
        if value is not None and not (0 < len(value) <= _ID_MAX and value.isprintable()):
            raise Usage(f"{option} must have 1 to {_ID_MAX} printable characters")
    if id is not None and " " in id:
        raise Usage("--id must not have a space")
    content = _json(data)
    return new(type, content, source=agent_source(sender), id=id, subject=about)


def _json(data: str | None) -> Raw | None:
    """DATA as it will be stored. Raises Usage where it is no JSON, Refusal where it is too large."""
    if data is None:
        return None
    given = _stdin() if data == "-" else data.encode(errors="surrogateescape")
    if len(given) > blob.MAX_BYTES:
        size = "more" if data == "-" else f"{len(given):,} bytes"
        raise Refusal(
            f"DATA has {size}, at most {blob.MAX_BYTES:,} (64 MiB) can be stored: split it, "
            "or keep it in an object store and send its address"
        )
    where = "stdin" if data == "-" else "DATA"
    try:
        given.decode()
        msgspec.json.decode(given)
    except UnicodeDecodeError as error:
        raise Usage(f"{where} is not UTF-8: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Usage(f"{where} is not JSON ({_plain(error)}): {_how_to_write(given)}") from None
    return Raw(given)


def _stdin() -> bytes:
    if sys.stdin is None:
        return b""
    return sys.stdin.buffer.read(blob.MAX_BYTES + 1)


def _plain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error).removeprefix("JSON is malformed: ")


def _how_to_write(given: bytes) -> str:
    text = given.decode().strip()
    if not text:
        return "write null for no data"
    if text[0] in "{[":
        return """put it in single quotes and its names in double quotes, as in '{"q": 1}'"""
    shown = text if len(text) <= 30 and text.isprintable() and "'" not in text else "hello"
    return f"write a text as '\"{shown}\"', with both kinds of quotes"
