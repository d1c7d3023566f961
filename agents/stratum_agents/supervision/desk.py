"""Executes commands from the log, and says what became of each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from stratum_agents.supervision import estate, policy
from stratum_agents.supervision.common import Common
from stratum_agents.supervision.escalation import Escalation, notify, tell
from stratum_agents.supervision.keeper import Keeper
from stratum_agents.supervision.policy import STATE_COMMANDS
from stratum_agents.supervision.running import Running
from stratum_bus import control, subject, timer
from stratum_bus.bus import Bus
from stratum_bus.consume import LOST_SERVER, STREAM, Delivery, Done
from stratum_bus.control import COMMANDS, OUTCOME, Command, Ended, Outcome
from stratum_bus.errors import InvalidEvent, NotFound, StratumError
from stratum_bus.event import typed
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.supervisor")

FILTERS = [f"control.*.{command}" for command in COMMANDS]
REMEMBERED = timedelta(days=1)
"""How far back outcomes are looked for, and how old a command may be to be executed."""

SUSPECTED = timedelta(hours=1)
"""How far back it is looked for what others worked on when they ended."""

PAUSED_UNTIL = "9999-01-01T00:00:00Z"
NOT_BEFORE = "0001-01-01T00:00:00Z"

Result = tuple[bool, str, Running | None]
"""Whether it was done, in words, and what runs now."""


class Desk:
    """Handles the commands for the programs of one supervisor; others are left to others."""

    def __init__(self, common: Common, keepers: Mapping[str, Keeper]) -> None:
        self._common = common
        self._keepers = keepers
        self._answered: set[str] = set()
        self._opened = datetime.now(UTC)
        self._read_to = 0

    async def prepare(self) -> None:
        """Learn from the log in what state each agent is to be, and which commands are answered.

        Raises what reading raises.
        """
        bus = self._common.bus
        info = await bus.connection.api(f"STREAM.INFO.{STREAM}")
        self._read_to = info["state"]["last_seq"]
        since = self._opened - REMEMBERED
        async with bus.read(filters=[f"control.*.{OUTCOME}"], start=since) as reader:
            async for message in reader:
                with suppress(InvalidEvent):
                    self._answered.add(typed(message.event(), Outcome).data.command)
        async with task_group() as tasks:
            for keeper in self._keepers.values():
                tasks.start_soon(self._prepare, keeper, bus)

    async def _prepare(self, keeper: Keeper, bus: Bus) -> None:
        given = []
        for command in STATE_COMMANDS:
            message = await bus.last(subject.control(keeper.name, command))
            if message is not None and message.sequence <= self._read_to:
                with suppress(InvalidEvent):
                    what = typed(message.event(), Command).data
                    given.append((message.sequence, command, what))
        keeper.state = policy.fold(keeper.state, given)
        ends, since = [subject.control(keeper.name, control.ENDED)], self._opened - SUSPECTED
        async with bus.read(filters=ends, start=since) as reader:
            async for message in reader:
                with suppress(InvalidEvent):
                    keeper.aftermath.remember(typed(message.event(), Ended).data.held)

    async def handle(self, delivery: Delivery) -> Done:
        """The handler of the consumer of commands."""
        event, place = delivery.event, subject.parse(delivery.message.subject)
        if event.id in self._common.ledger.own or event.id in self._answered:
            return Done()
        keeper = self._keepers.get(place.agent)
        if keeper is None and place.type not in (control.PARK, control.ESCALATE):
            return Done()
        done, detail, running = await self._execute(delivery, place.agent, place.type, keeper)
        self._answered.add(event.id)
        self._common.metrics.commands.labels(place.type, str(done).lower()).inc()
        self._common.ledger.outcome(
            place.agent,
            Outcome(
                command=event.id, done=done, detail=detail, pid=running.pid if running else 0,
                instance=running.instance if running else "",
            ),
        )  # fmt: skip
        return Done()

    async def _execute(
        self, delivery: Delivery, agent: str, command: str, keeper: Keeper | None
    ) -> Result:
        try:
            said = delivery.event.data
            what = Command()
            if said is not None and bytes(said) != b"null":
                what = typed(delivery.event, Command).data
            age = self._opened - delivery.message.time
            if age > REMEMBERED and command not in STATE_COMMANDS:
                return False, f"it is {age.days} days old", None
            if command == control.PARK:
                return await self._park(agent, what)
            if command == control.ESCALATE:
                return await self._escalate(agent, what, delivery.event.id)
            assert keeper is not None
            async with keeper.lock:
                return await self._order(keeper, command, what, delivery)
        except InvalidEvent as error:
            return False, str(error), None
        except LOST_SERVER:
            raise
        except StratumError as error:
            return False, str(error), None

    async def _order(
        self, keeper: Keeper, command: str, what: Command, delivery: Delivery
    ) -> Result:
        id, sequence = delivery.event.id, delivery.message.sequence
        match command:
            case control.PAUSE:
                return await self._pause(keeper.name, PAUSED_UNTIL)
            case control.RESUME if not keeper.state.quarantined and not keeper.state.stopped:
                return await self._pause(keeper.name, NOT_BEFORE)
            case control.RESTART if sequence <= self._read_to:
                return True, "all were started after it was asked for", None
            case control.RESTART if what.incident and not keeper.state.count:
                return False, f"{keeper.name} is to have no instance: {keeper.state.reason}", None
            case control.RESTART if keeper.state.count:
                return await self._restart(keeper, what, id)
        if sequence > self._read_to:
            keeper.state = policy.wanted(keeper.state, command, what, sequence)
        if keeper.state.count:
            keeper.aftermath.forgive()
        self._say(keeper, command, what)
        ended = await keeper.close(id)
        keeper.open(id)
        if command == control.RESUME:
            await self._pause(keeper.name, NOT_BEFORE)
        return True, _counted(keeper, ended), await keeper.first()

    async def _restart(self, keeper: Keeper, what: Command, id: str) -> Result:
        if what.instance and not keeper.has(what.instance):
            return True, f"instance {what.instance} does not run any more", None
        if not what.incident:
            keeper.aftermath.forgive()
        self._say(keeper, control.RESTART, what)
        running = await keeper.restart(id, instance=what.instance, blames=bool(what.incident))
        if not running:
            return False, f"{keeper.name} was ended meanwhile", None
        count = "1 instance" if len(running) == 1 else f"{len(running)} instances"
        return True, f"{count} started again", running[0]

    async def _pause(self, agent: str, until: str) -> Result:
        """The server holds the agent's messages back; what is in hand is finished."""
        api, found = self._common.bus.connection.api, 0
        for stream in (STREAM, timer.STREAM):
            try:
                await api(f"CONSUMER.PAUSE.{stream}.{agent}", {"pause_until": until})
                found += 1
            except NotFound:
                continue
        if not found:
            return False, f"{agent} has received nothing yet, so there is nothing to hold", None
        paused = until == PAUSED_UNTIL
        done = "its messages wait" if paused else "its messages are handed out"
        self._common.say(f"{agent}: {'paused' if paused else 'goes on'}, {done}")
        return True, done, None

    async def _park(self, agent: str, what: Command) -> Result:
        if not what.sequence:
            return False, "it does not say which message: sequence is missing", None
        message = f"{what.stream}-{what.sequence}"
        reason = what.reason or "asked for by a command"
        done = await estate.park(self._common.bus, agent, message, 0, reason)
        self._common.metrics.parked.labels(agent).inc()
        self._common.say(f"{agent}: {message} is parked: {reason}")
        return True, done, None

    async def _escalate(self, agent: str, what: Command, id: str) -> Result:
        text = what.text or what.reason or "something needs a person"
        told = Escalation(agent, text, what.incident, id)
        who = await tell(self._common.bus, self._common.settings, what.to, told)
        self._common.say(f"{agent}: told {who}: {text}")
        failed = await notify(self._common.settings, told)
        return not failed, "; ".join([f"it is in the inbox of {who}", *failed]), None

    def _say(self, keeper: Keeper, command: str, what: Command) -> None:
        why = f": {what.reason}" if what.reason else ""
        self._common.say(f"{keeper.name}: {command} was asked for{why}")


def _counted(keeper: Keeper, ended: int) -> str:
    count = keeper.state.count
    now = "1 instance is to run" if count == 1 else f"{count} instances are to run"
    return f"{ended} ended, {now}" if ended else now
