"""`stratum lake`: the stored events as Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
import typer

from stratum_bus.errors import NotFound
from stratum_cli import complete, events
from stratum_cli.command import DryRun, command, group
from stratum_cli.context import Cli
from stratum_cli.failure import FAILED, Usage

if TYPE_CHECKING:  # Arrow takes a while to load, and most commands need none
    from stratum_projections.lake.segment import Folder, Segment

Lake = Annotated[
    str | None,
    typer.Option(
        "--path", metavar="DIR", show_default=False, help="The lake, instead of `lake.path`."
    ),
]
Streams = Annotated[
    list[str] | None,
    typer.Option(
        "--stream",
        metavar="STREAM",
        show_default=False,
        help="Only this stream, instead of `lake.streams`. May be repeated.",
        autocompletion=complete.streams,
    ),
]


def register(app: typer.Typer) -> None:
    lake = group("lake", "The lake: stored events as Parquet files, for other tools and for ever.")
    command(lake)(export)
    command(lake, "list")(list_segments)
    command(lake)(compact)
    command(lake)(verify)
    app.add_typer(lake)


async def export(
    cli: Cli, path: Lake = None, streams: Streams = None, dry_run: DryRun = False
) -> None:
    """Write what the lake lacks of what the streams hold now, and say which files that gave.

    Each stored message is in the lake once, however often this is run or stopped. A projector with
    `lake.path` in stratum.toml does the same continuously.

    Example: `stratum lake export --path /data/lake`
    """
    from stratum_projections.lake.export import exporter, plan

    rows: list[dict[str, Any]] = []
    async with cli.bus() as bus:
        for folder in _folders(cli, path, streams):
            try:
                if dry_run:
                    todo = (await plan(bus, folder)).ranges
                    rows += [_range(folder, first, last) for first, last in todo]
                    continue
                size = cli.config.lake.segment_events
                async with exporter(bus, folder, segment_events=size) as ours:
                    written = await ours.export()
                rows += [_segment(folder, segment) for segment in written]
                await _delta(cli, folder)
            except NotFound as error:
                raise await events.no_stream(bus, error) from None
    columns = ("stream", "first", "last") if dry_run else _COLUMNS
    _table(cli, rows, columns, "the lake holds all of it")


async def list_segments(cli: Cli, path: Lake = None, streams: Streams = None) -> None:
    """List the lake's files: whose events, from which to which, of which day.

    A file is replaced when a compaction has put its events into another one, until it is removed,
    and foreign when its name is none that Stratum gives.
    """
    rows = await anyio.to_thread.run_sync(
        lambda: [row for folder in _folders(cli, path, streams) for row in _listing(folder)]
    )
    _table(cli, rows, _COLUMNS, "the lake is empty")


async def compact(
    cli: Cli, path: Lake = None, streams: Streams = None, dry_run: DryRun = False
) -> None:
    """Put the small files of each day that is over together, and those of the latest if many.

    A file that was replaced is removed by a later compaction, at least a minute after: somebody
    may just be reading it. A projector with `lake.path` does the same by itself.
    """
    from stratum_projections.lake import compact as compacting

    rows: list[dict[str, Any]] = []
    for folder in _folders(cli, path, streams):
        if dry_run:
            listing = await anyio.to_thread.run_sync(folder.listing)
            for parts in compacting.compactable(folder, listing):
                first, last = parts[0].first, parts[-1].last
                rows.append({**_range(folder, first, last), "replaced": len(parts)})
        elif folder.root.is_dir():
            done = await anyio.to_thread.run_sync(compacting.compact, folder)
            rows += [{**_segment(folder, each.whole), "replaced": len(each.parts)} for each in done]
            await _delta(cli, folder, compact=True)
    columns = ("stream", "first", "last") if dry_run else _COLUMNS
    _table(cli, rows, (*columns, "replaced"), "no day has files to put together")


async def verify(cli: Cli, path: Lake = None, streams: Streams = None) -> None:
    """Look at every file and every row, and compare with the stream what that still holds.

    Prints what is wrong, and ends with 1 if anything is. Takes as long as reading the stream.
    """
    from stratum_projections.lake.verify import Finding
    from stratum_projections.lake.verify import verify as verified

    rows: list[dict[str, Any]] = []
    async with cli.bus() as bus:
        for folder in _folders(cli, path, streams):
            try:
                found = await verified(bus, folder)
            except NotFound as error:
                raise await events.no_stream(bus, error) from None
            wrong: list[Finding] = found.findings
            rows += [{"kind": f.kind, "where": f.where, "what": f.what} for f in wrong]
            cli.out.talk(
                f"{folder.stream}: {found.events:,} events in {found.segments} files, "
                f"{found.compared:,} compared with the stream"
            )
    _table(cli, rows, ("kind", "where", "what"), "all is as it should be")
    if rows:
        raise typer.Exit(FAILED)


_COLUMNS = ("stream", "date", "first", "last", "events", "bytes", "state", "file")


def _folders(cli: Cli, path: str | None, streams: list[str] | None) -> list[Folder]:
    from stratum_projections.lake.segment import Folder

    lake = str(Path(path).absolute()) if path else cli.config.lake.path
    if not lake:
        raise Usage("which lake? Set `path` in [lake] of stratum.toml, or give --path DIR")
    names = list(dict.fromkeys(streams or cli.config.lake.streams))
    for name in names:
        events.stream_name(name)
    return [Folder(lake, name) for name in names]


async def _delta(cli: Cli, folder: Folder, *, compact: bool = False) -> None:
    """Let the Delta table follow, where stratum.toml names one for this lake."""
    config = cli.config.lake
    if not config.delta or str(folder.lake) != config.path:
        return
    from stratum_projections.lake.delta import Delta

    def follow() -> None:
        table = Delta(config.delta, folder)
        table.follow()
        if compact:
            table.compact()

    await anyio.to_thread.run_sync(follow)


def _listing(folder: Folder) -> Iterator[dict[str, Any]]:
    listing = folder.listing()
    for segment in sorted([*listing.segments, *listing.replaced]):
        yield _segment(folder, segment, "replaced" if segment in listing.replaced else "")
    for path in listing.foreign:
        place = str(path.relative_to(folder.lake))
        yield {"stream": folder.stream, "state": "foreign", "file": place}


def _segment(folder: Folder, segment: Segment, state: str = "") -> dict[str, Any]:
    from stratum_bus.errors import LakeError
    from stratum_projections.lake.segment import opened

    try:
        with opened(segment.path) as file:
            rows = file.metadata.num_rows
    except (LakeError, FileNotFoundError):
        rows, state = None, "damaged"
    return {
        **_range(folder, segment.first, segment.last),
        "date": segment.day.isoformat(),
        "events": rows,
        "bytes": segment.path.stat().st_size if segment.path.exists() else None,
        "state": state or "whole",
        "file": str(segment.path.relative_to(folder.lake)),
    }


def _range(folder: Folder, first: int, last: int) -> dict[str, Any]:
    return {"stream": folder.stream, "first": first, "last": last}


def _table(cli: Cli, rows: list[dict[str, Any]], columns: tuple[str, ...], nothing: str) -> None:
    cli.out.table(rows, {name: name for name in columns}, nothing=nothing)
