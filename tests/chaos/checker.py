"""The proof: from the log alone, by rules that know nothing of the code that wrote it.

Every accepted order handled, its effects there exactly once; every fault named rightly and once,
nothing named that was not done; no restart without a command, no command without a cause; nobody
runs twice; the whole at rest at the end.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
from msgspec import Struct

from stratum_bus.bus import Bus
from stratum_bus.errors import StratumError
from tests.chaos import incidents, restarts
from tests.chaos.faults import Fault
from tests.chaos.installation import NODE
from tests.chaos.log import Entry, cases, read_all
from tests.chaos.watch import TooLate

SHOWN = 5
LETTERED = "stratum.dead.lettered"
PARKED_BY = ("poison", "block", "spin")
"""Faults whose message becomes a dead letter."""


class Facts(Struct, frozen=True):
    """What the harness did and was told; all else is read from the log."""

    accepted: Mapping[str, int]
    unknown: Sequence[str]
    faults: Sequence[Fault]
    effects: str
    agents: Sequence[str]


async def until_settled(bus: Bus, agents: Iterable[str], seconds: float) -> None:
    """Wait until nothing waits, nothing is in hand, and no incident is open. Raises TooLate."""
    give_up, left = time.monotonic() + seconds, ["everything"]
    while left:
        if time.monotonic() > give_up:
            raise TooLate(f"not at rest within {seconds:g} s: {', '.join(left)}")
        await anyio.sleep(0.2)
        try:
            left = await _restless(bus, agents)
        except StratumError as error:
            left = [str(error)]


async def _restless(bus: Bus, agents: Iterable[str]) -> list[str]:
    found = []
    for agent in agents:
        info = await bus.connection.api(f"CONSUMER.INFO.LOG.{agent}")
        if info["num_pending"] or info["num_ack_pending"]:
            found.append(
                f"{agent} has {info['num_pending']} waiting, {info['num_ack_pending']} in hand"
            )
    log = await read_all(bus, "control.*.incident")
    return found + [f"{case} is open" for case in cases(log) if not case.closed]


async def check(bus: Bus, facts: Facts) -> tuple[dict[str, Any], list[str]]:
    """Figures of the log, and what is wrong in it, in sentences."""
    log = await read_all(bus)
    _works_again(log, facts)
    starts = [each for each in log if each.type == "stratum.control.started"]
    summary = {
        "events": len(log),
        "incidents": dict(Counter(case.kind for case in cases(log))),
        "restarts": sum(1 for each in starts if each.data.get("command")),
        "dead_letters": sum(1 for each in log if each.type == LETTERED),
    }
    return summary, prove(log, facts)


def prove(log: Sequence[Entry], facts: Facts) -> list[str]:
    """What is wrong, in sentences; nothing where all is as it should be."""
    return [
        *_orders(log, facts),
        *_outside(log, facts),
        *_letters(log, facts),
        *incidents.check(log, facts.faults),
        *restarts.check(log),
    ]


def _works_again(log: Sequence[Entry], facts: Facts) -> None:
    """Add to each fault of an agent how long it took to its next entry in a journal; where a message
    had to be set aside, from then on."""
    for fault in facts.faults:
        if fault.agent not in facts.agents:
            continue
        since, prefix = fault.at + fault.figures.get("parked", 0.0), f"run.{fault.agent}."
        after = next((e for e in log if e.time > since and e.subject.startswith(prefix)), None)
        if after is not None:
            fault.figures["works again"] = after.time - since


def _orders(log: Sequence[Entry], facts: Facts) -> list[str]:
    """Each order once in the log, and everything that has to follow from it once."""
    problems: list[str] = []
    placed = [each for each in log if each.type == "order.placed"]
    at = {each.id: each.sequence for each in placed}
    lost = [id for id in facts.accepted if id not in at]
    twice = [id for id, count in Counter(each.id for each in placed).items() if count > 1]
    moved = [i for i, sequence in facts.accepted.items() if at.get(i, sequence) != sequence]
    _none(problems, "accepted orders are not in the log", lost)
    _none(problems, "orders are in the log twice", twice)
    _none(problems, "orders are at another place than was acknowledged", moved)
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for each in log:
        if each.conversation in at and each.type in _WANTED:
            follows[each.conversation][f"{each.type} {each.subject.rpartition('.')[0]}"] += 1
        elif each.type == "stratum.run.completed" and each.conversation in at:
            follows[each.conversation][f"run of {each.agent}"] += 1
    wanted = (*_FOLLOWS, *(_FOLLOWS_IN_NODE if NODE in facts.agents else ()))
    for id, sequence in at.items():
        count = follows[id]
        wrong = [f"{what} {count[what]} times" for what in wanted if count[what] != 1]
        more = [f"{what} {n} times" for what, n in count.items() if what not in wanted]
        if wrong or more:
            problems.append(f"order {id} at {sequence}: {', '.join(wrong + more)}, not once each")
    return problems


_WANTED = (
    "part.wanted", "part.made", "part.ready", "text.written", "text.counted", "stratum.memory.noted",
)  # fmt: skip
_FOLLOWS = (
    "part.wanted inbox.smith.clerk.part",
    "text.written inbox.words.clerk.text",
    "part.made topic.smith.part",
    "part.ready inbox.porter.smith.part",
    "stratum.memory.noted memory.clerk",
    "stratum.memory.noted memory.porter",
    "run of clerk",
    "run of smith",
    "run of porter",
)
_FOLLOWS_IN_NODE = (
    "text.counted inbox.clerk.words.text",
    "stratum.memory.noted memory.words",
    "run of words",
)


def _outside(log: Sequence[Entry], facts: Facts) -> list[str]:
    """An effect outside of the log may be tried again, always with the same key."""
    problems: list[str] = []
    keys: dict[str, set[str]] = defaultdict(set)
    for line in facts.effects.splitlines():
        order, _, key = line.partition(" ")
        keys[order].add(key)
    orders = {each.id for each in log if each.type == "order.placed"}
    _none(problems, "orders without their effect outside", orders - keys.keys())
    _none(problems, "effects outside for nothing", keys.keys() - orders)
    _none(problems, "orders with several keys", [order for order, k in keys.items() if len(k) > 1])
    return problems


def _letters(log: Sequence[Entry], facts: Facts) -> list[str]:
    """What is a dead letter, and what has to be: only the messages that hurt."""
    problems: list[str] = []
    letters = Counter(each.data["origin"]["sequence"] for each in log if each.type == LETTERED)
    hurting = {fault.sequence for fault in facts.faults if fault.kind in PARKED_BY}
    _none(problems, "messages that hurt are not parked", hurting - letters.keys())
    _none(problems, "other messages are dead letters", letters.keys() - hurting)
    _none(problems, "messages have several letters", [s for s, n in letters.items() if n > 1])
    ends = {"stratum.run.completed", "stratum.run.cancelled"}
    ended = {each.cause for each in log if each.type in ends}
    others = [
        each.id
        for each in log
        if each.type.startswith("chaos.") and each.subject.startswith("inbox.")
        and each.sequence not in hurting and each.id not in ended
    ]  # fmt: skip
    _none(problems, "messages of the other faults are not handled", others)
    return problems


def _none(problems: list[str], what: str, found: Iterable[Any]) -> None:
    if some := sorted(map(str, found)):
        problems.append(f"{len(some)} {what}: {', '.join(some[:SHOWN])}")
