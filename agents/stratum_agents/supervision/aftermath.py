"""What follows the end of a process: what it left is given on, and what becomes of its place."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Collection, Iterable, Sequence

import anyio
from anyio.abc import TaskGroup
from msgspec import Struct

from stratum_agents.supervision import estate, policy
from stratum_agents.supervision.common import Common
from stratum_agents.supervision.escalation import Escalation, notify, tell
from stratum_agents.supervision.place import Next, Order
from stratum_agents.supervision.policy import Again, GiveUp, History, Suspect
from stratum_agents.supervision.program import Program
from stratum_agents.supervision.running import Running
from stratum_bus import control
from stratum_bus.control import Command, Ended, Held, Outcome
from stratum_bus.errors import BusError, StratumError
from stratum_bus.hand import Left

log = logging.getLogger("stratum.supervisor")

RETRY_SECONDS = 0.5


class Owner(Struct, frozen=True):
    """What the keeper of the place is asked and told.

    `held_by_others` are the messages in the hands of its other processes, None where there are
    none, or where there are some that we do not see. `is_alone`: no other process of it is known.
    `on_end` is told the id
    of the event of an end that nobody wanted, `give_up` why no more is started, and whether that
    holds for good.
    """

    held_by_others: Callable[[Running], set[str] | None]
    is_alone: Callable[[Running], bool]
    on_end: Callable[[str], None]
    give_up: Callable[[GiveUp], None]


class Aftermath:
    """Decides for all places of one program. `tasks` runs what nobody has to wait for."""

    def __init__(self, program: Program, common: Common, tasks: TaskGroup, owner: Owner) -> None:
        self._program = program
        self._common = common
        self._tasks = tasks
        self._owner = owner
        self._history = History()
        self._suspects: dict[str, Suspect] = {}
        self._told = False

    def suspects(self) -> Collection[str]:
        """Messages that are to be handled alone."""
        return self._suspects

    def remember(self, held: Iterable[Held]) -> None:
        """Go on with the suspicions of a supervisor before this one."""
        for each in held:
            message = f"{each.stream}-{each.sequence}"
            if each.deaths >= self._common.settings.poison_deaths:
                self._suspects.pop(message, None)  # it was parked
            elif each.mark:
                self._suspects[message] = Suspect(each.deaths, each.mark)

    def forgive(self) -> None:
        """Begin to count anew: somebody mended it, or believes so."""
        self._history = History()

    async def decide(self, running: Running, code: int, orders: Sequence[Order]) -> Next | None:
        """See `place.Decide`."""
        blamed = any(order.blames for order in orders)
        killed = bool(orders) and code == -signal.SIGKILL
        left = await self._left(running)
        held, poison = await self._settle(running, left, not orders or (killed and blamed))
        ended = self._record(running, code, bool(orders), killed, held)
        for message in poison:
            await self._park(message, self._common.settings.poison_deaths, ended)
        if not orders:
            self._owner.on_end(ended)
        if not all(order.again for order in orders):
            self._common.say(f"{_label(running)}: stopped")
            return None
        if orders and not blamed:
            self._count(orders[0].cause)
            return Next(0.0, orders[0].command)
        decision = self._judge(running, code, bool(poison))
        if isinstance(decision, GiveUp) and self._program.is_agent:
            begun = [estate.place(each) for each in left if each.begun]
            await self._give_up(running, code, decision, ended, begun)
            return None
        return self._again(running, code, decision, ended, orders)

    async def _left(self, running: Running) -> Sequence[Left]:
        """What it had in hand: as it shared it, else as its last beat said, else as the server
        knows, where there is nobody else who could have it."""
        if running.knows_hand:
            return running.left()
        if self._common.beats.of(running.instance) is not None:
            return self._common.beats.left(running.instance)
        if not self._program.is_agent or not self._owner.is_alone(running):
            return []
        with anyio.move_on_after(estate.DELIVERED_SECONDS):
            try:
                return await estate.delivered(self._common.bus, self._program.name)
            except BusError as error:
                log.debug("%s: what it had is not known: %s", self._program.name, error)
        return []

    async def _settle(
        self, running: Running, left: Sequence[Left], is_death: bool
    ) -> tuple[list[Held], list[str]]:
        """Give what it left to others at once; returns that, and what of it proved poisonous."""
        bus, poison, back = self._common.bus, list[str](), set[str]()
        if left and bus.connection.connected:
            begun = [estate.place(each) for each in left if each.begun]
            if is_death and begun:
                poison = await self._suspect(begun)
            back = {estate.place(each) for each in left}.difference(poison)
            await self._give_back(back.difference(self._owner.held_by_others(running) or ()))
        if self._owner.held_by_others(running) is not None:
            self._tasks.start_soon(self._look_again, running, back)
        limit = self._common.settings.poison_deaths
        known = {**self._suspects, **{message: Suspect(limit, "") for message in poison}}
        return [_held(each, known.get(estate.place(each))) for each in left], poison

    async def _suspect(self, begun: Sequence[str]) -> list[str]:
        known = {message: suspect.mark for message, suspect in self._suspects.items()}
        marks = await estate.marks(self._common.bus, self._program.name, begun, known)
        settings = self._common.settings
        self._suspects, poison = policy.after_death(settings, self._suspects, marks)
        return poison

    async def _give_back(self, messages: Collection[str]) -> None:
        try:
            await estate.give_back(self._common.bus, self._program.name, messages)
        except BusError as error:
            log.debug("%s: not given back: %s", self._program.name, error)

    async def _look_again(self, running: Running, given: set[str]) -> None:
        """Give back what was given, and what has been in nobody's hand for a while.

        Where none of the others lived when it ended, its successor takes back all by itself.
        """
        lost = given
        for seconds in estate.AGAIN_SECONDS:
            await anyio.sleep(seconds)
            held = self._owner.held_by_others(running)
            if held is None:
                return
            try:
                now = await estate.unaccounted(self._common.bus, self._program.name, held)
            except BusError as error:
                log.debug("%s: not looked at again: %s", self._program.name, error)
                return
            await self._give_back(now & lost)
            lost = now

    def _record(
        self, running: Running, code: int, wanted: bool, killed: bool, held: list[Held]
    ) -> str:
        what = Ended(
            instance=running.instance, pid=running.pid, code=code,
            signal=policy.signal_name(code), seconds=round(running.lived_seconds, 3),
            slot=running.slot, wanted=wanted, killed=killed, held=held,
            supervisor=self._common.instance,
        )  # fmt: skip
        return self._common.ledger.ended(self._program.name, what)

    def _judge(self, running: Running, code: int, cause_removed: bool) -> Again | GiveUp:
        if cause_removed:
            self._history = History()
            return Again(0.0)
        if not self._common.bus.connection.connected:
            return Again(0.0)  # no wonder that it ended; its place waits for the server
        self._history, decision = policy.after_end(
            self._common.settings, self._history, instance=running.instance, code=code,
            lived_seconds=running.lived_seconds, now=running.started + running.lived_seconds,
        )  # fmt: skip
        return decision

    def _again(
        self,
        running: Running,
        code: int,
        decision: Again | GiveUp,
        ended: str,
        orders: Sequence[Order],
    ) -> Next:
        if isinstance(decision, GiveUp):  # what everything else needs is never given up
            delay = self._common.settings.max_delay_seconds
            if not self._told:
                self._escalate(f"{self._program.name} keeps ending: {decision.reason}", ended)
            self._told = True
        else:
            delay, self._told = decision.delay_seconds, False
        after = f"again in {delay:.1f} s" if delay else "again at once"
        self._common.say(f"{_label(running)}: {_lived(running, code)}, {after}")
        self._count(orders[0].cause if orders else "ended")
        if orders:
            return Next(delay, orders[0].command)
        reason = f"it ended ({policy.ending(code)})"
        what = Command(instance=running.instance, reason=reason, incident=ended)
        id = self._common.ledger.command(self._program.name, control.RESTART, what)
        return Next(delay, id)

    async def _give_up(
        self, running: Running, code: int, why: GiveUp, ended: str, begun: Sequence[str]
    ) -> None:
        name, ledger = self._program.name, self._common.ledger
        self._common.say(f"{_label(running)}: {_lived(running, code)}, given up: {why.reason}")
        self._common.metrics.gave_up.labels(name).inc()
        for message in policy.most_suspect(self._suspects, begun):
            await self._park(message, self._suspects.pop(message).deaths, ended)
        self._owner.give_up(why)
        if why.for_good:
            id = ledger.command(
                name, control.QUARANTINE, Command(reason=why.reason, incident=ended)
            )
            done = f"no instance of {name} is started until `stratum agent start {name}`"
            ledger.outcome(name, Outcome(command=id, done=True, detail=done))
        mend = f"mend it, then `stratum agent start {name}`"
        self._escalate(f"{name} was given up: {why.reason}; {mend}", ended)

    async def _park(self, message: str, deaths: int, ended: str) -> None:
        name, ledger = self._program.name, self._common.ledger
        reason = f"{deaths} processes of {name} ended while they worked on it"
        stream, sequence = estate.message_of(message)
        what = Command(stream=stream, sequence=sequence, reason=reason, incident=ended)
        id = ledger.command(name, control.PARK, what)
        try:
            done = await estate.park(self._common.bus, name, message, deaths, reason)
        except StratumError as error:  # the next death will do it
            self._suspects[message] = Suspect(self._common.settings.poison_deaths - 1, "")
            ledger.outcome(name, Outcome(command=id, done=False, detail=str(error)))
            return
        self._common.metrics.parked.labels(name).inc()
        self._common.say(f"{name}: {message} is parked: {reason}")
        ledger.outcome(name, Outcome(command=id, done=True, detail=done))

    def _escalate(self, text: str, ended: str) -> None:
        what = Command(text=text, incident=ended)
        id = self._common.ledger.command(self._program.name, control.ESCALATE, what)
        self._tasks.start_soon(self._tell, Escalation(self._program.name, text, ended, id))

    async def _tell(self, what: Escalation) -> None:
        settings = self._common.settings
        while True:
            try:
                who = await tell(self._common.bus, settings, "", what)
                break
            except BusError as error:
                log.debug("nobody could be told yet: %s", error)
                await anyio.sleep(RETRY_SECONDS)
        failed = await notify(settings, what)
        detail = "; ".join([f"it is in the inbox of {who}", *failed])
        outcome = Outcome(command=what.command, done=not failed, detail=detail)
        self._common.ledger.outcome(self._program.name, outcome)

    def _count(self, cause: str) -> None:
        self._common.metrics.restarts.labels(self._program.name, cause).inc()


def _held(left: Left, suspect: Suspect | None) -> Held:
    return Held(
        stream=left.stream, sequence=left.sequence, begun=left.begun,
        deaths=suspect.deaths if suspect else 0, mark=suspect.mark if suspect else "",
    )  # fmt: skip


def _label(running: Running) -> str:
    name = running.program.name
    return name if running.slot == 1 else f"{name} {running.slot}"


def _lived(running: Running, code: int) -> str:
    return f"ended after {running.lived_seconds:.1f} s ({policy.ending(code)})"
