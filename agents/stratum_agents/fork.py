"""Commands about runs: forking one, and asking its agent to cancel, pause or continue it.

A fork is a new run whose journal begins with a reference to another's prefix, which costs nothing
to share; from there it runs live, under an id of its own.
"""

from __future__ import annotations

from typing import Any

from stratum_agents.inputs import REQUESTS, Request
from stratum_agents.journal import FORKED, PREFIX, Entry, Journal
from stratum_agents.run import run_id
from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.dead import Letter
from stratum_bus.errors import NotFound, StratumError
from stratum_bus.event import agent_source, new, uuid7
from stratum_bus.publish import Append

PEOPLE = "/people"
"""The source of a command that a person gave."""


async def request(bus: Bus, agent: str, run: str, command: str, reason: str = "") -> int:
    """Ask a run's agent for `run.cancel`, `run.pause` or `run.resume`; returns the sequence.

    Raises NotFound for a run that is not there, StratumError for one that has ended.
    """
    if command not in REQUESTS:
        raise ValueError(f"{command} is none of {', '.join(REQUESTS)}")
    journal = await Journal(bus, agent, run).load()
    if not journal.started:
        raise NotFound("run", f"{run} of agent {agent}")
    if journal.end is not None:
        raise StratumError(f"run {run} has ended already: {journal.end.kind}")
    append = _command(agent, run, command, reason)
    return (await bus.publish(append.subject, append.event)).sequence


async def fork(bus: Bus, agent: str, run: str, at: str, sets: dict[str, Any] | None = None) -> str:
    """Fork a run at a position (`7`, `3.1.2`) or a step's name; returns the new run's id.

    The new run has all that was journaled before that, with the results of the steps in `sets`
    (by position or name) replaced, and does the rest live. Raises NotFound.
    """
    new_run, appends = await _fork(bus, agent, run, at, sets or {})
    await bus.commit(appends)
    return new_run


async def redrive(bus: Bus, letter: Letter, reason: str = "") -> str:
    """Run a failed run again from the step that failed, as a fork; returns the new run's id.

    Where nothing was journaled before its end, the event itself is sent again (`dead.redrive`).
    """
    agent, run = letter.letter.agent, letter.letter.run
    journal = await Journal(bus, agent, run).load() if run else None
    failed = [r for r in journal.decided.values() if r.entry.final] if journal else []
    if not failed:
        await dead.redrive(bus, letter, reason)
        return run_id(agent, dead.redriven_id(letter))
    new_run, appends = await _fork(bus, agent, run, failed[-1].entry.n, {})
    await bus.commit([*appends, dead.redriven(letter, new_run, reason)])
    return new_run


async def _fork(
    bus: Bus, agent: str, run: str, at: str, sets: dict[str, Any]
) -> tuple[str, list[Append]]:
    journal = await Journal(bus, agent, run).load()
    if not journal.started:
        raise NotFound("run", f"{run} of agent {agent}")
    at = journal.at(at).entry.n
    new_run = run_id(agent, f"fork of {run} {uuid7()}")
    entry = Entry(run=run, at=at, sets=sets, origin=journal.origin, suspends=True)
    event = new(
        PREFIX + FORKED, entry, source=agent_source(agent), id=f"{new_run}-forked", runid=new_run
    )
    first = Append(subject.run(agent, new_run), event, expected_sequence=0)
    return new_run, [first, _command(agent, new_run, "run.resume", f"forked from {run} at {at}")]


def _command(agent: str, run: str, command: str, reason: str) -> Append:
    event = new(f"stratum.control.{command}", Request(run, reason), source=PEOPLE, runid=run)
    return Append(subject.control(agent, command), event)
