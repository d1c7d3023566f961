"""Every fault named rightly and once, and nothing named that was not done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.faults import Fault
from tests.chaos.log import Case, Entry, cases

OF_A_MESSAGE = {"poison": "dead", "block": "blocked", "spin": "stuck"}
"""What an instance is called that takes the message of such a fault."""

OF_AN_INSTANCE = {
    "kill_agent": "dead",
    "stop_agent": "dead",
    "kill_projector": "dead",
    "kill_health": "dead",
    "kill_supervisor": "dead",
    "leak": "memory",
}

EXPLAINS_NOTHING = ("clock_jump",)
"""Whose clock is wrong is not to be called anything for it."""


def check(log: Sequence[Entry], faults: Sequence[Fault]) -> list[str]:
    """What is wrong, in sentences."""
    found = cases(list(log))
    problems = [*_each_once(found)]
    unexplained = {case.id: case for case in found}
    for fault in faults:
        own, wrong = _explained(log, found, fault)
        problems += [f"{_shown(fault)}: {text}" for text in wrong]
        for case in own:
            unexplained.pop(case.id, None)
    problems += [f"{case}: nothing of the kind was done" for case in unexplained.values()]
    return problems


def _each_once(found: Sequence[Case]) -> list[str]:
    problems = []
    for case in found:
        if len(case.closed) != 1:
            problems.append(f"{case} was closed {len(case.closed)} times")
    keys = Counter((c.kind, c.agent, c.instance, c.about) for c in found if c.instance or c.about)
    problems += [f"{' '.join(key)} was named {n} times" for key, n in keys.items() if n > 1]
    return problems


def _explained(
    log: Sequence[Entry], found: Sequence[Case], fault: Fault
) -> tuple[list[Case], list[str]]:
    """The incidents that a fault explains, and which of them are missing."""
    if fault.kind in EXPLAINS_NOTHING:
        return [], []
    if fault.kind in OF_A_MESSAGE:
        return _of_a_message(log, found, fault)
    if fault.kind in OF_AN_INSTANCE:
        kind = OF_AN_INSTANCE[fault.kind]
        own = [c for c in found if (c.kind, c.instance) == (kind, fault.instance)]
        wrong = [] if len(own) == 1 else [f"named {kind} {len(own)} times"]
        if fault.kind == "kill_supervisor":
            own += _died_with_it(log, found, fault)
        return own, wrong
    if fault.kind == "loop":
        own = [c for c in found if c.kind == "looping" and _is_run_of(log, c, fault)]
        return own, [] if len(own) == 1 else [f"named looping {len(own)} times"]
    own = [c for c in found if c.kind == "away" and fault.at <= c.opened.time <= fault.over]
    wrong = [] if len(own) == 1 else [f"named away {len(own)} times"]
    if fault.kind == "full_disk":  # it may be seen to fill, and the projector's file is on it
        own += [
            c for c in found
            if fault.at <= c.opened.time <= fault.over
            and (c.kind == "full" or (c.kind, c.agent) == ("dead", "projector"))
        ]  # fmt: skip
    return own, wrong


def _of_a_message(
    log: Sequence[Entry], found: Sequence[Case], fault: Fault
) -> tuple[list[Case], list[str]]:
    """Instances that had the message in hand at their end, and the message itself, once."""
    place, kind = f"LOG-{fault.sequence}", OF_A_MESSAGE[fault.kind]
    victims = (
        _stuck_with(found, place)
        if kind == "stuck"
        else {
            each.data["instance"]
            for each in log
            if each.subject == f"control.{fault.agent}.ended"
            and any(
                h["sequence"] == fault.sequence and h.get("begun")
                for h in each.data.get("held", ())
            )
        }
    )
    own = [c for c in found if c.kind == kind and c.instance in victims]
    poison = [c for c in found if (c.kind, c.agent, c.about) == ("poison", fault.agent, place)]
    wrong = []
    if {case.instance for case in own} != victims or not victims:
        named = ", ".join(sorted(case.instance for case in own)) or "nobody"
        wrong.append(f"it hurt {', '.join(sorted(victims)) or 'nobody'}, and {kind} is {named}")
    if len(poison) != 1:
        wrong.append(f"named poison {len(poison)} times")
    return own + poison, wrong


def _stuck_with(found: Sequence[Case], place: str) -> set[str]:
    """Who gives a message back before it ends has nothing in hand at its end: its beats told."""
    return {c.instance for c in found if c.kind == "stuck" and c.evidence.get("message") == place}


def _died_with_it(log: Sequence[Entry], found: Sequence[Case], fault: Fault) -> list[Case]:
    """Who was started by a supervisor ends with it, and may be named dead for that."""
    children = {
        each.data["instance"]
        for each in log
        if each.subject.endswith(".started") and each.data.get("supervisor") == fault.instance
    }
    ended = {each.data["instance"] for each in log if each.subject.endswith(".ended")}
    return [
        c for c in found
        if c.kind == "dead" and c.instance in children - ended and c.opened.time >= fault.at
    ]  # fmt: skip


def _is_run_of(log: Sequence[Entry], case: Case, fault: Fault) -> bool:
    """Whether the run that an incident is about was started by the message of the fault."""
    subject = f"run.{fault.agent}.{case.about}"
    first = next((each for each in log if each.subject == subject), None)
    return first is not None and bool(
        first.data.get("origin", {}).get("sequence") == fault.sequence
    )


def _shown(fault: Fault) -> str:
    return " ".join(
        part
        for part in (fault.kind, fault.agent, fault.instance, str(fault.sequence or ""))
        if part
    )
