"""One run of chaos: start, hurt in random order under load, let it settle, prove, say so in JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from stratum_bus import connect
from stratum_bus.bus import Bus
from stratum_bus.errors import StratumError
from stratum_bus.tasks import task_group
from tests.chaos import checker, pace
from tests.chaos.checker import Facts
from tests.chaos.faults import FAULTS, Fault, Hands, do, until_ready
from tests.chaos.installation import Installation
from tests.chaos.load import Load
from tests.chaos.watch import TooLate, Watch

READY_SECONDS = 120.0
SETTLE_SECONDS = 180.0
PATIENCE_SECONDS = 100.0
"""Shorter than the dedupe window: what is sent again is known by its id."""

PAUSE_SECONDS = (0.2, 2.0)
"""Between two faults."""


class Chaos:
    """One run. `problems` are sentences; none of them: it is proved."""

    def __init__(self, installation: Installation, asked: argparse.Namespace) -> None:
        self.installation = installation
        self.faults: list[Fault] = []
        self.problems: list[str] = []
        self.left_out: list[str] = []
        self.checked: dict[str, Any] = {}
        self.load: Load | None = None
        self._asked = asked
        self._chance = random.Random(asked.seed)

    async def run(self) -> None:
        async with task_group() as tasks:
            tasks.start_soon(self.installation.keep)
            try:
                await self._run()
            except TooLate as late:
                self.problems.append(str(late))
            finally:
                with anyio.CancelScope(shield=True):
                    if not await self.installation.stop():
                        self.problems.append("stratum up did not stop when it was told to")
                tasks.cancel_scope.cancel()

    async def _run(self) -> None:
        url = self.installation.url
        await self._until_server(url)
        async with connect(url, name="chaos", patience_seconds=PATIENCE_SECONDS) as bus:
            watch, load = Watch(bus), Load(bus, self._asked.rate)
            self.load = load
            async with task_group() as tasks:
                tasks.start_soon(watch.run)
                await until_ready(watch, self.installation)
                await anyio.sleep(self._asked.warm)
                async with task_group() as loading:
                    loading.start_soon(load.run)
                    await self._hurt(Hands(bus, watch, self.installation, self._chance))
                    load.stop()
                await self._prove(bus, load)
                tasks.cancel_scope.cancel()

    async def _until_server(self, url: str) -> None:
        give_up = time.monotonic() + READY_SECONDS
        while time.monotonic() < give_up:
            try:
                async with connect(url) as bus:
                    await bus.connection.api("STREAM.INFO.HEALTH")
                    return
            except StratumError:
                await anyio.sleep(0.1)
        raise TooLate(f"no server within {READY_SECONDS:g} s: see up.log")

    async def _hurt(self, hands: Hands) -> None:
        end = time.monotonic() + self._asked.duration
        for kind in self._kinds():
            if time.monotonic() > end and kind in {fault.kind for fault in self.faults}:
                return  # however slow the machine is, each kind was done
            print(f"{kind} …", file=sys.stderr, flush=True)
            try:
                fault = await do(hands, kind)
            except TooLate as late:
                self.problems.append(str(late))
                return
            self.faults.append(fault)
            figures = ", ".join(f"{name} {s:.2f} s" for name, s in fault.figures.items())
            print(f"  {fault.agent} {fault.instance or fault.sequence}: {figures}", file=sys.stderr)
            await anyio.sleep(self._chance.uniform(*PAUSE_SECONDS))

    def _kinds(self) -> Iterator[str]:
        """All kinds in random order, and again, as many rounds as were asked for."""
        kinds = [kind for kind in self._asked.faults if kind not in self.left_out]
        rounds = itertools.count() if self._asked.rounds is None else range(self._asked.rounds)
        for _ in rounds:
            self._chance.shuffle(kinds)
            yield from kinds

    async def _prove(self, bus: Bus, load: Load) -> None:
        try:
            await checker.until_settled(bus, self.installation.agents, SETTLE_SECONDS)
        except TooLate as late:
            self.problems.append(str(late))
        facts = Facts(
            accepted=load.accepted, unknown=load.unknown, faults=self.faults,
            effects=self.installation.effects.read_text(encoding="utf-8"),
            agents=self.installation.agents,
        )  # fmt: skip
        self.checked, problems = await checker.check(bus, facts)
        self.problems += problems

    def summary(self) -> dict[str, Any]:
        load = self.load
        return {
            "seed": self._asked.seed,
            "pace": self._asked.pace,
            "agents": self.installation.agents,
            "faults": dict(Counter(fault.kind for fault in self.faults)),
            "left_out": self.left_out,
            "accepted": len(load.accepted) if load else 0,
            **self.checked,
            "figures": figures(self.faults, load.seconds if load else []),
            "ok": not self.problems and bool(self.faults),
        }


def figures(faults: list[Fault], accepted: list[float]) -> dict[str, dict[str, float]]:
    """Seconds as p50, p99 and how many, by fault and by what was measured."""
    samples: dict[str, list[float]] = defaultdict(list)
    for fault in faults:
        for name, seconds in fault.figures.items():
            samples[f"{fault.kind}: {name}"].append(seconds)
    if accepted:
        samples["an event is accepted"] = accepted
    return {
        name: {"p50": _percentile(each, 50), "p99": _percentile(each, 99), "n": len(each)}
        for name, each in sorted(samples.items())
    }


def _percentile(samples: list[float], percent: float) -> float:
    ordered = sorted(samples)
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))], 3)


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos.py", description=__doc__)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds of faults")
    parser.add_argument("--rounds", type=int, help="end when each fault was done so often")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=10.0, help="orders a second")
    parser.add_argument("--warm", type=float, default=4.0, help="seconds before the first fault")
    parser.add_argument("--pace", type=float, help="how slow the machine is; else it is measured")
    parser.add_argument("--faults", type=lambda text: text.split(","), default=list(FAULTS))
    asked = parser.parse_args()
    if unknown := set(asked.faults) - set(FAULTS):
        parser.error(f"there is no fault {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    asked.pace = asked.pace or pace.measured()
    installation = Installation(Path(tempfile.mkdtemp(prefix="stratum-chaos-")), asked.pace)
    chaos = Chaos(installation, asked)
    if "full_disk" in asked.faults and not installation.mount_small_disk():
        chaos.left_out.append("full_disk")
    began = time.monotonic()
    try:
        anyio.run(chaos.run)
    except Exception as error:  # noqa: BLE001 - whatever it is, the last line says so
        chaos.problems.append(f"the harness failed: {error!r}")
    summary = {**chaos.summary(), "seconds": round(time.monotonic() - began, 1)}
    if chaos.problems:
        kept = f"the data and the log of `stratum up` are in {installation.folder}"
        print(*chaos.problems, kept, sep="\n", file=sys.stderr, flush=True)
    else:
        installation.remove()
    print(json.dumps(summary), flush=True)
    return 0 if summary["ok"] else 1
