"""Recordings of runs, and replaying today's handler against them, without effects.

A recording is a journal with all that a replay needs, blobs brought in; kept as a file, it is a
test that a change of the code does not break the runs that are still sleeping:

    def test_sleeping_runs_bear_the_code() -> None:
        assert_replays(create(), "recordings/order.jsonl")
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec.structs import replace

from stratum_agents.agent import Agent, Handler
from stratum_agents.changed import calls_of, likely_change
from stratum_agents.conduct import call
from stratum_agents.core import Core
from stratum_agents.failure import JournalMismatch, OutsideJournal, ReplayedToEnd, RunError
from stratum_agents.journal import (
    CANCELLED,
    COMPLETED,
    CONTINUED,
    FAILED,
    Journal,
    Origin,
    Recorded,
)
from stratum_agents.values import unpack
from stratum_bus.bus import Bus
from stratum_bus.consume import Done, Leave, Reject, RetryLater
from stratum_bus.errors import ConfigError, NotFound
from stratum_bus.event import Raw, RawEvent, encode, encode_value
from stratum_bus.message import Message, nanoseconds

__all__ = (
    "Recording", "Replayed", "assert_replays", "dump", "load", "record", "replay", "save",
)  # fmt: skip

READ_IN_A_STEP = "What it finds there stands in no journal and may differ: read it in a step."


class Recording(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run as it was recorded. `subject` and `time` are those of the message that started it."""

    run: str
    agent: str
    subject: str
    time: datetime
    event: RawEvent
    entries: list[Recorded]


