"""Which agents there are: those with a consumer on the log, and those of stratum.toml."""

from __future__ import annotations

from collections.abc import Iterable

from stratum_bus.errors import NotFound
from stratum_cli.context import Cli
from stratum_cli.delivery import Receiver


def names(cli: Cli, receivers: Iterable[Receiver]) -> list[str]:
    """All known agents, by name."""
    return sorted({*(each.name for each in receivers), *cli.config.agents})


def unknown(cli: Cli, agent: str, receivers: Iterable[Receiver]) -> NotFound:
    """The error for a name that nothing knows, with the names there are."""
    there = ", ".join(names(cli, receivers)) or "none yet"
    return NotFound("agent", f"{agent}: it never ran and stratum.toml does not name it ({there})")
