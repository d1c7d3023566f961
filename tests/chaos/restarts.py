"""No restart without a command, no command without a cause, and nobody runs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tests.chaos.log import Entry

RESTART = "stratum.control.restart"


def check(log: Sequence[Entry]) -> list[str]:
    """What is wrong, in sentences."""
    return [*_starts(log), *_commands(log), *_places(log)]


def _starts(log: Sequence[Entry]) -> list[str]:
    """What was started was asked for, or its supervisor had just started."""
    problems = []
    commands = {each.id: each for each in log if each.type == RESTART}
    by_command: Counter[str] = Counter()
    firsts: Counter[tuple[str, str, int]] = Counter()
    for each in log:
        if each.type != "stratum.control.started":
            continue
        command = each.data.get("command", "")
        if not command:
            slot = each.agent, each.data.get("supervisor", ""), each.data.get("slot", 1)
            firsts[slot] += 1
            if firsts[slot] > 1:
                problems.append(f"start at {each.sequence} of {each.agent} has no command")
        elif command not in commands or commands[command].agent != each.agent:
            problems.append(f"start at {each.sequence}: there is no command {command}")
        else:
            by_command[command] += 1
    for id, count in by_command.items():
        one = bool(commands[id].data.get("instance"))
        if one and count > 1:
            problems.append(f"command {id} started {count} processes, and was for one")
    return problems


def _commands(log: Sequence[Entry]) -> list[str]:
    """Each restart answers to an end that was observed, or to an incident, and before it nothing."""
    problems, seen = [], set()
    for each in log:
        if each.type in ("stratum.control.ended", "stratum.health.incident"):
            seen.add(each.id)
        if each.type == RESTART and each.data.get("incident") not in seen:
            problems.append(f"restart at {each.sequence} of {each.agent} answers to nothing")
    ids = Counter(each.id for each in log if each.type == RESTART)
    problems += [f"restart {id} was given {n} times" for id, n in ids.items() if n > 1]
    causes = Counter(
        (each.agent, each.data.get("incident"), each.data.get("instance", ""))
        for each in log
        if each.type == RESTART
    )
    problems += [f"{cause} led to {n} restarts" for cause, n in causes.items() if n > 1]
    return problems


def _places(log: Sequence[Entry]) -> list[str]:
    """In one place, under one supervisor, a process starts when the one before it has ended."""
    problems = []
    living: dict[tuple[str, str, int], str] = {}
    for each in log:
        if each.type not in ("stratum.control.started", "stratum.control.ended"):
            continue
        place = each.agent, each.data.get("supervisor", ""), each.data.get("slot", 1)
        if each.type == "stratum.control.ended":
            living.pop(place, None)
        elif place in living:
            problems.append(f"{each.agent}: two processes in one place at {each.sequence}")
        else:
            living[place] = each.data["instance"]
    return problems