class Replayed(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a replay found. `agrees`, or the first difference: what the journal holds at position
    `n`, what the handler asked for, what has probably been changed, and what to do about it.
    `calls` counts those that agreed.
    """

    run: str
    agrees: bool
    calls: int
    n: str = ""
    journaled: str = ""
    asked: str = ""
    change: str = ""
    advice: str = ""

    def sentence(self) -> str:
        """The outcome in one line."""
        if self.agrees:
            return f"run {self.run} agrees: {self.calls} calls are as they were journaled"
        at = f" at {self.n}" if self.n else ""
        differs = f"the journal holds {self.journaled}, the handler asks for {self.asked}"
        more = "".join(f". {part}" for part in (self.change, self.advice) if part)
        return f"run {self.run} differs{at}: {differs}{more}".rstrip(".") + "."


class _Differs(Exception):
    def __init__(self, n: str, journaled: str, asked: str, advice: str = "") -> None:
        self.n, self.journaled, self.asked, self.advice = n, journaled, asked, advice


def assert_replays(agent: Agent, *paths: Path | str) -> None:
    """Fail, as `assert` does, where the agent's handlers do not agree with recorded runs.

    For tests, with or without an event loop. Raises ConfigError for a file that is no recording.
    """
    with ThreadPoolExecutor(1) as pool:  # the test's thread may have a loop of its own
        for path in paths:
            replayed = pool.submit(anyio.run, replay, agent, load(path)).result()
            assert replayed.agrees, f"{Path(path).name}: {replayed.sentence()}"


async def record(bus: Bus, agent: str, run: str) -> Recording:
    """Record a run as it stands. Raises NotFound, Damaged."""
    journal = await Journal(bus, agent, run).load()
    if journal.origin is None:
        raise NotFound("run", f"{run} of agent {agent}")
    message = await bus.get(journal.origin.stream, journal.origin.sequence)
    entries = [await _whole(bus, recorded) for recorded in journal.entries]
    event = await bus.event(message)
    return Recording(run, agent, message.subject, message.time, event, entries)


def dump(recording: Recording) -> Iterator[bytes]:
    """A recording as lines of JSON: what started the run, then a line for each entry."""
    yield msgspec.json.encode(replace(recording, entries=[]))
    for recorded in recording.entries:
        yield msgspec.json.encode(recorded)


def save(recording: Recording, path: Path | str) -> None:
    """Write a recording to a file."""
    Path(path).write_bytes(b"\n".join(dump(recording)) + b"\n")


def load(path: Path | str) -> Recording:
    """Read what `save` wrote; raises ConfigError for anything else."""
    first, *rest = Path(path).read_bytes().splitlines() or [b""]
    try:
        recording = msgspec.json.decode(first, type=Recording)
        entries = [msgspec.json.decode(line, type=Recorded) for line in rest]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        name = Path(path).name
        raise ConfigError("the file", "a recorded run", str(error), file=name) from None
    return replace(recording, entries=entries)


async def replay(agent: Agent, recording: Recording) -> Replayed:
    """Run the agent's handler against a recording. Nothing is sent, no step is done again."""
    journal = Journal.recorded(recording.agent, recording.run, recording.entries)
    origin = journal.origin
    if origin is None:
        return Replayed(recording.run, False, 0, "0", "no beginning", "one")
    if (handler := agent.handler_for(origin.handler)) is None:
        asked = f"nothing: agent {agent.name} has no handler for {origin.handler}"
        change = "Its handler was removed, or its type renamed"
        return Replayed(recording.run, False, 0, "0", f"a run of {origin.handler}", asked, change)
    core = _core(journal, recording, origin)
    differs: _Differs | None = None
    try:
        await _replay(core, handler)
        _compare_undoing(core)
    except _Differs as error:
        differs = error
    agreed = core.asked & journal.positions()
    if differs is None:
        return Replayed(recording.run, True, len(agreed))
    calls = len(agreed - {differs.n})
    change = likely_change(journal, differs.n, differs.asked)
    return Replayed(
        recording.run, False, calls, differs.n, differs.journaled, differs.asked, change,
        differs.advice,
    )  # fmt: skip


async def _replay(core: Core, handler: Handler) -> None:
    """Raises _Differs where the handler does not come to where the journal ends."""
    end = core.journal.end
    ended = end.kind if end else ""
    try:
        result = await _call(core, handler)
    except OutsideJournal:
        asked = "run.bus or run.memory outside of a step"
        raise _Differs("", "nothing of that", asked, READ_IN_A_STEP) from None
    except ReplayedToEnd as to_end:
        n = str(to_end)
        if ended in (COMPLETED, FAILED) or (end and ended == CONTINUED and n != end.entry.n):
            raise _Differs(n, f"the end of the run ({ended})", "one more call") from None
        return
    except JournalMismatch as error:
        raise _Differs(error.n, error.journaled, error.asked, error.advice) from None
    except Exception as error:  # noqa: BLE001 - what the handler raises is what is looked for
        failure = end.entry.error if end else None
        if failure is None or failure.type != type(error).__name__:
            was = f"the end of the run ({ended})" if ended else "no end yet"
            name = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
            raise _Differs("", was, f"an end by an error ({name}{error})") from None
        return
    _compare_end(ended, end, result)


async def _call(core: Core, handler: Handler) -> Any:
    try:
        result = await call(core, handler)
    except OutsideJournal:
        raise
    except ReplayedToEnd as to_end:
        # All branches have come to their ends, but the tasks of a group of the handler's own.
        if not isinstance(to_end.__context__, BaseExceptionGroup):
            core.check_end()
        raise
    if not isinstance(result, RetryLater | Leave):
        core.check_end()
    return result


def _compare_end(ended: str, end: Recorded | None, result: Any) -> None:
    """The handler has returned: did it then, too?"""
    was = f"the end of the run ({ended})" if ended else "no end yet"
    if isinstance(result, Reject):
        if ended != FAILED:
            raise _Differs("end", was, f"a rejection ({result.reason})")
    elif isinstance(result, RetryLater | Leave):
        if ended:
            raise _Differs("end", was, "another attempt")
    elif ended in (FAILED, CANCELLED, CONTINUED):
        raise _Differs("end", was, "nothing more, and completes it")
    elif end is not None:
        now = encode_value(None if isinstance(result, Done) else result)
        if (then := bytes(end.entry.result)) != now:
            raise _Differs("end", f"the result {_short(then)}", f"the result {_short(now)}")


def _short(json: bytes) -> str:
    text = json.decode(errors="replace")
    return text if len(text) <= 80 else text[:79] + "…"


def _compare_undoing(core: Core) -> None:
    """What has been undone so far is what would be undone today, in that order."""
    names = [getattr(function, "__name__", "undo") for function, _ in reversed(core.compensations)]
    today = {f"c{number}": f"step:undo {name}" for number, name in enumerate(names, 1)}
    for n, held in calls_of(core.journal).items():
        if n.startswith("c") and today.get(n) != held:
            raise _Differs(n, held, today.get(n, "nothing more to undo"))


def _core(journal: Journal, recording: Recording, origin: Origin) -> Core:
    event = recording.event
    message = Message(
        origin.stream, origin.sequence, recording.subject, nanoseconds(recording.time),
        encode(event),
    )  # fmt: skip
    return Core(
        None, recording.agent, journal, event, message,
        origin=origin, attempt=1, holder="", instance="replay", live=False,
    )  # fmt: skip


async def _whole(bus: Bus, recorded: Recorded) -> Recorded:
    """The entry with its blobs brought in."""
    entry = recorded.entry
    if not entry.packed:
        return recorded
    value: Any = await unpack(bus.connection, entry.result)
    raw = Raw(msgspec.json.encode(value))
    return replace(recorded, entry=replace(entry, result=raw, packed=False))
