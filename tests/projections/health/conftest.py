"""A world without a server: two streams made by hand, and the machine that reads them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from stratum_bus import control, event, heartbeat, subject
from stratum_bus.control import Command, Ended, Held, Outcome, Started
from stratum_bus.event import Event, new
from stratum_bus.heartbeat import Beat, InHand
from stratum_bus.message import Message, utc
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health import observed as ticks
from stratum_projections.health.incident import CLOSED, Incident
from stratum_projections.health.machine import Machine
from stratum_projections.health.observed import Fill, Observed, Position, Repetition

START_NS = 1_767_225_600_000_000_000
NS = 1_000_000_000
TICK = 0.25
BEAT_EVERY = 2


class Alive:
    """What an instance of the world says of itself, at every beat, until it is `silent`."""

    def __init__(self, name: str, instance: str, kind: str, started: datetime) -> None:
        self.name, self.instance, self.kind, self.started = name, instance, kind, started
        self.state = heartbeat.IDLE
        self.progress = 0
        self.lag = 0.0
        self.bytes = 50 << 20
        self.pending: int | None = None
        self.in_hand: list[InHand] = []
        self.silent = False

    def beat(self) -> Beat:
        return Beat(
            name=self.name, instance=self.instance, kind=self.kind, state=self.state, pid=17,
            host="here", version="1", started=self.started, every_seconds=0.5,
            progress=self.progress, in_hand=self.in_hand, holds=len(self.in_hand),
            loop_lag_seconds=self.lag, resident_bytes=self.bytes, pending=self.pending,
        )  # fmt: skip

    def takes(self, sequence: int, *, step: str = "", run: str = "r1") -> None:
        """A message is in hand, and its handler has begun."""
        held = InHand(
            sequence=sequence, subject=f"inbox.{self.name}.x.task", event=f"e{sequence}",
            run=run, step=step,
        )  # fmt: skip
        self.in_hand = [each for each in self.in_hand if each.sequence != sequence] + [held]
        self.state = heartbeat.WORKING


class World:
    """HEALTH and LOG as they would be stored; what is decided is stored too, and is read again."""

    def __init__(self, config: HealthConfig) -> None:
        self.machine = Machine(config)
        self.config = config
        self.now_ns = START_NS
        self.health: list[Message] = []
        self.log: list[Message] = []
        self.instances: list[Alive] = []
        self.positions: list[Position] = []
        self.fills: list[Fill] = []
        self.repetitions: list[Repetition] = []
        self.head = 0
        self._count = 0

    def alive(self, name: str, instance: str = "i1", kind: str = heartbeat.AGENT) -> Alive:
        """An instance that beats from now on."""
        self.instances.append(Alive(name, instance, kind, utc(self.now_ns)))
        return self.instances[-1]

    def started(self, name: str, instance: str, *, slot: int = 1) -> Alive:
        """A supervisor starts an instance."""
        self.control(name, "started", Started(instance=instance, pid=17, slot=slot))
        return self.alive(name, instance)

    def ended(self, alive: Alive, *, held: list[Held] | None = None, **fields: Any) -> None:
        """A supervisor sees the process of an instance end; by default by SIGKILL, unasked."""
        alive.silent = True
        given = {"code": -9, "signal": "SIGKILL", **fields}
        ended = Ended(instance=alive.instance, pid=17, held=held or [], **given)
        self.control(alive.name, "ended", ended)

    def command(self, agent: str, name: str, **fields: Any) -> None:
        """A person gives a command."""
        self.control(agent, name, Command(**fields))

    def obeys(self, agent: str, command: str, *, done: bool = True) -> None:
        """The outcome of the last command of a name."""
        given = self.events(agent, command)[-1]
        outcome = Outcome(command=given.id, done=done, detail="as told")
        self.control(agent, "outcome", outcome)

    def control(self, agent: str, name: str, data: Any) -> None:
        self.store(subject.control(agent, name), new(control.PREFIX + name, data, source="/test"))

    def store(self, to: str, what: Event[Any]) -> None:
        sequence = len(self.log) + 1
        payload, headers = event.encode(what), event.headers_of(what)
        self.log.append(Message("LOG", sequence, to, self.now_ns, payload, headers))
        self.head = max(self.head, sequence)

    def run(self, seconds: float) -> None:
        """Let time pass: beats, ticks, and what follows from them."""
        for _ in range(round(seconds / TICK)):
            self.now_ns += int(TICK * NS)
            self._count += 1
            if self._count % BEAT_EVERY == 0:
                for each in self.instances:
                    if not each.silent:
                        place = subject.health(each.name, each.instance)
                        self._say(place, heartbeat.TYPE, each.beat())
            self.tick()

    def tick(self, *, away_seconds: float = 0.0) -> None:
        log = len(self.log)
        tick = Observed(
            log=log, head=self.head, positions=self.positions, fills=self.fills,
            repetitions=self.repetitions, away_seconds=away_seconds,
        )  # fmt: skip
        self.machine.learn(self.log[self._learned() :])
        for decision in self._say("health.health.h1", ticks.TYPE, tick):
            for append in decision.appends:
                self.store(append.subject, append.event)

    def _learned(self) -> int:
        return max(
            self.machine.known.log,
            self.machine._control[-1].sequence if self.machine._control else 0,
        )

    def _say(self, to: str, type: str, data: Any) -> Any:
        payload = event.encode(new(type, data, source="/test"))
        message = Message("HEALTH", len(self.health) + 1, to, self.now_ns, payload)
        self.health.append(message)
        return self.machine.feed(message)

    def events(self, agent: str, name: str) -> list[Event[Any]]:
        return [m.event() for m in self.log if m.subject == subject.control(agent, name)]

    def incidents(self) -> list[Incident]:
        """All that were opened, each as it stands now, in the order of the log."""
        found: dict[str, Incident] = {}
        for message in self.log:
            if message.subject.endswith(".incident"):
                stored = message.event()
                incident = event.typed(stored, Incident).data
                found[incident.opened or stored.id] = incident
        return list(found.values())

    def shown(self) -> list[tuple[str, str, str, str]]:
        """Of each incident: kind, agent, instance or what it is about, and status."""
        return [(i.kind, i.agent, i.instance or i.about, i.status) for i in self.incidents()]

    def commands(self) -> list[tuple[str, str, str]]:
        """Every command of the health projector: agent, name, instance."""
        found = []
        for message in self.log:
            stored = message.event()
            if stored.source == "/health" and not message.subject.endswith(".incident"):
                place = subject.parse(message.subject)
                data = event.typed(stored, dict[str, Any]).data
                found.append((place.agent, place.type, data.get("instance", "")))
        return found

    def over(self) -> list[str]:
        return [incident.over for incident in self.incidents() if incident.status == CLOSED]


@pytest.fixture
def config() -> HealthConfig:
    """Thresholds of the world; a module may have its own."""
    return HealthConfig()


@pytest.fixture
def world(config: HealthConfig) -> World:
    """A health projector that has listened for a while, so that it may judge."""
    made = World(config)
    made.run(config.settle_seconds + 1)
    return made
