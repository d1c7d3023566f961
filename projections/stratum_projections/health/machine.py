"""The health projector without its process: messages of HEALTH and LOG in, decisions out.

It has no clock and no server, so a recording of the two streams gives the same decisions again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from stratum_bus import heartbeat, subject
from stratum_bus.errors import InvalidEvent, InvalidName
from stratum_bus.heartbeat import Beat
from stratum_bus.message import Message
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health import observed as ticks
from stratum_projections.health.decide import Decision, decide
from stratum_projections.health.fold import fold_beat, fold_control, fold_tick
from stratum_projections.health.known import NS, AgentState, Known, Moment
from stratum_projections.health.observed import Observed

WAIT_NS = 5 * NS
"""How long decisions wait for the last ones to appear in the log, before they are made again."""


class _Said(Struct):
    """An event of HEALTH, its data left as it is."""

    type: str
    data: msgspec.Raw


_TICK = ticks.TYPE.encode()
_said = msgspec.json.Decoder(_Said).decode
_beat = msgspec.json.Decoder(Beat).decode
_observed = msgspec.json.Decoder(Observed).decode


class Machine:
    """What is known, and what follows. `silent`: learn, but decide nothing yet."""

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.known = Known()
        self.silent = False
        self._control: deque[Message] = deque()

    def learn(self, messages: Iterable[Message]) -> None:
        """Control events of LOG, in order. They count from the tick on that says so."""
        self._control.extend(messages)

    def learn_all(self) -> None:
        """Take in what was learned, whatever no tick has said yet."""
        while self._control:
            self._fold_control(self._control.popleft())

    def tick_in(self, message: Message) -> Observed | None:
        """The tick in a message of HEALTH, before which control events up to its `log` have to be
        learned; None where it is none.
        """
        if _TICK not in message.payload:
            return None
        try:
            said = _said(message.payload)
            return _observed(said.data) if said.type == ticks.TYPE else None
        except msgspec.MsgspecError:
            return None

    def feed(self, message: Message) -> list[Decision]:
        """A message of HEALTH, in order; decisions come at ticks."""
        try:
            said = _said(message.payload)
        except msgspec.DecodeError:
            return []  # others may write there what they like
        at = Moment(message.time_ns, message.sequence)
        try:
            if said.type == heartbeat.TYPE:
                fold_beat(self.known, self.config, _beat(said.data), at)
            elif said.type == ticks.TYPE:
                return self._tick(_observed(said.data), at)
        except msgspec.ValidationError:
            return []
        return []

    def _tick(self, observed: Observed, at: Moment) -> list[Decision]:
        while self._control and self._control[0].sequence <= observed.log:
            self._fold_control(self._control.popleft())
        fold_tick(self.known, self.config, observed, at)
        if self.silent:
            return []
        decisions = decide(self.known, self.config)
        for decision in decisions:
            state = self.known.agents.setdefault(decision.agent, AgentState())
            state.decided_ns = at.ns + WAIT_NS
        return decisions

    def _fold_control(self, message: Message) -> None:
        try:
            place, event = subject.parse(message.subject), message.event()
            at = Moment(message.time_ns, message.sequence)
            fold_control(self.known, self.config, place.agent, place.type, event, at)
        except (InvalidEvent, InvalidName):
            return  # the projector quarantines it


def replay(
    health: Iterable[Message], control: Iterable[Message], config: HealthConfig
) -> list[Decision]:
    """The decisions that follow from two recorded streams."""
    machine = Machine(config)
    machine.learn(control)
    return [decision for message in health for decision in machine.feed(message)]
