"""`stratum dead`: what could not be handled, and what is decided about it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.dead import Letter
from stratum_bus.errors import InvalidEvent, NotFound
from stratum_cli import delivery, events, known
from stratum_cli.command import DryRun, command, group
from stratum_cli.context import Cli
from stratum_cli.failure import Refusal, Usage
from stratum_cli.output import time_text


class State(StrEnum):
    open = dead.OPEN
    redriven = dead.REDRIVEN
    dropped = dead.DROPPED
    all = "all"


LetterIds = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="LETTER...", help="Ids of dead letters, or sequences of them or of the originals."
    ),
]
OfAgent = Annotated[
    str | None,
    typer.Option(
        "--all-of", metavar="AGENT", show_default=False, help="All open letters of this agent."
    ),
]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; it is kept.")
]


def register(app: typer.Typer) -> None:
    letters = group("dead", "Dead letters: what could not be handled, and what becomes of it.")
    command(letters, "list")(list_letters)
    command(letters)(show)
    command(letters)(redrive)
    command(letters)(drop)
    app.add_typer(letters)


async def list_letters(
    cli: Cli,
    agent: Annotated[
        str | None, typer.Argument(metavar="AGENT", help="Only the letters of this agent.")
    ] = None,
    state: Annotated[
        State, typer.Option("--state", metavar="STATE", help="open, redriven, dropped or all.")
    ] = State.open,
) -> None:
    """List dead letters, oldest first; those that nothing was decided about, unless told otherwise."""
    if agent is not None:
        subject.token(agent, "agent name")
    async with cli.bus() as bus:
        letters = await dead.letters(bus, agent)
        if agent is not None and not letters:
            everybody = await delivery.receivers(bus)
            if agent not in known.names(cli, everybody):
                raise known.unknown(cli, agent, everybody)
    rows = [_row(each) for each in letters if state in (State.all, each.state)]
    columns = ("sequence", "agent", "type", "state", "reason", "attempts", "origin", "error")
    which = "" if state is State.all else f"{state.value} "
    cli.out.table(rows, {name: name for name in columns}, nothing=f"no {which}dead letters")


async def show(
    cli: Cli,
    letter: Annotated[
        str,
        typer.Argument(
            metavar="LETTER", help="Its id, its sequence, or the sequence of the original."
        ),
    ],
) -> None:
    """Show one dead letter: why, where it failed, what happened to it, and the original."""
    from stratum_projections.health import story

    async with cli.bus() as bus:
        found = await dead.find(bus, letter)
        origin = found.letter.origin
        original: Any
        try:
            original = events.row(await bus.get(origin.stream, origin.sequence))
        except NotFound:
            original = None
        agent = found.letter.agent
        history = await story.about(bus, agent, origin.stream, origin.sequence)
    more = {
        "run": found.letter.run,
        "trace": found.letter.trace,
        "original_id": origin.id,
        "original": original,
        "history": [_told(each) if not cli.out.json else _fields(each) for each in history],
    }
    cli.out.record({**_row(found), **more})


async def redrive(
    cli: Cli,
    letters: LetterIds = None,
    all_of: OfAgent = None,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> None:
    """Send the original to its agent once more, as a new event.

    A failed run goes on from where it failed, as a new run: what its steps did is not done again.
    One that undid its steps begins anew.

    Example: `stratum dead redrive --all-of research --reason 'the feed is mended'`
    """
    async with cli.bus() as bus:
        chosen = await _chosen(bus, letters, all_of)
        for letter in chosen:
            await _must_be_readable(bus, letter)
        for letter in chosen:
            done: dict[str, Any] = {"letter": letter.id, "origin": _origin(letter)}
            if letter.letter.run:
                done |= await _redrive_run(bus, letter, reason, dry_run)
            elif not dry_run:
                done["sequence"] = await dead.redrive(bus, letter, reason)
            _say(cli, "redriven", done, dry_run)


async def drop(
    cli: Cli,
    letters: LetterIds = None,
    all_of: OfAgent = None,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> None:
    """Decide that nothing will be done about a dead letter. It stays in the log, as dropped."""
    async with cli.bus() as bus:
        for letter in await _chosen(bus, letters, all_of):
            if not dry_run:
                await dead.drop(bus, letter, reason)
            _say(cli, "dropped", {"letter": letter.id, "origin": _origin(letter)}, dry_run)


async def _chosen(bus: Bus, ids: list[str] | None, agent: str | None) -> list[Letter]:
    """The letters that were named, all found before anything is done about the first."""
    if bool(ids) == bool(agent):
        raise Usage("name dead letters, or all open ones of an agent with --all-of AGENT")
    if agent:
        return [each for each in await dead.letters(bus, agent) if each.state == dead.OPEN]
    chosen = [await dead.find(bus, id) for id in ids or ()]
    for letter in chosen:
        if letter.state != dead.OPEN:
            raise Refusal(f"dead letter {letter.id} is already {letter.state}")
    return list({letter.id: letter for letter in chosen}.values())


async def _redrive_run(bus: Bus, letter: Letter, reason: str, dry_run: bool) -> dict[str, Any]:
    from stratum_agents.fork import failed_at, redrive
    from stratum_agents.journal import Journal

    body = letter.letter
    at = failed_at(await Journal(bus, body.agent, body.run).load())
    row = {"failed_run": body.run, "at": at or "the beginning"}
    return row if dry_run else {**row, "run": await redrive(bus, letter, reason)}


async def _must_be_readable(bus: Bus, letter: Letter) -> None:
    origin = letter.letter.origin
    try:
        (await bus.get(origin.stream, origin.sequence)).event()
    except InvalidEvent as error:
        raise Refusal(f"dead letter {letter.id} cannot be redriven: {error}") from None


def _say(cli: Cli, verb: str, row: dict[str, Any], dry_run: bool) -> None:
    if cli.out.json:
        cli.out.object({**row, verb: not dry_run})
        return
    again = f" as {row['sequence']}" if "sequence" in row else ""
    if "at" in row:
        again = f" from {row['at']}" + (f" as run {row['run']}" if "run" in row else "")
    would = "would be " if dry_run else ""
    cli.out.line(f"{row['letter']} ({row['origin']}) {would}{verb}{again}")


def _row(letter: Letter) -> dict[str, Any]:
    body = letter.letter
    return {
        "letter": letter.id,
        "sequence": letter.sequence,
        "time": letter.time,
        "agent": body.agent,
        "type": subject.parse(letter.subject).type,
        "state": letter.state,
        "reason": body.reason,
        "attempts": body.attempts,
        "origin": _origin(letter),
        "error": body.error,
    }


def _told(moment: Any) -> str:
    return f"{moment.sequence}  {time_text(moment.time)}  {moment.by} {moment.name}: {moment.text}"


def _fields(moment: Any) -> dict[str, Any]:
    return {name: getattr(moment, name) for name in ("sequence", "time", "by", "name", "text")}


def _origin(letter: Letter) -> str:
    return f"{letter.letter.origin.stream} {letter.letter.origin.sequence}"
