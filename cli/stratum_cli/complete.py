"""What the shell offers while a command is typed: names that are known without a server."""

from __future__ import annotations

from stratum_bus import config
from stratum_bus.errors import StratumError
from stratum_bus.stream import load_streams


def agents() -> list[str]:
    """The agents of ./stratum.toml."""
    try:
        return sorted(config.load().agents)
    except StratumError:
        return []


def streams() -> list[str]:
    """The declared streams."""
    return [spec.name for spec in load_streams()]
