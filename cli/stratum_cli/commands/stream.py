"""`stratum stream`: the streams of the server, and whether they are as declared."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stratum_bus.bus import Bus
from stratum_bus.errors import NotFound
from stratum_bus.stream import Change, examine, load_streams, provision
from stratum_cli import complete, events
from stratum_cli.command import DryRun, command, group
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED

_PAGE = 256

StreamName = Annotated[
    str,
    typer.Argument(metavar="STREAM", help="Name of the stream.", autocompletion=complete.streams),
]


def register(app: typer.Typer) -> None:
    streams = group("stream", "Streams: what is stored, and whether it is as declared.")
    command(streams, "list")(list_streams)
    command(streams)(show)
    command(streams, "provision")(provision_streams)
    app.add_typer(streams)


async def list_streams(cli: Cli) -> None:
    """List the server's streams and those that are declared.

    The state is as declared, differs, missing, or not declared (a stream of somebody else's).
    """
    async with cli.bus() as bus:
        infos = await _infos(bus)
        changes = {spec.name: await examine(bus.connection, spec) for spec in load_streams()}
    names = [*changes, *(name for name in sorted(infos) if name not in changes)]
    rows = [
        {
            "stream": name,
            "state": _state(changes[name]) if name in changes else "not declared",
            **_counts(infos.get(name)),
        }
        for name in names
    ]
    columns = ("stream", "state", "messages", "bytes", "first", "last", "consumers", "subjects")
    cli.out.table(rows, {name: name for name in columns})


async def show(cli: Cli, stream: StreamName) -> None:
    """Show a stream: its settings, and where they differ from the declaration."""
    events.stream_name(stream)
    async with cli.bus() as bus:
        spec = next((each for each in load_streams() if each.name == stream), None)
        try:
            info = await bus.connection.api(f"STREAM.INFO.{stream}")
        except NotFound as error:
            raise await events.no_stream(bus, error) from None
        change = await examine(bus.connection, spec) if spec else None
    state = _state(change) if spec else "not declared"
    differences = _differences(change.fields) if change else []
    config = {
        key: value for key, value in info["config"].items() if key not in ("name", "subjects")
    }
    cli.out.record(
        {"stream": stream, "state": state, "differences": differences, **_counts(info), **config}
    )


async def provision_streams(
    cli: Cli,
    force: Annotated[
        list[str] | None,
        typer.Option(
            "--force",
            metavar="NAME",
            show_default=False,
            help="Change this stream even where data or immutability is lost. May be repeated.",
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Create the declared streams, and mend what differs from the declaration.

    A change that could lose data or immutability is refused unless the stream is named with
    `--force`; then nothing at all is changed.
    """
    async with cli.bus() as bus:
        done = await provision(bus.connection, load_streams(), force=force or (), dry_run=dry_run)
    rows = [
        {
            "stream": change.stream,
            "action": change.action,
            "fields": _differences(change.fields),
            "overruled": _differences(change.overruled),
            "done": not dry_run,
        }
        for change in done
    ]
    columns = {"stream": "stream", "action": "action", "fields": "fields", "done": "done"}
    cli.out.table(rows, columns, nothing="every stream is as declared")
    for change in done:
        if change.overruled:
            cli.out.talk(
                f"the server set {change.stream} otherwise than asked: "
                f"{'; '.join(_differences(change.overruled))}"
            )
    if any(change.overruled for change in done):
        raise typer.Exit(FAILED)


async def _infos(bus: Bus) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    while True:
        page = await bus.connection.api("STREAM.LIST", {"offset": len(found)})
        streams = page.get("streams") or []
        found |= {info["config"]["name"]: info for info in streams}
        if len(streams) < _PAGE or len(found) >= page["total"]:
            return found


def _counts(info: dict[str, Any] | None) -> dict[str, Any]:
    if info is None:
        return {}
    state = info["state"]
    return {
        "messages": state["messages"],
        "bytes": state["bytes"],
        "first": state["first_seq"],
        "last": state["last_seq"],
        "consumers": state["consumer_count"],
        "subjects": info["config"].get("subjects", []),
    }


def _state(change: Change | None) -> str:
    if change is None:
        return "as declared"
    return "missing" if change.action == "create" else "differs"


def _differences(fields: dict[str, tuple[object, object]]) -> list[str]:
    return [f"{key}: declared {declared!r}, is {is_!r}" for key, (declared, is_) in fields.items()]
