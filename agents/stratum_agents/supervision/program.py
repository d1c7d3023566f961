"""What is kept running: agents of stratum.toml, and the parts of Stratum beside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from msgspec import Struct

from stratum_bus import heartbeat
from stratum_bus.config import AgentConfig, Config

GRACE_MARGIN_SECONDS = 2.0
"""How much longer than its own grace a process may take to stop before it is killed."""

SPARE = "spare"


class Program(Struct, frozen=True, kw_only=True):
    """`name` is that of its beats and its commands, `command` its command line.

    `supervised`: it is one of our own processes, which is told on stdin whom to run, and keeps what
    it has in hand in memory that we see. `with_its_own`: what it starts itself is to end with it.
    `beats`: it is known to send heartbeats. `named`: it takes `--instance`.
    `urgent`: it is started at once, and not only when those that are have come up.
    """

    name: str
    command: tuple[str, ...]
    kind: str = heartbeat.AGENT
    instances: int = 1
    grace_seconds: float = 10.0
    environ: Mapping[str, str] | None = None
    folder: str | None = None
    supervised: bool = False
    with_its_own: bool = False
    beats: bool = True
    named: bool = False
    urgent: bool = True

    @property
    def is_agent(self) -> bool:
        return self.kind == heartbeat.AGENT


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a module of ours."""
    return (sys.executable, "-m", module, *arguments)


def agents(config: Config, config_file: str | None, url: str) -> list[Program]:
    """The agents of stratum.toml, in its order."""
    return [_agent(config, config_file, url, name, each) for name, each in config.agents.items()]


def spare(config: Config, config_file: str | None, url: str) -> Program | None:
    """A process that can become any of the agents in Python; None where there are none."""
    if not any(agent.create for agent in config.agents.values()):
        return None
    command = python("stratum_agents", "--url", url, *_file(config_file))
    return Program(name=SPARE, command=command, supervised=True)


def _agent(
    config: Config, config_file: str | None, url: str, name: str, agent: AgentConfig
) -> Program:
    grace = agent.grace_seconds + GRACE_MARGIN_SECONDS
    if agent.create:
        command = python("stratum_agents", name, "--url", url, *_file(config_file))
        return Program(
            name=name, command=command, instances=agent.instances, grace_seconds=grace,
            supervised=True,
        )  # fmt: skip
    environ = {**os.environ, "STRATUM_NATS_URL": url, "STRATUM_AGENT": name}
    return Program(
        name=name, command=tuple(agent.command), instances=agent.instances, grace_seconds=grace,
        environ=environ, folder=config.folder, with_its_own=True, beats=False,
    )  # fmt: skip


def _file(config_file: str | None) -> tuple[str, ...]:
    return ("--config", config_file) if config_file else ()
