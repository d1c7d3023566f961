"""One instance of an agent: from a delivered event to a completed run."""

from __future__ import annotations

import logging

import anyio

from stratum_agents.agent import Agent
from stratum_agents.run import Run
from stratum_bus.bus import Bus
from stratum_bus.consume import Delivery, Done, Outcome, Retry, consume
from stratum_bus.event import typed
from stratum_bus.tasks import task_group

log = logging.getLogger("stratum.worker")


async def work(
    bus: Bus,
    agent: Agent,
    *,
    stop: anyio.Event,
    concurrency: int | None = None,
    ack_wait_seconds: float = 30.0,
    retry: Retry | None = None,
    grace_seconds: float = 10.0,
) -> None:
    """Run one instance of `agent` until `stop` is set; see `consume` for what is promised."""

    async def handle(delivery: Delivery) -> Outcome:
        return await perform(bus, agent, delivery)

    async with task_group() as tasks:
        for task in agent.tasks:
            tasks.start_soon(task, bus, stop)
        log.info("%s is ready", agent.name)
        await consume(
            bus,
            agent.name,
            handle,
            stop=stop,
            follows=agent.follows,
            concurrency=min(concurrency or agent.concurrency, agent.concurrency),
            ack_wait_seconds=ack_wait_seconds,
            retry=retry,
            grace_seconds=grace_seconds,
        )
        tasks.cancel_scope.cancel()


async def perform(bus: Bus, agent: Agent, delivery: Delivery) -> Outcome:
    """Handle one delivery in a run of its own and commit what it did."""
    handler = agent.handler_for(delivery.event.type)
    if handler is None:
        log.debug("%s has no handler for %s", agent.name, delivery.event.type)
        return Done()
    event = typed(delivery.event, handler.data)
    run = Run(bus, agent.name, delivery.event, delivery.message, delivery.attempt)
    outcome = await handler.function(run, event) or Done()
    if not isinstance(outcome, Done):
        return outcome
    if not await run.complete(handler.type):
        log.info("%s: run %s of %s was complete already", agent.name, run.id, event.id)
    return Done()
