"""Commands about runs: forking one, and asking its agent to cancel, pause or continue it.

A fork is a new run whose journal begins with a reference to another's prefix, which costs nothing
to share; from there it runs live, under an id of its own.
"""

from __future__ import annotations

from typing import Any

from stratum_agents.inputs import REQUESTS
from stratum_agents.journal import (
    FORKED,
    PREFIX,
    STEP_COMPLETED,
    STEP_FAILED,
    Entry,
    Journal,
    Recorded,
)
from stratum_agents.run import run_id
from stratum_agents.waits import REPLY_FAILED, TIMEOUT
from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.control import RunRequest
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
    append = asking(journal, command, reason)
    return (await bus.publish(append.subject, append.event)).sequence


def asking(journal: Journal, command: str, reason: str = "") -> Append:
    """The event that `request` stores."""
    return _command(journal.agent, journal.run, command, reason)


async def fork(bus: Bus, agent: str, run: str, at: str, sets: dict[str, Any] | None = None) -> str:
    """Fork a run at a position (`7`, `3.1.2`) or a step's name; returns the new run's id.

    The new run has all that was journaled before that, with the results of the steps in `sets`
    (by position or name) replaced, and does the rest live. `end` is behind all that a run which
    has ended did. Raises NotFound, EncodeError.
    """
    new_run, appends = prepare(await Journal(bus, agent, run).load(), at, sets or {})
    await bus.commit(appends)
    return new_run


async def redrive(bus: Bus, letter: Letter, reason: str = "") -> str:
    """Run a failed run again from where it failed, as a fork; returns the new run's id.

    Where it kept nothing that could be shared, the event itself is sent again (`dead.redrive`).
    """
    agent, run = letter.letter.agent, letter.letter.run
    journal = await Journal(bus, agent, run).load() if run else None
    if journal is None or not (at := failed_at(journal)):
        await dead.redrive(bus, letter, reason)
        return run_id(agent, dead.redriven_id(letter))
    new_run, appends = prepare(journal, at, {})
    await bus.commit([*appends, dead.redriven(letter, new_run, reason)])
    return new_run


def failed_at(journal: Journal) -> str:
    """Where a failed run is to go on: the step, wait or call that failed last, else `end`.

    "" where it did nothing, or where it undid what it did: then it has to begin anew.
    """
    if journal.compensating is not None or not (journal.decided or journal.effects):
        return ""
    failures = [n for r in journal.decided.values() if (n := _call_that_failed(journal, r))]
    return failures[-1] if failures else "end"


def _call_that_failed(journal: Journal, decided: Recorded) -> str:
    entry = decided.entry
    if decided.kind == STEP_FAILED or entry.reason == TIMEOUT:
        return entry.n
    answer = journal.inputs.get(entry.input)
    if answer is None or answer.entry.name != REPLY_FAILED:
        return ""
    return answer.entry.at.rpartition("-")[2]  # who was asked has to be asked again


def prepare(journal: Journal, at: str, sets: dict[str, Any]) -> tuple[str, list[Append]]:
    """The id of a fork, and the events that make it; see `fork`."""
    agent, run = journal.agent, journal.run
    if not journal.started:
        raise NotFound("run", f"{run} of agent {agent}")
    at, behind = journal.at(at)
    if behind.entry.n == at and behind.entry.name.startswith("reply:"):
        raise StratumError(
            f"at {at} run {run} waits for the answer to a call, which no other run gets: "
            "fork it where the call was made"
        )
    before = [
        r.entry
        for r in journal.entries
        if r.sequence < behind.sequence and r.kind == STEP_COMPLETED
    ]
    known = {key for entry in before for key in (entry.n, entry.name.removeprefix("step:"))}
    if unknown := [key for key in sets if key not in known]:
        raise NotFound("step", f"{unknown[0]} that run {run} has done before position {at}")
    new_run = run_id(agent, f"fork of {run} {uuid7()}")
    entry = Entry(run=run, at=at, sets=sets, origin=journal.origin, suspends=True)
    event = new(
        PREFIX + FORKED, entry, source=agent_source(agent), id=f"{new_run}-forked", runid=new_run
    )
    first = Append(subject.run(agent, new_run), event, expected_sequence=0)
    return new_run, [first, _command(agent, new_run, "run.resume", f"forked from {run} at {at}")]


def _command(agent: str, run: str, command: str, reason: str) -> Append:
    event = new(f"stratum.control.{command}", RunRequest(run, reason), source=PEOPLE, runid=run)
    return Append(subject.control(agent, command), event)
