"""full: a stream, or the server's store, is near its limit."""

from __future__ import annotations

from collections.abc import Iterator

from stratum_bus import control
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.incident import CRITICAL, WARNING, Asked, Finding
from stratum_projections.health.known import Known, Opened
from stratum_projections.health.observed import Fill

KIND = "full"
SERVER = "server"
"""The agent that incidents of the server go under."""

STORE = "store"
_CALM = 0.05
"""How much below the warning it has to be to be over: a limit is not crossed to and fro."""


def judge(known: Known, config: HealthConfig) -> Iterator[Finding]:
    """A person is told when it is critical: no restart makes room."""
    for fill in known.fills.values():
        ratio, what = _ratio(fill)
        if ratio < config.full.warning_ratio:
            continue
        critical = ratio >= config.full.critical_ratio
        name = f"stream {fill.stream}" if fill.stream else "the server's store"
        text = f"{name} holds {ratio:.0%} of the {what} it may"
        ask = control.Command(reason=text, text=f"{text}: give it more, or move old data away.")
        yield Finding(
            kind=KIND, agent=SERVER, about=fill.stream or STORE, since_ns=known.now.ns,
            first=known.now.sequence, severity=CRITICAL if critical else WARNING, text=text,
            evidence={
                "tick": known.now.sequence, "ratio": round(ratio, 4), "bytes": fill.bytes,
                "max_bytes": fill.max_bytes, "messages": fill.messages,
                "max_messages": fill.max_messages,
            },
            commands=(Asked(control.ESCALATE, ask),) if critical else (),
        )  # fmt: skip


def over(known: Known, config: HealthConfig, opened: Opened) -> str:
    about = opened.incident.about
    fill = known.fills.get("" if about == STORE else about)
    if fill is None or _ratio(fill)[0] >= config.full.warning_ratio - _CALM:
        return ""
    return f"it holds {_ratio(fill)[0]:.0%} now"


def _ratio(fill: Fill) -> tuple[float, str]:
    """The fuller of its two limits."""
    return max(
        (fill.bytes / fill.max_bytes if fill.max_bytes > 0 else 0.0, "bytes"),
        (fill.messages / fill.max_messages if fill.max_messages > 0 else 0.0, "messages"),
    )
