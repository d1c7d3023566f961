"""What /metrics shows, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Labels are names of tokens ("" before one is known) and status codes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[object, ...], Counter] = {}
        self.requests = Counter(
            "stratum_gateway_requests", "Posts and streams asked for, by what was answered.",
            ["token", "status"], registry=self.registry,
        )  # fmt: skip
        self.stored = Counter(
            "stratum_gateway_events", "Events that were taken, those that were there included.",
            ["token"], registry=self.registry,
        )  # fmt: skip
        self.repeats = Counter(
            "stratum_gateway_repeats", "Events that were there already, by their ids.",
            ["token"], registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "stratum_gateway_post_seconds", "From a post's arrival to its 202.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.streams = Gauge(
            "stratum_gateway_streams", "Streams that are open.", registry=self.registry
        )
        self.sent = Counter(
            "stratum_gateway_sent_events", "Events that were sent to readers of streams.",
            ["token"], registry=self.registry,
        )  # fmt: skip

        self.known = Gauge(
            "stratum_gateway_known_sequence",
            "Up to where in the log the ids are known.",
            registry=self.registry,
        )

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def answered(self, token: str, status: int) -> None:
        self._child(self.requests, token, str(status)).inc()

    def taken(self, token: str, events: int, repeats: int, seconds: float) -> None:
        """A post that was answered with 202."""
        self._child(self.stored, token).inc(events)
        if repeats:
            self._child(self.repeats, token).inc(repeats)
        self.seconds.observe(seconds)

    def _child(self, counter: Counter, *labels: str) -> Counter:
        key = (counter, *labels)
        if (child := self._children.get(key)) is None:
            child = self._children[key] = counter.labels(*labels)
        return child
