"""All metrics of the supervisor's page: name, labels, unit and meaning of each stand here."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stratum_bus.heartbeat import Beat

CAUSES = ("ended", "command", "rest-for-one")
"""Why something was started again."""


class Metrics:
    """One registry with all of them; `agent` also names the projector and the health projector."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        agent = ("agent",)
        self.running = Gauge(
            "stratum_supervisor_running", "Processes that run now.", agent, registry=self.registry
        )
        self.wanted = Gauge(
            "stratum_supervisor_wanted", "Processes that are to run.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.restarts = Counter(
            "stratum_supervisor_restarts", "Processes started again, by cause.",
            ("agent", "cause"), registry=self.registry,
        )  # fmt: skip
        self.gave_up = Counter(
            "stratum_supervisor_gave_up", "Times that restarting was given up.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.parked = Counter(
            "stratum_supervisor_parked", "Messages parked as poison.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.beats = Counter(
            "stratum_supervisor_beats", "Heartbeats heard.", agent, registry=self.registry
        )
        self.commands = Counter(
            "stratum_supervisor_commands", "Commands executed, and whether they could be.",
            ("command", "done"), registry=self.registry,
        )  # fmt: skip
        self.events = Counter(
            "stratum_supervisor_events", "Events written to the log.", registry=self.registry
        )
        self.in_hand = Gauge(
            "stratum_agent_in_hand", "Messages that its instances hold, as their beats say.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.pending = Gauge(
            "stratum_agent_pending", "Messages that wait for it, as its beats say.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.memory = Gauge(
            "stratum_agent_memory_bytes", "Resident memory of its instances.", agent,
            registry=self.registry,
        )  # fmt: skip
        self.loop_lag = Gauge(
            "stratum_agent_loop_lag_seconds", "The longest lag of an event loop of its instances.",
            agent, registry=self.registry,
        )  # fmt: skip
        self.incidents = Counter(
            "stratum_health_incidents", "Incidents that were opened.", ("agent", "kind"),
            registry=self.registry,
        )  # fmt: skip
        self.incidents_open = Gauge(
            "stratum_health_incidents_open", "Incidents that are open.", ("agent", "kind"),
            registry=self.registry,
        )  # fmt: skip
        self.replaced = Histogram(
            "stratum_supervisor_replaced_seconds",
            "From the end of a process to the start of the one in its place, backoff included.",
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )

    def heard(self, name: str, beats: Sequence[Beat]) -> None:
        """The last beats of all instances of a name."""
        self.beats.labels(name).inc()
        self.in_hand.labels(name).set(sum(beat.holds for beat in beats))
        self.pending.labels(name).set(max((beat.pending or 0 for beat in beats), default=0))
        self.memory.labels(name).set(sum(beat.resident_bytes for beat in beats))
        self.loop_lag.labels(name).set(max((b.loop_lag_seconds for b in beats), default=0.0))

    def page(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)
