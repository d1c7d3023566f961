"""stuck: there is work in hand, and nothing moves.

Judged from what an instance says of each message, and from the log itself: the agent's consumer
stands still with messages handed out, and no run of the agent gets an entry.
"""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import Asked, Finding
from stratum_projections.health.judges.replaced import replaced, restart
from stratum_projections.health.known import Inbox, Known, Life, Opened, moments

KIND = "stuck"
SAID_SECONDS = 10.0
"""Whose instances say what they have in hand is judged by that, which names the message; by its
consumer only so much later, or after twice the time."""


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    for life in known.lives.values():
        limit = config.of(life.agent).stuck.seconds
        if life.blocked is None and known.seconds_since(life.heard) < limit:
            yield from _by_beats(known, config, life, limit)
    for agent, inbox in known.inboxes.items():
        limit = config.of(agent).stuck.seconds
        if any(life.marks for life in known.living(agent, config.dead.seconds)):
            limit += min(limit, SAID_SECONDS)
        seconds = known.seconds_since(known.newest(agent, inbox.moved))
        resting = known.agent(agent).resting
        if inbox.position.in_hand and seconds >= limit and not resting:
            yield _by_position(agent, inbox, seconds)


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    incident = opened.incident
    if not incident.instance:
        inbox = known.inboxes.get(incident.agent)
        moved = inbox is None or inbox.moved.sequence > int(incident.evidence["standing_since"])
        return "its consumer moves again" if moved else ""
    life = known.lives.get((incident.agent, incident.instance))
    if life is not None and life.ready:  # who stops gives it back, and that is no progress
        stream, _, sequence = incident.evidence["message"].rpartition("-")
        mark = life.marks.get((stream, int(sequence)))
        if mark is None or mark.step != incident.evidence["step"]:
            return "it goes on"
    return replaced(known, config, opened)


def _by_beats(known: Known, config: HealthConfig, life: Life, limit: float) -> Iterator[Finding]:
    """The message that stands longest; one restart is enough for all of them."""
    standing = sorted((mark.at.ns, place) for place, mark in life.marks.items())
    if not standing or life.beat is None:
        return
    stream, sequence = standing[0][1]
    mark = life.marks[stream, sequence]
    seconds = known.seconds_since(mark.at)
    if seconds < limit:
        return
    where = f"in step {mark.step}" if mark.step else "without a step"
    yield Finding(
        kind=KIND, agent=life.agent, instance=life.instance, since_ns=mark.at.ns,
        first=mark.at.sequence,
        text=f"it works on {stream}-{sequence} for {seconds:.1f} s {where}, and nothing moves",
        evidence={
            **moments(first_beat=mark.at, last_beat=life.last, last_progress=life.progress),
            "message": f"{stream}-{sequence}", "run": mark.run, "step": mark.step,
            "standing_seconds": round(seconds, 3), "progress": life.beat.progress,
            "slot": life.slot, "living": len(known.living(life.agent, config.dead.seconds)),
        },
        commands=restart(life, f"{stream}-{sequence} does not move"),
    )  # fmt: skip


def _by_position(agent: str, inbox: Inbox, seconds: float) -> Finding:
    place = inbox.position
    ask = control.Command(reason="its consumer stands still")
    return Finding(
        kind=KIND, agent=agent, since_ns=inbox.moved.ns, first=inbox.moved.sequence,
        text=f"{place.in_hand} messages are handed out, {place.pending} wait, and neither its "
        f"consumer nor any of its runs moved for {seconds:.1f} s",
        evidence={
            "standing_since": inbox.moved.sequence, "standing_seconds": round(seconds, 3),
            "delivered": place.delivered, "settled": place.settled, "journal": place.journal,
            "in_hand": place.in_hand, "pending": place.pending,
        },
        commands=(Asked(control.RESTART, ask),),
    )  # fmt: skip
