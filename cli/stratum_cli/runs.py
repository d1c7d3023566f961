"""What `stratum run` does; the command line itself is in `commands/run.py`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio.to_thread
import msgspec
import typer

from stratum_agents import history
from stratum_agents import replay as replaying
from stratum_agents.fork import asking, prepare
from stratum_agents.journal import ENDS, INPUTS, Damaged, Journal
from stratum_agents.process import build
from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.errors import BlobError, InvalidEvent, NotFound
from stratum_bus.tasks import task_group
from stratum_cli import delivery, events, failure, known, story
from stratum_cli.context import Cli
from stratum_cli.failure import Refusal, Usage
from stratum_cli.output import Columns, Row

ALL, LAST = "all", "last"


async def list_runs(cli: Cli, agent: str | None, state: str, limit: int) -> None:
    if agent is not None:
        subject.token(agent, "agent name")
    async with cli.bus() as bus:
        found = await history.summaries(bus, agent)
        if agent is not None and not found:
            everybody = await delivery.receivers(bus)
            if agent not in known.names(cli, everybody):
                raise known.unknown(cli, agent, everybody)
    chosen = [each for each in found if state in (ALL, each.state)]
    rows = [msgspec.structs.asdict(each) for each in chosen[-limit:]]
    cli.out.table(rows, _columns(), nothing=f"no {'' if state == ALL else f'{state} '}runs")
    if limit and len(chosen) > limit and not cli.out.json:
        cli.out.talk(f"the newest {limit} of {len(chosen)}; --limit 0 shows all")


async def show(cli: Cli, run: str, agent: str | None) -> None:
    async with cli.bus() as bus:
        journal = await _find(bus, run, agent)
        damage = ""
        try:
            await journal.load()
        except Damaged as error:
            damage = str(error)
    told = history.story(journal, damage)
    if cli.out.json:
        parts = {"origin": told.origin, "failure": told.error}
        whole = {"timeline": told.timeline, "journal": told.entries}
        cli.out.object({**msgspec.structs.asdict(told.summary), **parts, **whole})
        return
    for line in story.header(told, datetime.now(UTC)):
        cli.out.styled(line)
    cli.out.styled([])
    for line in story.timeline(told):
        cli.out.styled(line)


async def tail(cli: Cli, run: str, agent: str | None) -> None:
    async with cli.bus() as bus, task_group() as tasks:
        journal, suspended = await _find(bus, run, agent), True
        tasks.start_soon(cli.out.until_closed)
        async with bus.read(filters=[journal.subject], follow=True) as reader:
            async for message in reader:
                try:
                    recorded = await history.recorded_of(bus, message)
                except (InvalidEvent, BlobError) as error:
                    if cli.out.json:
                        cli.out.object(events.row(message))
                    else:
                        cli.out.styled([("bad", f"damaged: {error}")])
                    continue
                if cli.out.json:
                    cli.out.object(msgspec.structs.asdict(recorded))
                for line in () if cli.out.json else story.entry(recorded, suspended):
                    cli.out.styled(line)
                if recorded.kind in ENDS:
                    break
                if recorded.kind not in INPUTS:
                    suspended = recorded.entry.suspends
        tasks.cancel_scope.cancel()


async def ask(cli: Cli, run: str, agent: str | None, what: str, reason: str, dry_run: bool) -> None:
    """Ask a run to cancel, pause or resume. Raises NotFound, Refusal."""
    async with cli.bus() as bus:
        journal = await _load(bus, run, agent)
        run = journal.run
        if journal.end is not None:
            raise Refusal(f"run {run} has ended already: it is {journal.end.kind}")
        if what == "pause" and journal.paused:
            raise Refusal(f"run {run} is paused already")
        if what == "resume" and not (journal.paused or journal.suspended):
            raise Refusal(f"run {run} is running: there is nothing to resume")
        row: dict[str, Any] = {"run": run, "agent": journal.agent, "command": what}
        row["asked"] = not dry_run
        if not dry_run:
            append = asking(journal, f"run.{what}", reason)
            row["sequence"] = (await bus.publish(append.subject, append.event)).sequence
        own = await delivery.receiver(bus, journal.agent)
    if cli.out.json:
        cli.out.object(row)
    else:
        verb = "would be" if dry_run else "is"
        cli.out.line(f"run {run} {verb} asked to {what}", shorten=False)
    if own is None or not own.listening:
        cli.out.talk(f"{journal.agent} is not running: it will see that when it starts")


async def replay(cli: Cli, run: str, agent: str | None) -> None:
    async with cli.bus() as bus:
        journal = await _find(bus, run, agent)
        recording = await replaying.record(bus, journal.agent, journal.run)
        made = await anyio.to_thread.run_sync(build, cli.config, journal.agent)
        found = await replaying.replay(made, recording)
    if cli.out.json:
        cli.out.object(msgspec.structs.asdict(found))
    elif found.agrees:
        cli.out.line(found.sentence(), shorten=False)
    else:
        row = {
            "differs at": found.n or "(no position)", "journaled": found.journaled,
            "asked for": found.asked, "probably": found.change, "advice": found.advice,
        }  # fmt: skip
        cli.out.record({key: value for key, value in row.items() if value})
    if not found.agrees:
        raise typer.Exit(failure.FAILED)


async def fork(
    cli: Cli, run: str, at: str, sets: list[str], agent: str | None, dry_run: bool
) -> None:
    results = dict(_setting(text) for text in sets)
    async with cli.bus() as bus:
        journal = await _load(bus, run, agent)
        run = journal.run
        new, appends = prepare(journal, at, results)
        if not dry_run:
            await bus.commit(appends)
    if journal.compensating is not None:
        cli.out.talk(f"run {run} undid its steps; the fork takes those before {at} for done")
    row = {"forked_from": run, "at": at, "set": results, "forked": not dry_run}
    if cli.out.json:
        cli.out.object(row if dry_run else {"run": new, **row})
    else:
        cli.out.line(f"run {run} would be forked at {at}" if dry_run else new, shorten=False)


async def export(cli: Cli, run: str, agent: str | None, output: str | None) -> None:
    async with cli.bus() as bus:
        journal = await _find(bus, run, agent)
        recording = await replaying.record(bus, journal.agent, journal.run)
    if output is None:
        for line in replaying.dump(recording):
            cli.out.object(msgspec.Raw(line))
        return
    await anyio.to_thread.run_sync(replaying.save, recording, Path(output))
    cli.out.talk(f"{len(recording.entries)} entries of run {journal.run} are in {output}")


async def _load(bus: Bus, run: str, agent: str | None) -> Journal:
    """The journal of a run that is there. Raises Damaged, and what `_find` raises."""
    return await (await _find(bus, run, agent)).load()


async def _find(bus: Bus, run: str, agent: str | None) -> Journal:
    """A run that is there, its journal not yet read. Raises NotFound, InvalidName, Usage."""
    name = "*" if agent is None else subject.token(agent, "agent name")
    if subject.token(run, "run id") == LAST:
        messages = await events.newest(bus, [f"run.{name}.*"], 1)
        subjects = [message.subject for message in messages]
    else:
        query = {"subjects_filter": f"run.{name}.{run}"}
        info = await bus.connection.api("STREAM.INFO.LOG", query)
        subjects = sorted(info["state"].get("subjects") or ())
    found = [subject.parse(each) for each in subjects]
    if not found:
        raise NotFound("run", f"{run}{f' of agent {agent}' if agent else ''}")
    if len(found) > 1:
        agents = " and ".join(each.agent for each in found)
        raise Usage(f"{agents} have a run {run}: say which with --agent")
    return Journal(bus, found[0].agent, found[0].run)


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise Usage(f"--set {text!r} is not of the form KEY=JSON, as in --set price=42")
    try:
        return key, msgspec.json.decode(value)
    except msgspec.DecodeError as error:
        raise Usage(
            f"--set {key}: {value!r} is no JSON ({error}); a text needs quotes: '{key}=\"…\"'"
        ) from None


def _columns() -> Columns:
    now = datetime.now(UTC)

    def waits(row: Row) -> str:
        summary = history.Summary(**row)
        goes_on = f"goes on as {summary.next}" if summary.next else ""
        return summary.error or goes_on or story.waiting(summary, now)

    return {
        "run": "run", "agent": "agent", "type": "type", "state": "state", "started": "started",
        "steps": "steps", "waits, or error": waits,
    }  # fmt: skip
