"""`stratum projection quarantine`: events that a projection could not take, and trying them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stratum_bus import subject
from stratum_bus.errors import NotFound
from stratum_cli.command import DryRun, command, group
from stratum_cli.commands.inbox import Limit
from stratum_cli.context import Cli

if TYPE_CHECKING:
    from stratum_projections.quarantine import Parked

Projector = Annotated[
    str, typer.Option("--projector", metavar="NAME", help="Which projector to ask.")
]


def register(projections: typer.Typer) -> None:
    quarantine = group("quarantine", "Quarantine: events kept from projections, and why.")
    command(quarantine, "list")(list_parked)
    command(quarantine)(show)
    command(quarantine)(retry)
    projections.add_typer(quarantine)


async def list_parked(
    cli: Cli,
    of: Annotated[
        list[str] | None,
        typer.Option(
            "--projection",
            metavar="NAME",
            show_default=False,
            help="Only what was kept from this projection. May be repeated.",
        ),
    ] = None,
    limit: Limit = 50,
    projector: Projector = "main",
) -> None:
    """List quarantined events, by sequence: kept from which projection, and why.

    One that is no event at all is kept from every projection, and has no name there.

    Example: `stratum projection quarantine list --projection memory`
    """  # fmt: skip
    rows = [_row(each) for each in await _parked(cli, projector, of=of or (), limit=limit)]
    columns = ("sequence", "projection", "reason", "subject", "detail")
    cli.out.table(rows, {name: name for name in columns}, nothing="nothing is quarantined")


async def show(
    cli: Cli,
    sequence: Annotated[
        int, typer.Argument(metavar="SEQ", min=1, help="The sequence of the event in the log.")
    ],
    projector: Projector = "main",
) -> None:
    """Show a quarantined event: what was stored, and why it was kept from which projection.

    Example: `stratum projection quarantine show 17`
    """
    found = await _parked(cli, projector, sequence=sequence, limit=1000)
    if not found:
        raise NotFound("quarantined event", f"LOG {sequence}: see `projection quarantine list`")
    first = found[0]
    payload: Any = first.text if first.text is not None else first.payload
    reasons = [{k: _row(each)[k] for k in ("projection", "reason", "detail")} for each in found]
    cli.out.record(
        {
            "sequence": first.sequence, "stream": first.stream, "subject": first.subject,
            "time": first.time, "kept_from": reasons, "payload": payload,
        }
    )  # fmt: skip


async def retry(
    cli: Cli,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...",
            show_default=False,
            help="Projections; without any all from which something is kept.",
        ),
    ] = None,
    projector: Projector = "main",
    dry_run: DryRun = False,
) -> None:
    """Try quarantined events again, each at its place in the order of the log.

    The projections are built anew for that, while the present tables answer. Says what became of
    each event.

    Example: `stratum projection quarantine retry memory`
    """  # fmt: skip
    from stratum_cli import projections
    from stratum_projections import manage, quarantine

    subject.token(projector, "projector name")
    wanted = list(dict.fromkeys(names or ()))
    async with cli.bus() as bus:
        projections.known(await manage.states(bus, projector), wanted)
        if dry_run:
            for parked in await quarantine.parked(
                bus, projector=projector, projections=wanted, limit=100_000
            ):
                _say(cli, parked, None, "")
            return
        for each in await quarantine.retry(bus, wanted, projector):
            _say(cli, each.parked, each.released, each.detail)


async def _parked(
    cli: Cli, projector: str, *, of: Any = (), limit: int, sequence: int | None = None
) -> list[Parked]:
    from stratum_cli import projections
    from stratum_projections import quarantine

    subject.token(projector, "projector name")
    if of:
        projections.known(await projections.rows(cli, projector), of)
    asked: dict[str, Any] = {"sequence": sequence, "projections": of, "limit": limit}
    return await projections.by_projector_or_file(
        cli,
        lambda bus: quarantine.parked(bus, projector=projector, **asked),
        lambda path: quarantine.parked_of_file(path, **asked),
    )


def _row(parked: Parked) -> dict[str, Any]:
    names = ("sequence", "stream", "subject", "projection", "reason", "detail", "time")
    return {name: getattr(parked, name) for name in names}


def _say(cli: Cli, parked: Parked, released: bool | None, detail: str) -> None:
    """What became of one; `released` None: it would be tried."""
    row = {**_row(parked), "retried": released is not None, "released": released}
    if cli.out.json:
        cli.out.object({**row, "detail": detail or parked.detail})
        return
    of = parked.projection or "all projections"
    what = {None: "would be tried again", True: "released"}.get(
        released, f"still quarantined: {detail}"
    )
    cli.out.line(f"{parked.stream} {parked.sequence} of {of}: {what}")
