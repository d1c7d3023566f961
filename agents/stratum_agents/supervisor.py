"""The supervisor: keeps the processes of agents and of Stratum's own parts running.

It waits on its children, so it sees an end at once: what the process had in hand is given to others,
a spare process takes its place. It executes the commands of the log, and writes down what it did.
When it dies itself its children die with it, and the next one starts anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import anyio

from stratum_agents.supervision import incidents
from stratum_agents.supervision.beats import Beats
from stratum_agents.supervision.common import Common, Say
from stratum_agents.supervision.desk import FILTERS, Desk
from stratum_agents.supervision.keeper import Keeper
from stratum_agents.supervision.ledger import Ledger
from stratum_agents.supervision.metrics import Metrics
from stratum_agents.supervision.probes import Part, Status
from stratum_agents.supervision.program import Program, python
from stratum_agents.supervision.running import Spares
from stratum_agents.worker import new_instance
from stratum_bus import heartbeat
from stratum_bus.bus import Bus, connect
from stratum_bus.config import Config
from stratum_bus.consume import consume
from stratum_bus.errors import StratumError
from stratum_bus.heartbeat import Vitals, beating
from stratum_bus.supervision import REST_FOR_ONE
from stratum_bus.tasks import task_group

__all__ = ["Program", "Say", "Supervisor", "python"]

log = logging.getLogger("stratum.supervisor")

NAME = "supervisor"
PATIENCE_SECONDS = 3.0
READY_POLL_SECONDS = 0.05
LEDGER_SECONDS = 3.0
"""How long a supervisor that ends waits for its last events to be written."""


class Supervisor:
    """Runs `programs`; made and run by its caller. `say` gets a line for each fact.

    `opened` is set when all that is to run has been started once. `spare` is what a spare process
    runs, None for no spares. Agents are in the order of
    stratum.toml, which is that of rest-for-one.
    """

    def __init__(
        self, config: Config, programs: Sequence[Program], say: Say, spare: Program | None = None
    ) -> None:
        self._config = config
        self._programs = programs
        self._say = say
        self._spare = spare
        self.metrics = Metrics()
        self.vitals = Vitals(NAME, heartbeat.SUPERVISOR, new_instance())
        self.beats = Beats(self.metrics.heard)
        self.keepers: dict[str, Keeper] = {}
        self.connected: Callable[[], bool] = lambda: False
        self.opened = anyio.Event()

    async def run(self, url: str, *, stop: anyio.Event) -> None:
        """Until `stop` is set; then end them in order: agents, then the rest. Raises
        ConnectionLost where no server answers at the start."""
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(url, name=NAME))
            every = self._config.supervisor.beat_seconds
            await stack.enter_async_context(beating(url, self.vitals, every_seconds=every))
            names = [program.name for program in self._programs]
            await stack.enter_async_context(self.beats.heard(bus, names))
            self.connected = lambda: bus.connection.connected
            await self._run(bus, stop)

    async def _run(self, bus: Bus, stop: anyio.Event) -> None:
        settings = self._config.supervisor
        ledger = Ledger(bus, self._written)
        spares = Spares(self._spare, settings.spares)
        common = Common(
            settings, bus, ledger, spares, self.beats, self.metrics, self._say,
            self.vitals.instance,
        )  # fmt: skip
        async with task_group() as writing:
            writing.start_soon(ledger.run)
            async with task_group() as tasks:
                for program in self._programs:
                    keeper = Keeper(program, common, tasks, self._on_end)
                    self.keepers[program.name] = keeper
                desk = Desk(common, self.keepers)
                await desk.prepare()
                for keeper in self.keepers.values():
                    if keeper.program.urgent:
                        self._open(keeper)
                    else:
                        tasks.start_soon(self._open_later, keeper)
                self.vitals.set_ready()
                self.opened.set()
                async with task_group() as helping:
                    helping.start_soon(spares.keep)
                    helping.start_soon(incidents.count, bus, self.metrics)
                    await self._obey(bus, desk, stop)
                    helping.cancel_scope.cancel()
                self.vitals.set_stopping()
                await self._close()
                tasks.cancel_scope.cancel()
            await ledger.written(LEDGER_SECONDS)
            writing.cancel_scope.cancel()

    async def _obey(self, bus: Bus, desk: Desk, stop: anyio.Event) -> None:
        while not stop.is_set():
            try:
                await consume(
                    bus, self._config.supervisor.name, desk.handle, stop=stop, filters=FILTERS,
                    concurrency=32, grace_seconds=1.0,
                )  # fmt: skip
            except StratumError as error:
                # Without commands it still mends what ends.
                self._say(f"supervisor: commands cannot be read ({error}), again soon")
                with anyio.move_on_after(PATIENCE_SECONDS):
                    await stop.wait()

    def _open(self, keeper: Keeper) -> None:
        state = keeper.state
        if not state.count:
            what = "quarantined" if state.quarantined else "stopped"
            why = f" ({state.reason})" if state.reason else ""
            mend = f"start it with `stratum agent start {keeper.name}`"
            self._say(f"{keeper.name}: {what} since {state.since}{why}; {mend}")
        keeper.open()

    async def _open_later(self, keeper: Keeper) -> None:
        """Open it when the others have come up: they need the processors now."""
        urgent = [each for each in self.keepers.values() if each.program.urgent]
        with anyio.move_on_after(PATIENCE_SECONDS):
            while not all(each.is_ready() for each in urgent):  # noqa: ASYNC110 - of many things
                await anyio.sleep(READY_POLL_SECONDS)
        async with keeper.lock:
            self._open(keeper)

    async def _close(self) -> None:
        """End all, agents first: they still have things to tell."""
        for are_agents in (True, False):
            async with task_group() as ending:
                for keeper in self.keepers.values():
                    if keeper.program.is_agent == are_agents:
                        ending.start_soon(keeper.end)

    def _on_end(self, name: str, ended: str) -> None:
        """With rest-for-one, those behind it in the file are started again, too."""
        agents = [program.name for program in self._programs if program.is_agent]
        if self._config.supervisor.strategy != REST_FOR_ONE or name not in agents:
            return
        for later in agents[agents.index(name) + 1 :]:
            if (keeper := self.keepers[later]).running:
                keeper.restart_for(ended, f"rest-for-one: {name} ended")

    def status(self) -> Status:
        """What is wanted and what runs; ready where they agree and all answer."""
        parts = {
            name: Part(
                keeper.state.count, len(keeper.running), keeper.is_ready(),
                keeper.state.quarantined,
            )
            for name, keeper in list(self.keepers.items())
        }  # fmt: skip
        is_ready = self.connected() and bool(parts) and all(p.ready for p in parts.values())
        return Status(is_ready, self.connected(), parts)

    def _written(self) -> None:
        self.vitals.progress += 1
        self.metrics.events.inc()
