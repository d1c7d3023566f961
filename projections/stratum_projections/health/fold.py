"""Bring what is known up to date: by a beat, a control event or a tick, in that order of reading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stratum_bus import control
from stratum_bus.event import RawEvent, typed
from stratum_bus.heartbeat import AGENT, BLOCKED, PROJECTOR, STOPPING, Beat
from stratum_bus.message import nanoseconds
from stratum_bus.thresholds import HealthConfig, Memory
from stratum_projections.health.incident import CLOSED, INCIDENT, Incident
from stratum_projections.health.known import (
    NS,
    AgentState,
    End,
    Inbox,
    Known,
    Life,
    Mark,
    Moment,
    Opened,
    Strikes,
)
from stratum_projections.health.observed import Observed, Position

GAP_SECONDS = 2.0
"""Ticks further apart than this mean that nobody could be heard, or that a clock jumped."""

FORGET_NS = 3600 * NS
MICROSECOND_NS = 1000
REMEMBER_NS = 7 * 24 * FORGET_NS
ENDS_MAX = 100
STRIKES_MAX = 1000
STUCK = "stuck"
FORGIVE = (control.START, control.RESTART, control.RESUME)
"""Commands by which a person says that an agent is to be tried anew."""

RESTART_ID = control.command_id("", control.RESTART)


def fold_beat(known: Known, config: HealthConfig, beat: Beat, at: Moment) -> None:
    """An instance said something of itself."""
    key = beat.name, beat.instance
    if key in known.gone:
        return  # it was on its way when its process ended
    life = known.lives.get(key)
    if life is None:
        life = Life(agent=beat.name, instance=beat.instance, kind=beat.kind, first=at, progress=at)
        known.lives[key] = life
    _state(known, beat.name).beats = True
    before, life.beat, life.last = life.beat, beat, at
    life.kind = beat.kind
    if before is None or before.progress != beat.progress:
        life.progress = at
    _fold_blocked(life, beat, at)
    _fold_marks(life, beat, at)
    if beat.kind == PROJECTOR:
        _fold_behind(known, config, life, beat, at)
    _fold_memory(config.of(beat.name).memory, life, beat, at)


def fold_control(
    known: Known, config: HealthConfig, agent: str, name: str, event: RawEvent, at: Moment
) -> None:
    """An event under `control.<agent>.<name>`. Raises InvalidEvent where its data does not fit."""
    known.log = max(known.log, at.sequence)
    fold = _CONTROL.get(name)
    if fold is not None:
        fold(known, config, agent, event, at)
    elif name in control.COMMANDS:
        _fold_command(_state(known, agent), name, event.id, typed(event, control.Command).data, at)
    if event.id.startswith("cmd-") and event.causationid:
        _fold_given(known, name, event.causationid)


def fold_tick(known: Known, config: HealthConfig, observed: Observed, at: Moment) -> None:
    """A tick: what the server said, and what time it is."""
    gap = (at.ns - known.now.ns) / NS
    if not -GAP_SECONDS <= gap <= GAP_SECONDS:
        known.heard_ns = at.ns
    if gap < 0:
        _never_after(known, at)
    known.now = at
    known.head = max(known.head, observed.head)
    if observed.away_seconds:
        known.away = at, observed.away_seconds
    if observed.positions is not None:
        _fold_positions(known, config, observed.positions, at)
    if observed.fills is not None:
        known.fills = {fill.stream: fill for fill in observed.fills}
    for each in observed.repetitions:
        known.repetitions[each.agent, each.run] = each
    _forget(known)


def _state(known: Known, agent: str) -> AgentState:
    return known.agents.setdefault(agent, AgentState())


def _fold_blocked(life: Life, beat: Beat, at: Moment) -> None:
    if beat.state != BLOCKED:
        life.blocked = None
    elif life.blocked is None:
        life.blocked = Moment(at.ns - int(beat.loop_lag_seconds * NS), at.sequence)


def _fold_memory(own: Memory, life: Life, beat: Beat, at: Moment) -> None:
    if (at.ns - life.first.ns) / NS >= own.seconds:
        life.memory.add(beat.resident_bytes, at, int(own.seconds * NS))
        life.long_memory.add(beat.resident_bytes, at, int(own.long_seconds * NS))


def _fold_marks(life: Life, beat: Beat, at: Moment) -> None:
    """Since when each message in hand stands where it stands."""
    marks: dict[tuple[str, int], Mark] = {}
    for held in beat.in_hand:
        if not held.event:
            continue  # its handler has not begun: it waits behind others
        key = held.stream, held.sequence
        mark = life.marks.get(key)
        if mark is None or mark.step != held.step:
            mark = Mark(held.run, held.step, at, mark.begun if mark else at)
        marks[key] = mark
    life.marks = marks


def _fold_behind(known: Known, config: HealthConfig, life: Life, beat: Beat, at: Moment) -> None:
    """A projector's progress is the sequence that it reflects; the log's end is seen by others."""
    left = known.head - beat.progress
    if left <= 0 or life.progress == at:
        life.behind = None
    if left > 0:
        life.behind = life.behind or at
    life.far_behind = (life.far_behind or at) if left >= config.behind.events else None


def _fold_started(
    known: Known, config: HealthConfig, agent: str, event: RawEvent, at: Moment
) -> None:
    started = typed(event, control.Started).data
    state = _state(known, agent)
    state.started = at
    state.restarts += started.command.startswith(RESTART_ID)
    key = agent, started.instance
    if key in known.gone:
        return
    life = known.lives.get(key)
    if life is None:
        life = known.lives[key] = Life(
            agent=agent, instance=started.instance, kind=AGENT, first=at, progress=at
        )
    life.slot = started.slot
    for other in [
        each
        for each in known.lives.values()
        if each.agent == agent and each.slot == started.slot and each is not life
    ]:  # its supervisor ended with it, so nobody saw its end
        del known.lives[other.key]
        known.gone[other.key] = at.ns


def _fold_ended(
    known: Known, config: HealthConfig, agent: str, event: RawEvent, at: Moment
) -> None:
    ended = typed(event, control.Ended).data
    living = len(known.living(agent, config.dead.seconds))
    life = known.lives.pop((agent, ended.instance), None)
    known.gone[agent, ended.instance] = at.ns
    state = _state(known, agent)
    state.ends.append(End(at, ended, max(living, 1), life.last if life else None))
    del state.ends[:-ENDS_MAX]


def _fold_outcome(
    known: Known, config: HealthConfig, agent: str, event: RawEvent, at: Moment
) -> None:
    outcome = typed(event, control.Outcome).data
    if outcome.command in known.agent(agent).parked.values():
        known.outcomes[outcome.command] = outcome


def _fold_incident(
    known: Known, config: HealthConfig, agent: str, event: RawEvent, at: Moment
) -> None:
    state = _state(known, agent)
    state.last_incident, state.decided_ns = at.sequence, 0
    incident = typed(event, Incident).data
    if incident.status != CLOSED:
        if incident.kind == STUCK and (message := incident.evidence.get("message")):
            _fold_strike(state, message, incident.evidence.get("step", ""), at)
        known.open.setdefault(incident.key, Opened(id=event.id, at=at, incident=incident))
        return
    opened = known.open.get(incident.key)
    if opened is not None and opened.id == incident.opened:
        del known.open[incident.key]
        known.closed[incident.key] = at.ns
        life = known.lives.get((incident.agent, incident.instance))
        if life is not None and life.heard.ns <= nanoseconds(incident.since) + MICROSECOND_NS:
            del known.lives[life.key]  # it was replaced, and never heard again


def _fold_strike(state: AgentState, message: str, step: str, at: Moment) -> None:
    strikes = state.strikes.setdefault(message, Strikes(step))
    if strikes.step != step:  # it got further since
        strikes.step, strikes.at = step, []
    strikes.at.append(at)
    while len(state.strikes) > STRIKES_MAX:
        del state.strikes[next(iter(state.strikes))]


def _fold_command(
    state: AgentState, name: str, id: str, command: control.Command, at: Moment
) -> None:
    if name in FORGIVE and not command.instance and not command.incident:
        state.stopped = state.quarantined = False
        state.forgiven_ns = at.ns
    match name:
        case control.STOP:
            state.stopped = True
        case control.PAUSE:
            state.paused = True
        case control.RESUME:
            state.paused = False
        case control.QUARANTINE:
            state.quarantined = True
        case control.SCALE:
            state.instances = command.instances
        case control.PARK:
            message = f"{command.stream}-{command.sequence}"
            state.parked[message] = id
            state.strikes.pop(message, None)


def _fold_given(known: Known, name: str, incident: str) -> None:
    for opened in known.open.values():
        if opened.id == incident and name not in opened.given:
            opened.given.append(name)
            _state(known, opened.incident.agent).decided_ns = 0


def _fold_positions(
    known: Known, config: HealthConfig, positions: list[Position], at: Moment
) -> None:
    seen = set()
    for position in positions:
        seen.add(position.agent)
        inbox = known.inboxes.get(position.agent)
        if inbox is None:
            inbox = known.inboxes[position.agent] = Inbox(position, at)
        _fold_position(inbox, position, at, config.of(position.agent))
    for agent in known.inboxes.keys() - seen:  # nothing is left for it to do
        del known.inboxes[agent]


def _fold_position(inbox: Inbox, position: Position, at: Moment, config: HealthConfig) -> None:
    before, inbox.position = inbox.position, position
    places = (position.delivered, position.settled, position.journal)
    if places != (before.delivered, before.settled, before.journal):
        inbox.moved = at
    silent = position.pending > 0 and position.in_hand == 0
    if not silent or position.delivered != before.delivered:
        inbox.silent = None
    if silent:
        inbox.silent = inbox.silent or at
    inbox.pending.add(position.pending, at, int(config.lag.seconds * NS))


def _never_after(known: Known, at: Moment) -> None:
    """The server's clock went back: nothing can have been later than now."""
    known.heard_ns = at.ns
    for life in known.lives.values():
        for name in ("first", "last", "progress", "blocked", "behind", "far_behind"):
            moment = getattr(life, name)
            if moment is not None and moment.ns > at.ns:
                setattr(life, name, Moment(at.ns, moment.sequence))
        for mark in life.marks.values():
            mark.at = Moment(min(mark.at.ns, at.ns), mark.at.sequence)
            mark.begun = Moment(min(mark.begun.ns, at.ns), mark.begun.sequence)
        life.memory.samples.clear()
        life.long_memory.samples.clear()
    for inbox in known.inboxes.values():
        inbox.moved = Moment(min(inbox.moved.ns, at.ns), inbox.moved.sequence)
        inbox.pending.samples.clear()
        inbox.silent = None


def _forget(known: Known) -> None:
    """What is long over."""
    before = known.now.ns - FORGET_NS
    for key in [key for key, ns in known.gone.items() if ns < before]:
        del known.gone[key]
    for life in list(known.lives.values()):
        stopped = life.beat is not None and life.beat.state == STOPPING
        if stopped and life.heard.ns < known.now.ns - 60 * NS:
            del known.lives[life.key]
    for incident in [i for i, ns in known.closed.items() if ns < known.now.ns - REMEMBER_NS]:
        del known.closed[incident]
    for ran in [ran for ran in known.repetitions if not _in_hand(known, *ran)]:
        del known.repetitions[ran]


def _in_hand(known: Known, agent: str, run: str) -> bool:
    return any(
        held.run == run
        for life in known.lives.values()
        if life.agent == agent and life.beat is not None
        for held in life.beat.in_hand
    )


Fold = Callable[[Known, HealthConfig, str, RawEvent, Moment], Any]

_CONTROL: dict[str, Fold] = {
    control.STARTED: _fold_started,
    control.ENDED: _fold_ended,
    control.OUTCOME: _fold_outcome,
    INCIDENT: _fold_incident,
}
