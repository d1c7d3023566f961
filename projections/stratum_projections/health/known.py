"""What the health projector knows, folded from beats, ticks and control events; no clock but theirs.

`fold.py` brings it up to date, the judges only look at it.
"""

from __future__ import annotations

from msgspec import Struct, field

from stratum_bus import control
from stratum_bus.heartbeat import STARTING, STOPPING, Beat
from stratum_projections.health.incident import Incident, Key
from stratum_projections.health.observed import Fill, Position, Repetition

NS = 1_000_000_000
SAMPLES = 24
"""How finely a window is remembered."""


class Moment(Struct, frozen=True):
    """When something was so, by the server's clock, and the sequence that says it."""

    ns: int
    sequence: int


class Mark(Struct):
    """Where a message in hand stands, since when; and since when it is worked on."""

    run: str
    step: str
    at: Moment
    begun: Moment


class Sample(Struct, frozen=True):
    """A number at a moment."""

    value: int
    at: Moment


class Series(Struct):
    """The last samples of a number, thinned to SAMPLES in a window."""

    samples: list[Sample] = []

    def add(self, value: int, at: Moment, window_ns: int) -> None:
        """Remember the newest, and forget what lies before the window."""
        samples = self.samples
        if len(samples) > 1 and at.ns - samples[-2].at.ns < window_ns // SAMPLES:
            samples.pop()  # the newest one only stands in until the next is due
        samples.append(Sample(value, at))
        while len(samples) > 2 and samples[1].at.ns <= at.ns - window_ns:
            samples.pop(0)

    def at(self, ns: int) -> Sample | None:
        """The last sample at or before a time."""
        return next((each for each in reversed(self.samples) if each.at.ns <= ns), None)

    def parts(self, now_ns: int, window_ns: int, count: int) -> list[Sample]:
        """The samples at the borders of `count` equal parts of the window; none before it is full."""
        borders = [self.at(now_ns - window_ns + i * window_ns // count) for i in range(count + 1)]
        found = [each for each in borders if each is not None]
        return found if len(found) == count + 1 else []


class Life(Struct, kw_only=True):
    """One instance: when it was first and last heard, and what moved when."""

    agent: str
    instance: str
    kind: str
    first: Moment
    slot: int = 0
    last: Moment | None = None
    beat: Beat | None = None
    progress: Moment
    marks: dict[tuple[str, int], Mark] = field(default_factory=dict)
    blocked: Moment | None = None
    behind: Moment | None = None
    far_behind: Moment | None = None
    memory: Series = field(default_factory=Series)
    long_memory: Series = field(default_factory=Series)

    @property
    def key(self) -> tuple[str, str]:
        return self.agent, self.instance

    @property
    def ready(self) -> bool:
        """It has said that it started, and not yet that it stops."""
        return self.beat is not None and self.beat.state not in (STARTING, STOPPING)

    @property
    def heard(self) -> Moment:
        """Its last beat, or its start where it has not beaten."""
        return self.last or self.first


class End(Struct, frozen=True):
    """The end of a process, as its supervisor saw it. `beat` is the last one, where there was one."""

    at: Moment
    ended: control.Ended
    living: int
    beat: Moment | None


class Inbox(Struct):
    """An agent's consumer as it was last seen, and since when it stands there."""

    position: Position
    moved: Moment
    silent: Moment | None = None
    pending: Series = field(default_factory=Series)


class Strikes(Struct):
    """Since when a message is found stuck in a step, again and again."""

    step: str
    at: list[Moment] = []


class AgentState(Struct, kw_only=True):
    """What its commands say an agent is to be, and what happened to its processes.

    `restarts` were not asked for by a person. `beats`: one of its instances was heard at some time, so that the others should be. `parked` are
    messages that a command set aside, with its id; `strikes` are the incidents in a row at which a
    message was stuck in the same step. `forgiven_ns` is when a person last had it start again, after
    a mend or so. `last_incident` is the sequence of the last event under `control.<agent>.incident`, `decided`
    until when decisions wait for the last ones to appear in the log.
    """

    stopped: bool = False
    paused: bool = False
    quarantined: bool = False
    instances: int = 0
    started: Moment | None = None
    restarts: int = 0
    ends: list[End] = []
    beats: bool = False
    parked: dict[str, str] = field(default_factory=dict)
    strikes: dict[str, Strikes] = field(default_factory=dict)
    forgiven_ns: int = 0
    last_incident: int = 0
    decided_ns: int = 0

    @property
    def down(self) -> bool:
        """None of its instances is to run."""
        return self.stopped or self.quarantined

    @property
    def resting(self) -> bool:
        """It is to handle nothing."""
        return self.down or self.paused


class Opened(Struct, kw_only=True):
    """An open incident: its event, and the commands that were given for it."""

    id: str
    at: Moment
    incident: Incident
    given: list[str] = []


class Known(Struct, kw_only=True):
    """All of it. `heard_ns` is since when ticks come without a gap, `away` is the tick that last told
    that the server had been away, and for how many seconds.
    """

    now: Moment = Moment(0, 0)
    heard_ns: int = 0
    log: int = 0
    head: int = 0
    away: tuple[Moment, float] | None = None
    lives: dict[tuple[str, str], Life] = field(default_factory=dict)
    gone: dict[tuple[str, str], int] = field(default_factory=dict)
    agents: dict[str, AgentState] = field(default_factory=dict)
    inboxes: dict[str, Inbox] = field(default_factory=dict)
    fills: dict[str, Fill] = field(default_factory=dict)
    repetitions: dict[tuple[str, str], Repetition] = field(default_factory=dict)
    open: dict[Key, Opened] = field(default_factory=dict)
    closed: dict[Key, int] = field(default_factory=dict)
    outcomes: dict[str, control.Outcome] = field(default_factory=dict)

    def agent(self, name: str) -> AgentState:
        """The state of an agent; that of a new one where nothing is known of it."""
        return self.agents.get(name) or AgentState()

    def seconds_since(self, moment: Moment) -> float:
        """How long something lasts, leaving out what was before a gap in the ticks."""
        return (self.now.ns - max(moment.ns, self.heard_ns)) / NS

    def firsts(self, agent: str) -> dict[str, Moment]:
        """Instances of an agent that did not end, as far as is known, and since when they are."""
        return {each.instance: each.first for each in self.lives.values() if each.agent == agent}

    def living(self, agent: str, within_seconds: float) -> list[Life]:
        """Instances of an agent that were heard lately."""
        return [
            life
            for life in self.lives.values()
            if life.agent == agent and self.seconds_since(life.heard) <= within_seconds
        ]

    def newest(self, agent: str, since: Moment) -> Moment:
        """`since`, or when the agent's newest instance came, which has to get ready first."""
        return max([since, *self.firsts(agent).values()], key=lambda moment: moment.ns)

    def opened(self, agent: str, instance: str | None = None) -> list[Opened]:
        """Open incidents of an agent, or of one of its instances."""
        return [
            each
            for key, each in self.open.items()
            if key[1] == agent and instance in (None, key[2])
        ]


def moments(**named: Moment | None) -> dict[str, int]:
    """Sequences as evidence."""
    return {name: moment.sequence for name, moment in named.items() if moment is not None}
