"""One instance of an agent: each delivered message starts a run, or says something to one.

A run belongs to the delivery that its journal names (its holder). A later delivery of that message
means that its owner is gone or too slow: the run is taken over. Another message with the same event
changes nothing. A message that ends a wait takes the run over from nobody.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Collection

import anyio
import msgspec

from stratum_agents import inputs
from stratum_agents.agent import SCHEDULED, Agent, Handler
from stratum_agents.clock import SYSTEM, Clock
from stratum_agents.conduct import conduct, park, parked
from stratum_agents.core import Core
from stratum_agents.gate import Gate
from stratum_agents.journal import (
    RESUMED,
    Damaged,
    Entry,
    Exists,
    Failure,
    Fenced,
    Journal,
    Origin,
)
from stratum_agents.run import run_id
from stratum_agents.waits import REPLY_FAILED, answers_to
from stratum_bus import subject, timer
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, Done, Leave, Outcome, Reject, Retry, consume
from stratum_bus.errors import InvalidName
from stratum_bus.event import RawEvent, agent_source, new, uuid7
from stratum_bus.hand import Hand
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.worker")

SCHEDULES = "schedule"
"""The run token of the timers that start runs (`Agent.every`)."""


async def work(
    bus: Bus,
    agent: Agent,
    *,
    stop: anyio.Event,
    concurrency: int | None = None,
    ack_wait_seconds: float = 30.0,
    retry: Retry | None = None,
    grace_seconds: float = 10.0,
    instance: str = "",
    hand: Hand | None = None,
    suspects: Collection[str] = (),
) -> None:
    """Run one instance of `agent` until `stop` is set; see `consume` for what is promised.

    `hand` is told what is in hand. `suspects` (messages as `<stream>-<sequence>`) are handled
    alone.
    """
    hand = hand or Hand()
    worker = Worker(bus, agent, retry or Retry(), instance=instance, hand=hand, gate=Gate(suspects))
    at_once = min(concurrency or agent.concurrency, agent.concurrency)

    async def take(stream: str, filters: list[str]) -> None:
        await consume(
            bus, agent.name, worker.handle, stop=stop, stream=stream, filters=filters,
            concurrency=at_once, ack_wait_seconds=ack_wait_seconds, retry=retry,
            grace_seconds=grace_seconds, hand=hand,
        )  # fmt: skip

    for name, every in agent.schedules.items():
        await timer.keep(bus.connection, agent.name, SCHEDULES, name, every)
    async with task_group() as background:
        for task in agent.tasks:
            background.start_soon(task, bus, stop)
        async with task_group() as sources:
            inbox = subject.inbox_filters(agent.name, agent.follows)
            sources.start_soon(take, "LOG", [*inbox, f"control.{agent.name}.run.>"])
            sources.start_soon(take, timer.STREAM, [f"fire.{agent.name}.>"])
            log.info("%s is ready", agent.name)
        background.cancel_scope.cancel()


class Worker:
    """Handles deliveries for one instance. `clock` is the world's time (a test may set it)."""

    def __init__(
        self,
        bus: Bus,
        agent: Agent,
        retry: Retry | None = None,
        *,
        clock: Clock = SYSTEM,
        instance: str = "",
        hand: Hand | None = None,
        gate: Gate | None = None,
    ) -> None:
        self._bus = bus
        self._agent = agent
        self._retry = retry or Retry()
        self._clock = clock
        self._active: dict[str, asyncio.Event] = {}
        self._hand = hand or Hand()
        self._gate = gate or Gate()
        self.instance = instance or new_instance()

    async def handle(self, delivery: Delivery) -> Outcome:
        """What to do with one message: the handler of a consumer."""
        message = delivery.message
        async with self._gate.passed(_place(delivery)):
            self._hand.begin(message.stream, message.sequence, delivery.event.id)
            return await self._handle(delivery)

    async def _handle(self, delivery: Delivery) -> Outcome:
        # What others sent need not be of the grammar to be an event for a handler.
        role = delivery.message.subject.partition(".")[0]
        if role == "fire":
            place = subject.parse(delivery.message.subject)
            if place.run == SCHEDULES:
                return await self._tell_time(delivery, place.name)
            return await self._say(delivery, inputs.of_timer(delivery, place.run, place.name))
        if role == "control":
            return await self._obey(delivery, subject.parse(delivery.message.subject).type)
        if delivery.event.torun:
            return await self._say(delivery, inputs.of_signal(delivery))
        return await self._begin(delivery, self._agent.handler_for(delivery.event.type))

    async def _tell_time(self, delivery: Delivery, schedule: str) -> Outcome:
        """A scheduled time becomes an event of the log: what fired is not kept as long as a run."""
        name, message = self._agent.name, delivery.message
        event = new(
            SCHEDULED + schedule, None, source=agent_source(name), time=message.time,
            id=f"{name}-{schedule}-{message.time_ns}",
        )  # fmt: skip
        await self._bus.publish(subject.inbox(name, name, event.type), event)
        return Done()

    async def _obey(self, delivery: Delivery, command: str) -> Outcome:
        if command not in inputs.REQUESTS:
            return Done()  # for the supervisor, or an outcome that it reports
        raw = delivery.event.data
        try:
            data = msgspec.json.decode(raw) if raw is not None else None
            return await self._say(delivery, inputs.of_request(delivery, command, data))
        except msgspec.ValidationError as error:
            return Reject(f"{command}: {error}")

    async def _begin(self, delivery: Delivery, handler: Handler | None) -> Outcome:
        """Start the run of an event, or take it over where this is a further delivery."""
        run = run_id(self._agent.name, delivery.event.id)
        if handler is None:
            log.debug("%s has no handler for %s", self._agent.name, delivery.event.type)
            await self._decline(run, delivery.event)
            return Done()
        if other := self._active.get(run):
            await other.wait()
            return await self._begin(delivery, handler)
        journal = Journal(self._bus, self._agent.name, run, self._clock)
        with _held(self._active, run):
            try:
                if delivery.attempt == 1:
                    try:
                        return await self._conduct(journal, delivery, handler)
                    except Exists:
                        pass  # handled before, or by another instance: the journal says it
                return await self._go_on(journal, delivery, handler)
            except Fenced:
                return _left(journal)

    async def _decline(self, run: str, event: RawEvent) -> None:
        """Tell the run that waits for what comes of an event that nothing will."""
        if not (waits := answers_to(event)):
            return
        agent, torun, sent = waits
        failure = Failure("NoHandler", f"agent {self._agent.name} has no handler for {event.type}")
        answer = new(
            REPLY_FAILED, failure, source=agent_source(self._agent.name), id=f"{run}-reply"
        )
        answer = msgspec.structs.replace(answer, torun=torun, causationid=sent)
        await self._bus.publish(subject.inbox(agent, self._agent.name, REPLY_FAILED), answer)

    async def _go_on(self, journal: Journal, delivery: Delivery, handler: Handler) -> Outcome:
        damage: Damaged | None = None
        try:
            await journal.load()
        except Damaged as error:
            damage = error
        if journal.started:
            if journal.end or journal.holder != _place(delivery):
                return Done()
            if not self._may_take_over(journal, delivery):
                return _left(journal)  # the message comes again, should that owner be gone too
        if damage is not None:
            return await park(self._core(journal, delivery, handler.type, delivery), damage)
        if journal.started:
            await self._take_over(journal, delivery)
        try:
            return await self._conduct(journal, delivery, handler)
        except Exists:
            return await self._go_on(journal, delivery, handler)

    def _may_take_over(self, journal: Journal, delivery: Delivery) -> bool:
        """Whether a run that this message holds is not in the hands of a later delivery of it."""
        return (
            journal.suspended
            or journal.instance == self.instance
            or delivery.attempt > journal.delivery
        )

    async def _say(self, delivery: Delivery, given: inputs.Input) -> Outcome:
        """Give an input to a run, and resume the run where it waits."""
        try:
            journal = Journal(self._bus, self._agent.name, given.run, self._clock)
        except InvalidName as error:
            return Reject(str(error))
        damage: Damaged | None = None
        try:
            await journal.load()
        except Damaged as error:
            damage = error
        try:
            if journal.end is not None:
                return Done()
            await journal.add_input(given.kind, given.entry, id=given.id)
            if damage is not None and journal.suspended and journal.parked is None:
                await parked(journal, damage)
            if damage is None and (
                journal.holder == _place(delivery)
                or journal.wakes(given.id, given.kind, given.entry)
            ):
                return await self._resume(journal, delivery)
            return Done()
        except Fenced:
            return _left(journal)

    async def _resume(self, journal: Journal, delivery: Delivery) -> Outcome:
        """Go on with a run that its owner let go of, or that this very message had resumed."""
        if not journal.started or journal.end:
            return Done()
        if not journal.suspended:
            if journal.holder != _place(delivery):
                return Done()
            if not self._may_take_over(journal, delivery):
                return _left(journal)
        assert journal.origin is not None
        if other := self._active.get(journal.run):
            await other.wait()
            return await self._resume(await journal.load(), delivery)
        with _held(self._active, journal.run):
            await self._take_over(journal, delivery)
            origin = await self._origin(journal.origin)
            handler = self._agent.handler_for(journal.origin.handler)
            if handler is None:
                error = Damaged(f"there is no handler for {journal.origin.handler} any more")
                await parked(journal, error)
                return Done()
            return await self._conduct(journal, origin, handler, by=delivery)

    async def _origin(self, origin: Origin) -> Delivery:
        message = await self._bus.get(origin.stream, origin.sequence)
        return Delivery(message, await self._bus.event(message), 1)

    async def _take_over(self, journal: Journal, delivery: Delivery) -> None:
        """The fence: from here on, every commit of a former owner is refused."""
        entry = Entry(holder=_place(delivery), delivery=delivery.attempt, instance=self.instance)
        await journal.append(RESUMED, entry, id=f"{journal.run}-resumed-{uuid7()}")

    async def _conduct(
        self,
        journal: Journal,
        delivery: Delivery,
        handler: Handler,
        *,
        by: Delivery | None = None,
    ) -> Outcome:
        by = by or delivery
        self._hand.works_on(by.message.stream, by.message.sequence, _Work(journal))
        core = self._core(journal, delivery, handler.type, by)
        last = by.attempt >= self._retry.max_attempts
        return await conduct(core, handler, last_attempt=last)

    def _core(self, journal: Journal, delivery: Delivery, handler: str, by: Delivery) -> Core:
        event, message = delivery.event, delivery.message
        origin = Origin(
            message.stream, message.sequence, event.id, event.type, handler, event.correlationid
        )
        return Core(
            self._bus, self._agent.name, journal, event, message,
            origin=origin, attempt=by.attempt, holder=_place(by), instance=self.instance,
            clock=self._clock,
        )  # fmt: skip


class _Work:
    """What an instance tells of a run that it works on."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._before = len(journal.entries)
        self.run = journal.run

    @property
    def step(self) -> str:
        entries = self._journal.entries
        return entries[-1].entry.n if entries else ""

    @property
    def appended(self) -> int:
        return len(self._journal.entries) - self._before


class _held:
    """Marks a run as worked on by this instance."""

    def __init__(self, active: dict[str, asyncio.Event], run: str) -> None:
        self._active, self._run = active, run

    def __enter__(self) -> None:
        self._active[self._run] = asyncio.Event()

    def __exit__(self, *_: object) -> None:
        self._active.pop(self._run).set()


def new_instance() -> str:
    """A name for an instance that nobody else gave one."""
    host = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname())[:40]
    return f"{host}-{os.getpid()}-{uuid7()[-8:]}"


def _left(journal: Journal) -> Outcome:
    log.warning("run %s was taken over by another worker: left to it", journal.run)
    return Leave()


def _place(delivery: Delivery) -> str:
    return f"{delivery.message.stream}-{delivery.message.sequence}"
