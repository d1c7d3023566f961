"""The metrics of projections for Prometheus: name, meaning and what fills each stand here.

They are what a running projector says of itself over NATS, so `stratum up` serves them without
having its file. Where it says nothing there are none: an old value is worse than no value.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from stratum_bus.bus import Bus
from stratum_bus.errors import ProjectorError, QueryError, StratumError
from stratum_bus.tasks import task_group
from stratum_projections.manage import State, states

EVERY_SECONDS = 2.0
ANSWER_SECONDS = 2.0
STALE_SECONDS = 10.0
"""How old an answer may be and still be shown."""

log = logging.getLogger("stratum.projector")

_Value = Callable[[State], float | None]

COUNTERS: dict[str, tuple[str, _Value]] = {
    "events": ("Events that its batches held, since the projector started.", lambda s: s.events),
    "batches": ("Batches committed, since the projector started.", lambda s: s.batches),
    "seconds": ("Seconds spent in its statements, since it started.", lambda s: s.seconds),
}
GAUGES: dict[str, tuple[str, _Value]] = {
    "lag_events": ("Events of the log that its tables do not reflect yet.", lambda s: s.lag_events),
    "lag_seconds": (
        "How old the last event is that they reflect; 0 where all is.",
        lambda s: s.lag_seconds,
    ),
    "quarantined": ("Events kept from it, with the reason.", lambda s: s.quarantined),
    "paused": ("1 while it is paused.", lambda s: float(s.status == "paused")),
    "built_ratio": (
        "While it is built anew: how much of the log is done, 0 to 1.",
        lambda s: s.building.sequence / max(1, s.building.end) if s.building else None,
    ),
}
"""Each is `stratum_projection_<name>` with the label `projection`; a counter ends in `_total`."""


class Metrics(Collector):
    """A collector of what was `told` last; none of it when that is `stale_seconds` ago."""

    def __init__(self, stale_seconds: float = STALE_SECONDS) -> None:
        self._stale_seconds = stale_seconds
        self._told: tuple[float, Sequence[State]] = (0.0, ())

    def told(self, states: Sequence[State]) -> None:
        """What the projector says now; nothing where none answers."""
        self._told = (time.monotonic(), states)

    def collect(self) -> Iterator[Metric]:
        """For the thread that serves the page: it waits for nobody."""
        at, states = self._told
        if time.monotonic() - at > self._stale_seconds:
            states = ()
        for kinds, family in ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily)):
            for name, (meaning, value_of) in kinds.items():
                metric = family(f"stratum_projection_{name}", meaning, labels=("projection",))
                for state in states:
                    if (value := value_of(state)) is not None:
                        metric.add_metric((state.name,), value)
                yield metric


async def follow(bus: Bus, metrics: Metrics, projector: str = "main") -> None:
    """Ask the projector again and again, for ever."""
    while True:
        try:
            with anyio.fail_after(ANSWER_SECONDS):
                metrics.told(await states(bus, projector))
        except QueryError:
            metrics.told(())
        except (StratumError, TimeoutError) as error:
            if bus.connection.closed:
                raise
            log.debug("no answer about projections: %s", error)
        await anyio.sleep(EVERY_SECONDS)


@asynccontextmanager
async def served(
    bus: Bus, host: str, port: int | None, projector: str = "main"
) -> AsyncIterator[None]:
    """Serve a page with them alone, in a thread; none without a port.

    Raises ProjectorError where the port cannot be had.
    """
    if port is None:
        yield
        return
    registry, metrics = CollectorRegistry(), Metrics()
    registry.register(metrics)
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ProjectorError("file", f"{host}:{port} cannot be served ({reason})") from error
    try:
        async with task_group() as tasks:
            tasks.start_soon(follow, bus, metrics, projector)
            yield
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(server.shutdown)
        server.server_close()
