"""The faults, each done to a living system and waited for until it is over by itself."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

import anyio
from msgspec import Struct, field

from stratum_bus import subject
from stratum_bus.bus import Bus
from stratum_bus.event import new
from tests.chaos.installation import AGENTS, Installation
from tests.chaos.log import Case
from tests.chaos.watch import TooLate, Watch

HEAL_SECONDS = 180.0
"""How long a fault may take to be over. It is waited for, so a slow machine only needs longer."""

FULL_SECONDS = 4.0
JUMPS_SECONDS = (-86_400.0, -3600.0, 3600.0, 86_400.0)
JUMPED_BEATS = 6
"""How many beats of an instance have to tell the time that it was set to."""


class Fault(Struct, kw_only=True):
    """One fault as it was done. `sequence` is that of the message that did it, where one did.

    `at` and `over` say from when to when it was; `figures` are seconds, each by what was measured.
    """

    kind: str
    agent: str = ""
    instance: str = ""
    sequence: int = 0
    at: float = 0.0
    over: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


class Hands(Struct, frozen=True):
    """What a fault is done with."""

    bus: Bus
    watch: Watch
    installation: Installation
    chance: random.Random


Do = Callable[[Hands, Fault], Awaitable[None]]


async def kill_agent(hands: Hands, fault: Fault) -> None:
    """kill -9: the supervisor sees it at once."""
    pid = await _victim(hands, fault)
    await _kill(fault, pid, signal.SIGKILL)
    case = await _named_and_over(hands, fault, "dead", instance=fault.instance)
    _replaced(hands, fault, case)


async def stop_agent(hands: Hands, fault: Fault) -> None:
    """SIGSTOP: nobody sees it, it only falls silent."""
    pid = await _victim(hands, fault)
    await _kill(fault, pid, signal.SIGSTOP)
    case = await _named_and_over(hands, fault, "dead", instance=fault.instance)
    _replaced(hands, fault, case)


async def poison(hands: Hands, fault: Fault) -> None:
    """A message that kills whoever takes it."""
    await _send(hands, fault, "chaos.poison")
    await _parked(hands, fault)


async def block(hands: Hands, fault: Fault) -> None:
    """A handler that blocks the event loop for ever."""
    await _send(hands, fault, "chaos.block")
    named = await _named(hands, fault, "blocked")
    fault.figures["noticed"] = named.opened.time - fault.at
    await _parked(hands, fault)


async def spin(hands: Hands, fault: Fault) -> None:
    """A handler that goes round and round, and never gets anywhere."""
    await _send(hands, fault, "chaos.spin")
    named = await _named(hands, fault, "stuck")
    fault.figures["noticed"] = named.opened.time - fault.at
    await _parked(hands, fault)


async def loop(hands: Hands, fault: Fault) -> None:
    """A run that asks the same again and again."""
    before = {case.id for case in hands.watch.cases("looping", fault.agent)}
    await _send(hands, fault, "chaos.loop")

    def ended() -> list[Case]:
        found = hands.watch.cases("looping", fault.agent)
        return [case for case in found if case.id not in before and case.closed]

    [case, *_] = await hands.watch.until(ended, f"{fault} is cancelled", HEAL_SECONDS)
    fault.figures["noticed"] = case.opened.time - fault.at
    fault.figures["over"] = case.closed[0].time - fault.at


async def leak(hands: Hands, fault: Fault) -> None:
    """An instance that takes more and more memory."""
    before = {case.id for case in hands.watch.cases("memory", fault.agent)}
    await _send(hands, fault, "chaos.leak")

    def ended() -> list[Case]:
        found = hands.watch.cases("memory", fault.agent)
        return [case for case in found if case.id not in before and case.closed]

    [case, *_] = await hands.watch.until(ended, f"{fault} is over", HEAL_SECONDS)
    fault.instance = case.instance
    fault.figures["noticed"] = case.opened.time - fault.at
    fault.figures["over"] = case.closed[0].time - fault.at


async def kill_projector(hands: Hands, fault: Fault) -> None:
    await _kill_part(hands, fault, "projector")


async def kill_health(hands: Hands, fault: Fault) -> None:
    await _kill_part(hands, fault, "health")


async def kill_supervisor(hands: Hands, fault: Fault) -> None:
    """kill -9 of `stratum up`: everything dies with it, the server too."""
    fault.agent = "supervisor"
    agents = hands.installation.agents
    starts = [each for name in agents for each in hands.watch.running(name)]
    fault.instance = starts[-1].data["supervisor"]
    last = hands.watch.seen[-1].sequence
    await _kill(fault, hands.installation.pid, signal.SIGKILL)

    def in_charge() -> bool:
        return all(hands.watch.started_after(name, last) for name in agents)

    await hands.watch.until(in_charge, "the next supervisor is in charge", HEAL_SECONDS)
    starts = [each for name in agents if (each := hands.watch.started_after(name, last))]
    fault.figures["in charge"] = max(each.time for each in starts) - fault.at
    case = await _named_and_over(hands, fault, "dead", instance=fault.instance)
    fault.figures["noticed"] = case.opened.time - fault.at


async def kill_server(hands: Hands, fault: Fault) -> None:
    """kill -9 of nats-server."""
    fault.agent = "server"
    pid = hands.installation.server_pid()
    before = {case.id for case in hands.watch.cases("away", "server")}
    await _kill(fault, pid, signal.SIGKILL)
    event = new("chaos.probe", None, source="/chaos")
    await hands.bus.publish(subject.topic("chaos", event.type), event)
    fault.figures["takes events again"] = time.time() - fault.at
    await _away(hands, fault, before)


async def full_disk(hands: Hands, fault: Fault) -> None:
    """No room for a while: nothing can be stored, and the server hangs even when there is room."""
    fault.agent = "server"
    before = {case.id for case in hands.watch.cases("away", "server")}
    fault.at = time.time()
    ballast = await anyio.to_thread.run_sync(hands.installation.fill_disk)
    await anyio.sleep(FULL_SECONDS)
    ballast.unlink()
    freed = time.time()
    event = new("chaos.probe", None, source="/chaos")
    await hands.bus.publish(subject.topic("chaos", event.type), event)
    fault.figures["takes events again"] = time.time() - freed
    await _away(hands, fault, before)


async def clock_jump(hands: Hands, fault: Fault) -> None:
    """The clock of one process jumps by an hour or a day. Nothing is wrong with it for that."""
    fault.agent = hands.chance.choice((*PARTS, "supervisor"))
    jump = hands.chance.choice(JUMPS_SECONDS)
    if fault.agent == "supervisor":
        starts = [each for name in AGENTS for each in hands.watch.running(name)]
        fault.instance, pid = starts[-1].data["supervisor"], hands.installation.pid
    else:
        pid = await _victim(hands, fault)
    fault.at = time.time()
    hands.installation.set_clock(pid, jump)
    with anyio.move_on_after(HEAL_SECONDS) as waiting:
        await _beats_by(hands, fault, jump)
    if waiting.cancelled_caught:
        raise TooLate(f"{fault} is not seen in its beats")
    fault.figures["seen"] = time.time() - fault.at


async def _beats_by(hands: Hands, fault: Fault, jump: float) -> None:
    """Wait until beats of the instance say what time it has, and it has gone on for a while."""
    place, seen = subject.health(fault.agent, fault.instance), 0
    async with hands.bus.read("HEALTH", filters=[place], start=None, follow=True) as reader:
        async for message in reader:
            said = message.event().time
            ahead = (said - message.time).total_seconds() if said else 0.0
            seen += abs(ahead - jump) < abs(jump) / 2
            if seen == JUMPED_BEATS:
                return


FAULTS: dict[str, Do] = {
    each.__name__: each
    for each in (
        kill_agent, stop_agent, poison, block, spin, loop, leak, kill_projector, kill_health,
        kill_supervisor, kill_server, full_disk, clock_jump,
    )
}  # fmt: skip

PARTS = (*AGENTS, "health", "projector")
FROM_OUTSIDE = ("kill_agent", "stop_agent")
FROM_INSIDE = ("poison", "block", "spin", "loop", "leak")
"""What is done to an agent by a signal, and by a message that its handler makes something of."""


async def do(hands: Hands, kind: str) -> Fault:
    """Do a fault, and wait until it is over. Raises TooLate."""
    fault = Fault(kind=kind)
    if kind in FROM_OUTSIDE:
        fault.agent = hands.chance.choice(hands.installation.agents)
    elif kind in FROM_INSIDE:
        fault.agent = hands.chance.choice(AGENTS)
    await FAULTS[kind](hands, fault)
    await hands.watch.until(hands.watch.calm, f"all is calm after {fault}", HEAL_SECONDS)
    fault.over = time.time()
    await until_ready(hands.watch, hands.installation)
    return fault


async def until_ready(watch: Watch, installation: Installation) -> None:
    """Wait until nobody is just starting: who has not begun to look cannot see. Raises TooLate."""
    parts = {*PARTS, *installation.agents}
    await watch.until(lambda: watch.ready(parts), "all that runs has started", HEAL_SECONDS)


async def _victim(hands: Hands, fault: Fault) -> int:
    """An instance of the agent that runs now; returns its process."""
    running = await hands.watch.until(
        lambda: hands.watch.running(fault.agent), f"{fault.agent} runs", HEAL_SECONDS
    )
    start = hands.chance.choice(running)
    fault.instance = start.data["instance"]
    return int(start.data["pid"])


async def _kill(fault: Fault, pid: int, sign: signal.Signals) -> None:
    fault.at = time.time()
    os.kill(pid, sign)


async def _kill_part(hands: Hands, fault: Fault, name: str) -> None:
    fault.agent = name
    pid = await _victim(hands, fault)
    await _kill(fault, pid, signal.SIGKILL)
    case = await _named_and_over(hands, fault, "dead", instance=fault.instance)
    _replaced(hands, fault, case)


async def _send(hands: Hands, fault: Fault, type: str) -> None:
    event = new(type, "this hurts", source="/agents/chaos")
    ack = await hands.bus.publish(subject.inbox(fault.agent, "chaos", type), event)
    fault.sequence, fault.at = ack.sequence, time.time()


async def _named(hands: Hands, fault: Fault, kind: str) -> Case:
    """The first incident that names the message of the fault."""
    place = f"LOG-{fault.sequence}"

    def named() -> Case | None:
        for case in hands.watch.cases(kind, fault.agent):
            if place in (case.evidence.get("message"), *case.evidence.get("begun", ())):
                return case
        return None

    return await hands.watch.until(named, f"{fault} is named {kind}", HEAL_SECONDS)


async def _named_and_over(hands: Hands, fault: Fault, kind: str, **match: str) -> Case:
    what = f"{fault} is named and over"
    watch = hands.watch
    case = await watch.until(lambda: watch.over(kind, fault.agent, **match), what, HEAL_SECONDS)
    fault.figures["noticed"] = case.opened.time - fault.at
    return case


def _replaced(hands: Hands, fault: Fault, case: Case) -> None:
    """When another process had been started in its place."""
    for each in hands.watch.seen:
        started = each.subject == f"control.{fault.agent}.started"
        if started and each.time > fault.at and each.data["instance"] != fault.instance:
            fault.figures["replaced"] = each.time - fault.at
            return


async def _parked(hands: Hands, fault: Fault) -> None:
    """The message is a dead letter, the incident closed, and the agent goes on with the next."""
    watch, place = hands.watch, f"LOG-{fault.sequence}"
    letter = await watch.until(
        lambda: watch.letter(fault.sequence), f"{fault} is parked", HEAL_SECONDS
    )
    fault.figures["parked"] = letter.time - fault.at
    await watch.until(
        lambda: watch.over("poison", fault.agent, about=place), f"{fault} is over", HEAL_SECONDS
    )


async def _away(hands: Hands, fault: Fault, before: set[str]) -> None:
    def named() -> Case | None:
        for case in hands.watch.cases("away", "server"):
            if case.id not in before and case.closed:
                return case
        return None

    case = await hands.watch.until(named, f"{fault} is named", HEAL_SECONDS)
    fault.figures["noticed"] = case.opened.time - fault.at
