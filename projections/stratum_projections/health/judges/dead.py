"""dead: an instance's process ended unasked, or nothing was heard of it for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stratum_bus.heartbeat import STOPPING
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Finding
from stratum_projections.health.judges.replaced import replaced, restart
from stratum_projections.health.known import End, Known, Life, Opened, moments

KIND = "dead"


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """One that ended is started again by its supervisor; one that is silent by command."""
    for agent, state in known.agents.items():
        for end in state.ends:
            if not end.ended.wanted:
                yield _ended(agent, end)
    if (known.now.ns - known.heard_ns) / 1e9 < config.settle_seconds:
        return
    for life in known.lives.values():
        own = config.of(life.agent).dead
        limit = own.seconds if life.last else own.starting_seconds
        silent = known.seconds_since(life.heard)
        stopped = life.beat is not None and life.beat.state == STOPPING
        state = known.agent(life.agent)
        if silent > limit and state.beats and not stopped and not state.down:
            yield _silent(known, life, silent, max(limit, own.restart_seconds))


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    incident = opened.incident
    life = known.lives.get((incident.agent, incident.instance))
    if life is not None and life.last is not None:
        before = int(incident.evidence.get("last_beat", 0))
        if life.last.sequence != before and "ended" not in incident.evidence:
            return "it beats again" if before else "it beats"
    return replaced(known, config, opened)


def _ended(agent: str, end: End) -> Finding:
    ended = end.ended
    how = ended.signal or f"exit code {ended.code}"
    held: list[dict[str, Any]] = [
        {"stream": each.stream, "sequence": each.sequence, "deaths": each.deaths}
        for each in ended.held
        if each.begun
    ]
    return Finding(
        kind=KIND, agent=agent, instance=ended.instance, since_ns=end.at.ns, first=end.at.sequence,
        text=f"its process {ended.pid} ended after {ended.seconds:.1f} s: {how}",
        evidence={
            **moments(ended=end.at, last_beat=end.beat), "pid": ended.pid, "code": ended.code,
            "slot": ended.slot, "living": end.living, "begun": held[:10],
        },
    )  # fmt: skip


def _silent(known: Known, life: Life, seconds: float, restart_seconds: float) -> Finding:
    named = [key[2] for key in known.open if key[:2] == (KIND, life.agent)]
    before = {i for i, first in known.firsts(life.agent).items() if first.ns <= life.heard.ns}
    living = len(before.difference(named) | {life.instance})
    what = "nothing was heard of it" if life.last else "it has not beaten since it was started"
    evidence: dict[str, Any] = moments(last_beat=life.last) or moments(started=life.first)
    evidence |= {"silent_seconds": round(seconds, 3), "living": living}
    if life.slot:
        evidence["slot"] = life.slot
    if life.beat is not None:
        evidence |= {"pid": life.beat.pid, "host": life.beat.host}
    return Finding(
        kind=KIND, agent=life.agent, instance=life.instance, since_ns=life.heard.ns,
        first=life.heard.sequence, text=f"{what} for {seconds:.1f} s", evidence=evidence,
        commands=restart(life, "nothing is heard of it") if seconds > restart_seconds else (),
    )  # fmt: skip
