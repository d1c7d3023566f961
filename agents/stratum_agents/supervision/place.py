"""The place of one instance: one process at a time, started again as its keeper decides."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress

import anyio
from msgspec import Struct

from stratum_agents.supervision import running as processes
from stratum_agents.supervision.common import Common
from stratum_agents.supervision.program import Program
from stratum_agents.supervision.running import Running
from stratum_bus.control import Outcome, Started
from stratum_bus.errors import ConnectionLost
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.supervisor")

UNANSWERED_GRACE_SECONDS = 1.0
"""For a process that would not notice that it is asked to stop: it is blocked, or silent."""

NO_PROCESS_SECONDS = 1.0
"""Where the system has no process to give, it is asked again after this time."""

_WAIT_SECONDS = 5.0


class Order:
    """That a process is to end now, and (`again`) another one to take its place.

    `command` is the id of the command behind it, `cause` one of `metrics.CAUSES`. `blames`: the
    process was found to be at fault. `running` is what runs when `done` is set.
    """

    def __init__(
        self, command: str = "", *, again: bool, cause: str = "command", blames: bool = False
    ) -> None:
        self.command = command
        self.again = again
        self.cause = cause
        self.blames = blames
        self.done = anyio.Event()
        self.running: Running | None = None


class Next(Struct, frozen=True):
    """What is done at an end: start again after the delay, for a command (its id)."""

    delay_seconds: float
    command: str


Decide = Callable[[Running, int, Sequence[Order]], Awaitable[Next | None]]
"""What follows the end of a process with this exit code, ended by these orders (none: by itself).
None: nothing, its place is given up."""


class Place:
    """`number` counts from 1. `suspects` are handled alone by what is started here.

    `is_ending`: it was ordered to end. `opened` is set when the first process is started, `ended` when there will be no more.
    """

    def __init__(
        self,
        program: Program,
        number: int,
        common: Common,
        decide: Decide,
        suspects: Callable[[], Collection[str]],
    ) -> None:
        self.program = program
        self.number = number
        self.running: Running | None = None
        self.is_ending = False
        self.opened, self.ended = anyio.Event(), anyio.Event()
        self._common = common
        self._decide = decide
        self._suspects = suspects
        self._orders: list[Order] = []
        self._ordered = anyio.Event()

    @property
    def label(self) -> str:
        """As it is called to a reader."""
        return self.program.name if self.number == 1 else f"{self.program.name} {self.number}"

    def order(self, order: Order) -> Order:
        """Give an order; what ends the place goes before what starts it again."""
        self._orders.append(order)
        self._ordered.set()
        self.is_ending |= not order.again
        return order

    async def keep(self, command: str = "") -> None:
        """Keep a process running until it is ordered to end, or given up."""
        orders: list[Order] = []
        again = False
        try:
            while await self._until_server():
                next: Next | None = Next(NO_PROCESS_SECONDS, command)
                if self._start(command, again):
                    _finish(orders, self.running)
                    orders = await self._until_over()
                    next = await self._after_end(orders)
                    again = True
                if next is None:
                    return
                command = next.command
                orders += await self._delay(next)
                if not all(order.again for order in orders):
                    self._unexecuted(command)
                    return
        finally:
            self._gone()
            _finish([*orders, *self._orders], None)
            self.opened.set()
            self.ended.set()

    async def _after_end(self, orders: Sequence[Order]) -> Next | None:
        running, ended_at = self.running, time.monotonic()
        assert running is not None
        await running.end(self._grace_seconds(running) if orders else 0.0)
        try:
            next = await self._decide(running, running.child.exit_code or 0, orders)
        except Exception:  # a mistake of ours must not be the end of what we supervise
            log.exception("%s: what follows its end could not be decided", self.label)
            next = Next(NO_PROCESS_SECONDS, "")
        self._gone()
        if next is not None and not orders:
            seconds = time.monotonic() - ended_at + next.delay_seconds
            self._common.metrics.replaced.observe(seconds)
        return next

    def _grace_seconds(self, running: Running) -> float:
        grace = self.program.grace_seconds
        if not self._common.beats.answers(running.instance):
            return min(grace, UNANSWERED_GRACE_SECONDS)
        return grace

    def _start(self, command: str, again: bool) -> bool:
        """False where the system has no process to give just now."""
        name, common = self.program.name, self._common
        try:
            running = processes.start(self.program, self.number, self._suspects(), common.spares)
        except OSError as error:
            common.say(f"{self.label}: cannot be started ({error}), again soon")
            return False
        self.running = running
        self.opened.set()
        how = "started again" if again else "started"
        warm = " from a warm spare" if running.warm else ""
        common.say(f"{self.label}: {how}{warm} (pid {running.pid})")
        common.metrics.running.labels(name).inc()
        started = Started(
            instance=running.instance, pid=running.pid, host=running.host, slot=self.number,
            warm=running.warm, command=command, supervisor=common.instance,
        )  # fmt: skip
        common.ledger.started(name, started)
        if command in common.ledger.own:
            done = Outcome(
                command=command, done=True, detail=how, pid=running.pid, instance=running.instance
            )
            common.ledger.outcome(name, done)
        return True

    async def _until_server(self) -> bool:
        """Nothing can start without a server; False where it is ordered to end meanwhile."""
        connection = self._common.bus.connection
        while not connection.connected:
            with suppress(ConnectionLost):
                await connection.wait_connected(_WAIT_SECONDS)
            if connection.closed or not all(order.again for order in self._orders):
                return False
        return True

    async def _until_over(self) -> list[Order]:
        """The orders that end the process; none where it ends by itself."""
        assert self.running is not None
        child = self.running.child
        async with task_group() as tasks:

            async def ended() -> None:
                await child.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(ended)
            await self._ordered.wait()
            tasks.cancel_scope.cancel()
        return self._taken() if child.exit_code is None else []

    async def _delay(self, next: Next) -> list[Order]:
        """Wait before the next start, or until there are orders."""
        with anyio.move_on_after(next.delay_seconds):
            await self._ordered.wait()
        return self._taken()

    def _taken(self) -> list[Order]:
        orders, self._orders = self._orders, []
        self._ordered = anyio.Event()
        return orders

    def _unexecuted(self, command: str) -> None:
        if command in self._common.ledger.own:
            what = Outcome(command=command, done=False, detail="it was ended meanwhile")
            self._common.ledger.outcome(self.program.name, what)

    def _gone(self) -> None:
        if self.running is not None:
            self.running.child.kill()  # it lives only where we are cancelled
            self._common.metrics.running.labels(self.program.name).dec()
            self._common.beats.forget(self.running.instance)
            self.running.forget()
            self.running = None


def _finish(orders: Iterable[Order], running: Running | None) -> None:
    for order in orders:
        order.running = running
        order.done.set()
