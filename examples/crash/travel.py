"""An agent to kill: it books a trip in steps of two seconds each, waits, and pays.

What a step has done is in the journal when it returns, so a killed agent goes on with the step it
was in. Whatever is done outside is written to `.stratum/outside.log`, to see that.
"""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct

from stratum_agents import Agent, Run
from stratum_bus import Event

STEP_SECONDS = 2.0
OUTSIDE = Path(__file__).parent / ".stratum" / "outside.log"

agent = Agent("travel")


class Trip(Struct):
    to: str


def book(what: str, to: str, idempotency_key: str) -> str:
    """Book at another company. The key tells it that a second request is the first one again."""
    time.sleep(STEP_SECONDS)
    OUTSIDE.parent.mkdir(exist_ok=True)
    with OUTSIDE.open("a") as log:
        log.write(f"{idempotency_key} booked a {what} in {to}\n")
    return f"{what} in {to}, booked"


@agent.on("trip.asked")
async def handle(run: Run, event: Event[Trip]) -> str:
    to = event.data.to
    flight = await run.step("book flight", book, "flight", to)
    hotel = await run.step("book hotel", book, "hotel", to)
    await run.send("traveller", "trip.booked", {"flight": flight, "hotel": hotel})
    await run.sleep(seconds=3)
    return await run.step("pay", book, "receipt", to)


def create() -> Agent:
    return agent
