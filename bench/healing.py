"""What healing is measured by, in one go of about four minutes; the table in README is made by it.

python -m bench healing
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from bench import handover, health, outages
from bench.harness import Line, percentile, report, say
from stratum_bus.thresholds import Dead

ROWS: list[str] = []


async def run() -> None:
    """One line for each number; at the end all of them as a table on stderr."""
    ROWS.clear()
    loads = [os.getloadavg()[0]]
    one, two = handover.CASES[:2]
    deaths = restarts = 0
    for case, name in ((one, "one instance, a warm spare"), (two, "two instances")):
        found = await handover.measure(case)
        deaths, restarts = deaths + len(found.seconds), restarts + found.restarts
        _row(f"kill -9 of an agent, {name}: next step of its run", found.seconds, "0.5 / 1.5 s")
    _value("restarts for each of these deaths", restarts / deaths, "", f"{deaths}", "1")
    loads.append(os.getloadavg()[0])
    down = await outages.supervisor()
    _row("kill -9 of `stratum up`: the next one has started all", down, "2 s")
    poison = await outages.poison()
    _row("a poison event: parked", poison.parked, "10 s")
    _row("a poison event: the one behind it handled", poison.moved, "10 s")
    loads.append(os.getloadavg()[0])
    seen = await health.measure(200, hurt=True)
    _row(f"silent ({Dead().seconds:g} s) on another host: named dead", seen.silent, "2 s")
    limit = health.STUCK_SECONDS
    _row(
        f"a standstill, with a deadline of {limit:g} s: named stuck", seen.stuck, f"{2 * limit:g} s"
    )
    _value("beats of 200 instances: share of a core", seen.percent, "%", "15 s", "10 %")
    loads.append(os.getloadavg()[0])
    shown = ", ".join(f"{load:.1f}" for load in loads)
    report(Line("healing", "load average of the machine, at most", round(max(loads), 2), ""))
    say(f"\n| from | p50 | p99 | n | wanted |\n|---|---|---|---|---|\n{chr(10).join(ROWS)}\n")
    say(f"{os.cpu_count()} processors, load {shown}")


def _row(name: str, seconds: Sequence[float], wanted: str) -> None:
    p50, p99 = (round(percentile(seconds, percent), 2) for percent in (50, 99))
    for percent, value in ((50, p50), (99, p99)):
        report(Line("healing", f"{name} p{percent}", value, "s", "always"))
    ROWS.append(f"| {name} | {p50:.2f} s | {p99:.2f} s | {len(seconds)} | ≤ {wanted} |")


def _value(name: str, value: float, unit: str, count: str, wanted: str) -> None:
    report(Line("healing", name, round(value, 2), unit))
    ROWS.append(f"| {name} | {value:.2f} {unit} | | {count} | ≤ {wanted} |".replace("  ", " "))
