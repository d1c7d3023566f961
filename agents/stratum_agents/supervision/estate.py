"""What an ended process leaves behind: messages in hand, and runs that stand somewhere."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import anyio
import msgspec

from stratum_agents.journal import PARKED, PREFIX, RESUMED, Entry, Exists, Failure, Fenced, Journal
from stratum_agents.run import run_id
from stratum_bus import dead, handover, subject, timer
from stratum_bus.bus import Bus
from stratum_bus.consume import STREAM
from stratum_bus.control import RunRequest
from stratum_bus.errors import InvalidEvent, InvalidName, NotFound, StratumError
from stratum_bus.hand import Left
from stratum_bus.message import Message
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.supervisor")

MARK_SECONDS = 0.3
"""How long the next start may wait for the journals of what was in hand to be read."""

DELIVERED_SECONDS = 3.0
"""And for the server to say what was in hand, where nobody else knows it."""

MARKS_MAX = 32

AGAIN_SECONDS = (0.15, 0.45)
"""After which time, and which more, it is looked whether all that was in hand has found others."""

POISON = "poison"


def place(left: Left) -> str:
    """A message as `<stream>-<sequence>`."""
    return f"{left.stream}-{left.sequence}"


def message_of(place: str) -> tuple[str, int]:
    """The inverse of `place`."""
    stream, _, sequence = place.rpartition("-")
    return stream, int(sequence)


async def marks(
    bus: Bus, agent: str, begun: Sequence[str], known: Mapping[str, str]
) -> dict[str, str]:
    """Where the runs of these messages stand, as far as that can be told in time.

    `known` are the marks of before: only what came behind them is read.
    """
    found: dict[str, str] = {}

    async def look(message: str) -> None:
        try:
            run = _run_of(agent, await bus.get(*message_of(message)))
            _, _, before = known.get(message, "").rpartition(":")
            last = await _stands_at(bus, agent, run, int(before or 0)) if run else 0
            found[message] = f"{run}:{last}"
        except StratumError as error:
            log.debug("no mark of %s: %s", message, error)

    with anyio.move_on_after(MARK_SECONDS):
        async with task_group() as tasks:
            for message in begun[:MARKS_MAX]:
                tasks.start_soon(look, message)
    return found


def _run_of(agent: str, message: Message) -> str:
    """The run that a message starts or is about, "" for none."""
    try:
        where = subject.parse(message.subject)
        if where.role == "fire":
            return where.run
        event = message.event()
        if where.role == "control" and event.data is not None:
            return msgspec.json.decode(event.data, type=RunRequest).run
        return event.torun or run_id(agent, event.id)
    except (InvalidEvent, InvalidName, msgspec.DecodeError):
        return ""


async def _stands_at(bus: Bus, agent: str, run: str, before: int) -> int:
    """The sequence of the last journal entry that says that the run moved on; 0 for none."""
    journal = subject.run(agent, run)
    last = await bus.last(journal)
    if last is None or not _is_resumed(last):
        return last.sequence if last else 0
    stands_at = before
    async with bus.read(filters=[journal], start=before + 1) as reader:
        async for message in reader:
            if not _is_resumed(message):
                stands_at = message.sequence
    return stands_at


def _is_resumed(message: Message) -> bool:
    """Whether an entry only says that another instance has the run now."""
    return f'"{PREFIX}{RESUMED}"'.encode() in message.payload


async def give_back(bus: Bus, agent: str, messages: Collection[str]) -> None:
    """Have what was in hand delivered to others at once."""
    streams: dict[str, list[int]] = defaultdict(list)
    for stream, sequence in map(message_of, messages):
        streams[stream].append(sequence)
    for stream, sequences in streams.items():
        try:
            await handover.settle(bus, stream, agent, sequences)
        except NotFound:
            log.debug("%s has no consumer on %s any more", agent, stream)


async def unaccounted(bus: Bus, agent: str, held: Collection[str]) -> set[str]:
    """What was delivered to somebody and may not be settled, and none who live say they hold.

    The server may have sent it to the process that ended just before it knew; or that process was
    blocked and never took it from its connection.
    """
    found: set[str] = set()
    for stream in (STREAM, timer.STREAM):
        try:
            info = await bus.connection.api(f"CONSUMER.INFO.{stream}.{agent}")
        except NotFound:
            continue
        held_here = sum(each.startswith(f"{stream}-") for each in held)
        if info["num_ack_pending"] <= held_here:
            continue
        first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]
        filters = info["config"].get("filter_subjects") or [info["config"]["filter_subject"]]
        async with bus.read(stream, filters=filters, start=first, end=last) as reader:
            async for message in reader:
                found.add(f"{stream}-{message.sequence}")
    return found.difference(held)


async def delivered(bus: Bus, agent: str) -> list[Left]:
    """What the server has handed out to an agent and waits to hear of, at most MARKS_MAX messages.

    Begun is what is certainly not settled: of what lies between others that are, that cannot be said.
    """
    try:
        info = await bus.connection.api(f"CONSUMER.INFO.{STREAM}.{agent}")
    except NotFound:
        return []
    count, config = info["num_ack_pending"], info["config"]
    if not count:
        return []
    first, last = info["ack_floor"]["stream_seq"] + 1, info["delivered"]["stream_seq"]
    filters = config.get("filter_subjects") or [config["filter_subject"]]
    async with bus.read(STREAM, filters=filters, start=first, end=last) as reader:
        found = await reader.batch(MARKS_MAX, None)
    return [Left(STREAM, each.sequence, len(found) == count, 1) for each in found]


async def park(bus: Bus, agent: str, message: str, deaths: int, reason: str) -> str:
    """Make a dead letter of a message, have its run wait for a person, and let the agent go on with
    the next; returns what was done, in words. Doing it again changes nothing.

    Raises NotFound where there is no such message or the agent never ran, StratumError.
    """
    stream, sequence = message_of(message)
    stored = await bus.get(stream, sequence)
    run = _run_of(agent, stored)
    journal = await Journal(bus, agent, run).load() if run else None
    if journal is not None and journal.end is not None:
        run = ""
    began = journal is not None and journal.started and run
    letter = dead.Cause(POISON, reason)
    await dead.bury(bus, agent, stored, deaths, letter, run=run if began else "")
    if began and journal is not None:
        await _park_run(journal, reason)
    verdict = b"+TERM " + f"{POISON}: {reason}".encode()[:200]
    await handover.settle(bus, stream, agent, [sequence], verdict)
    return f"{message} is a dead letter" + (f", its run {run} is parked" if began else "")


async def _park_run(journal: Journal, reason: str) -> None:
    if journal.parked is not None or journal.end is not None:
        return
    entry = Entry(reason=POISON, error=Failure("Poison", reason), suspends=True)
    try:
        id = f"{journal.run}-parked-{journal.last_sequence}"
        await journal.append(PARKED, entry, id=id)
    except (Fenced, Exists):
        log.info("run %s is worked on by another instance: not parked", journal.run)
