"""Keeps the instances of one program running, as many as are wanted."""

from __future__ import annotations

from collections.abc import Callable

from anyio import Lock
from anyio.abc import TaskGroup
from msgspec.structs import replace

from stratum_agents.supervision import estate
from stratum_agents.supervision.aftermath import Aftermath, Owner
from stratum_agents.supervision.common import Common
from stratum_agents.supervision.place import Order, Place
from stratum_agents.supervision.policy import GiveUp, Wanted
from stratum_agents.supervision.program import Program
from stratum_agents.supervision.running import Running
from stratum_bus.control import RESTART, Command

OnEnd = Callable[[str, str], None]
"""Takes the name of a program and the id of the event that it ended unasked."""


class Keeper:
    """One program and the places of its instances.

    `state` is what is wanted of it, `tasks` is where its places are kept, `on_end` is told of
    ends that nobody wanted. Whoever orders it about holds `lock`.
    """

    def __init__(self, program: Program, common: Common, tasks: TaskGroup, on_end: OnEnd) -> None:
        self.program = program
        self.state = Wanted(program.instances)
        self.lock = Lock()
        self._common = common
        self._tasks = tasks
        self._places: dict[int, Place] = {}
        owner = Owner(
            self._held_by_others, self._is_alone, lambda ended: on_end(program.name, ended),
            self._give_up,
        )  # fmt: skip
        self.aftermath = Aftermath(program, common, tasks, owner)

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def running(self) -> list[Running]:
        """What runs now, by its number."""
        places = [self._places[number] for number in sorted(self._places)]
        return [place.running for place in places if place.running is not None]

    def open(self, command: str = "") -> None:
        """Start what is wanted and has no place yet."""
        self._common.metrics.wanted.labels(self.name).set(self.state.count)
        for number in range(1, self.state.count + 1):
            if number not in self._places:
                place = Place(
                    self.program, number, self._common, self.aftermath.decide,
                    self.aftermath.suspects,
                )  # fmt: skip
                self._places[number] = place
                self._tasks.start_soon(self._keep, place, command)

    async def close(self, command: str = "") -> int:
        """End what runs and is not wanted, and wait until it is gone; returns how many.

        What had been ordered to end before is waited for as well: its place is free then.
        """
        self._order_the_rest_to_end(command)
        over = [place for place in self._places.values() if place.is_ending]
        for place in over:
            await place.ended.wait()
        return len(over)

    async def restart(
        self, command: str, *, instance: str = "", cause: str = "command", blames: bool = False
    ) -> list[Running]:
        """Start all again, or one instance; returns what runs in their places, when it does."""
        orders = [
            place.order(Order(command, again=True, cause=cause, blames=blames))
            for place in self._places.values()
            if not instance or (place.running and place.running.instance == instance)
        ]
        for order in orders:
            await order.done.wait()
        return [order.running for order in orders if order.running is not None]

    def restart_for(self, ended: str, reason: str) -> None:
        """Start all again since something else ended, `ended` being the id of that event."""
        what = Command(reason=reason, incident=ended)
        id = self._common.ledger.command(self.name, RESTART, what, also=self.name)
        for place in self._places.values():
            place.order(Order(id, again=True, cause="rest-for-one"))

    async def end(self) -> None:
        """End all of them, whatever is wanted, and wait until they are gone."""
        places = list(self._places.values())
        for place in places:
            place.order(Order(again=False))
        for place in places:
            await place.ended.wait()

    def is_ready(self) -> bool:
        """Whether as many run as are wanted, and answer."""
        beats, running = self._common.beats, self.running
        if len(running) < self.state.count:
            return False
        return all(
            beats.answers(each.instance)
            and (not self.program.beats or beats.has_started(each.instance))
            for each in running
        )

    async def first(self) -> Running | None:
        """One that runs, once those that are just opened do; None where none is to run."""
        for place in list(self._places.values()):
            await place.opened.wait()
        return self.running[0] if self.running else None

    def has(self, instance: str) -> bool:
        """Whether an instance of this name runs here now."""
        return any(running.instance == instance for running in self.running)

    def _order_the_rest_to_end(self, command: str) -> None:
        self._common.metrics.wanted.labels(self.name).set(self.state.count)
        over = [place for number, place in self._places.items() if number > self.state.count]
        for place in over:
            place.order(Order(command, again=False))

    def _give_up(self, why: GiveUp) -> None:
        self.state = replace(self.state, quarantined=True, reason=why.reason)
        self._order_the_rest_to_end("")

    def _held_by_others(self, than: Running) -> set[str] | None:
        running = self.running
        others = [each for each in running if each is not than]
        names = {each.instance for each in running}
        if not others or not self.program.supervised or self._common.beats.others(self.name, names):
            return None
        return {estate.place(left) for each in others for left in each.left()}

    def _is_alone(self, running: Running) -> bool:
        names = {each.instance for each in self.running}
        return names <= {running.instance} and not self._common.beats.others(self.name, names)

    async def _keep(self, place: Place, command: str) -> None:
        try:
            await place.keep(command)
        finally:
            if self._places.get(place.number) is place:
                del self._places[place.number]
