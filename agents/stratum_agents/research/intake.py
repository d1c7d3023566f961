"""Papers on their way to the agent: handing feeds over, polling them, waiting until they are read.

A paper's version is handed over once: its event has the same id each time, and what the agent's
inbox already holds is not sent again, however long ago that was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
import msgspec

from stratum_agents import journal
from stratum_agents.research import feed
from stratum_agents.research.paper import FEED, Paper, handed_id
from stratum_agents.research.settings import Settings
from stratum_agents.run import run_id
from stratum_bus import dead, subject
from stratum_bus.bus import Bus
from stratum_bus.errors import InvalidEvent, NoAnswer, StratumError
from stratum_bus.event import agent_source, new, typed
from stratum_bus.message import Message

PUBLISHED = "paper.published"
DONE, DEAD = "done", "dead"

log = logging.getLogger("stratum.research")


class Handed(msgspec.Struct, frozen=True):
    """A paper in the agent's inbox. `id` and `sequence` are its event's; `new` is False where the
    inbox had it before.
    """

    id: str
    sequence: int
    paper: Paper
    new: bool


class Handled(msgspec.Struct, frozen=True):
    """What became of a paper that was handed over: `state` is done or dead, `reason` why dead."""

    state: str
    reason: str = ""


class Intake:
    """Hands papers to one agent. Knows what its inbox holds; reads it once and then what is new."""

    def __init__(self, bus: Bus, agent: str) -> None:
        self._bus, self._agent = bus, agent
        self._inbox = subject.inbox(agent, FEED, PUBLISHED)
        self._position = 0
        self._sequences: dict[str, int] = {}

    async def hand_over(
        self, sources: Sequence[str], *, max_papers: int = feed.MAX_PAPERS
    ) -> list[Handed]:
        """Hand over the papers of feeds, oldest first, so that relations point back in time.

        All feeds are read before the first paper is sent: FeedError means that none was. Raises
        BusError where the log cannot take them.
        """
        found: dict[str, Paper] = {}
        for source in sources:
            for paper in await feed.papers(source, max_papers=max_papers):
                found.setdefault(handed_id(self._agent, paper), paper)
        await self._catch_up()
        order = sorted(found, key=lambda id: (found[id].published, found[id].id, found[id].version))
        return [await self._hand(id, found[id]) for id in order]

    async def _hand(self, id: str, paper: Paper) -> Handed:
        if id in self._sequences:
            return Handed(id, self._sequences[id], paper, new=False)
        event = new(PUBLISHED, paper, source=agent_source(FEED), id=id, subject=paper.id)
        ack = await self._bus.publish(self._inbox, event)
        self._sequences[id] = ack.sequence
        return Handed(id, ack.sequence, paper, new=not ack.duplicate)

    async def _catch_up(self) -> None:
        async with self._bus.read(filters=[self._inbox], start=self._position + 1) as reader:
            async for message in reader:
                self._sequences.setdefault(message.id, message.sequence)
            self._position = max(self._position, reader.stored)


async def hand_over(
    bus: Bus,
    sources: Sequence[str],
    *,
    agent: str = "research",
    max_papers: int = feed.MAX_PAPERS,
) -> list[Handed]:
    """Hand the papers of feeds (paths and addresses) to the agent; see `Intake.hand_over`."""
    return await Intake(bus, agent).hand_over(sources, max_papers=max_papers)


async def poll(bus: Bus, settings: Settings, *, stop: anyio.Event) -> None:
    """Hand over the papers of the settings' feeds now and every `poll_minutes`, until `stop`.

    A feed that cannot be read, or a log that cannot take its papers, is reported and tried again
    the next time.
    """
    intake = Intake(bus, settings.name)
    while not stop.is_set():
        for source in settings.feeds:
            try:
                handed = await intake.hand_over([source], max_papers=settings.papers_per_poll)
            except StratumError as error:
                log.warning("%s; tried again in %g minutes", error, settings.poll_minutes)
            else:
                fresh = sum(each.new for each in handed)
                log.info("feed %s: %d papers, %d of them new", source, len(handed), fresh)
        with anyio.move_on_after(settings.poll_minutes * 60):
            await stop.wait()


async def wait_handled(
    bus: Bus, handed: Sequence[Handed], *, agent: str = "research", timeout_seconds: float = 60.0
) -> dict[str, Handled]:
    """Wait until the agent has handled what was handed over; returns what became of each id.

    Raises NoAnswer, with how many are left, where it takes longer than `timeout_seconds`.
    """
    found: dict[str, Handled] = {}
    waiting = {each.id: each.sequence for each in handed}
    for id in list(waiting):
        # it may have been read long ago: then its journal is complete
        entry = await bus.last(subject.run(agent, run_id(agent, id)))
        if entry and (settled := _settled(entry)):
            found[id] = settled[1]
            del waiting[id]
    with anyio.move_on_after(timeout_seconds):
        await _follow(bus, agent, waiting, found)
    if waiting:
        raise NoAnswer(
            f"agent {agent} has not handled {len(waiting)} of {len(handed)} papers within "
            f"{timeout_seconds:g} s; it goes on when it runs (see `stratum agent show {agent}`)"
        )
    return found


async def _follow(bus: Bus, agent: str, waiting: dict[str, int], found: dict[str, Handled]) -> None:
    """Take from `waiting` what the journals and dead letters of the agent settle."""
    if not waiting:
        return
    filters = [f"run.{agent}.>", f"dead.{agent}.>"]
    async with bus.read(filters=filters, start=min(waiting.values()), follow=True) as reader:
        async for message in reader:
            settled = _settled(message)
            if settled and settled[0] in waiting:
                found[settled[0]] = settled[1]
                del waiting[settled[0]]
            if not waiting:
                return


def _settled(message: Message) -> tuple[str, Handled] | None:
    """The event that an entry says is settled, and how."""
    try:
        event = message.event()
        if event.type == "stratum.dead.lettered":
            letter = typed(event, dead.Lettered).data
            return letter.origin.id, Handled(DEAD, f"{letter.reason}: {letter.error}")
        kind = event.type.removeprefix(journal.PREFIX)
        if kind in journal.ENDS and event.causationid:
            done = kind == journal.COMPLETED
            return event.causationid, Handled(DONE) if done else Handled(
                DEAD, f"the run was {kind}"
            )
    except InvalidEvent:
        pass
    return None
