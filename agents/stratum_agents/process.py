"""A process that runs one instance of an agent of `stratum.toml`."""

from __future__ import annotations

import importlib
import inspect
import sys
import typing
from collections.abc import Callable
from typing import Any

import anyio

from stratum_agents.agent import Agent
from stratum_agents.worker import work
from stratum_bus import config as configs
from stratum_bus import service
from stratum_bus.bus import connect
from stratum_bus.config import Config
from stratum_bus.consume import Retry
from stratum_bus.errors import ConfigError

PATIENCE_SECONDS = 60.0


def build(config: Config, name: str) -> Agent:
    """Make the agent `name` as `[agents.<name>]` says.

    Its `create` is called with its settings as the Struct that its parameter is annotated with
    (without a parameter: with nothing) and returns an Agent of that name. Raises ConfigError.
    """
    key = f"agents.{name}"
    if name not in config.agents:
        there = ", ".join(sorted(config.agents)) or "none at all"
        raise ConfigError(key, f"a table for this agent (there are: {there})", "nothing")
    if config.folder not in sys.path:
        sys.path.insert(0, config.folder)  # a project's own modules are beside its stratum.toml
    path = config.agents[name].create
    create = _load(path, f"{key}.create")
    agent = create(*_arguments(config, create, f"{key}.settings"))
    if not isinstance(agent, Agent) or agent.name != name:
        got = f"the agent {agent.name}" if isinstance(agent, Agent) else repr(agent)
        raise ConfigError(f"{key}.create", f"a callable that makes the agent {name}", got)
    return agent


async def run_agent(config: Config, name: str, url: str, *, with_parent: bool = False) -> None:
    """Run one instance until SIGTERM or SIGINT. Raises ConfigError, ConnectionLost, NotFound.

    `with_parent` ends it when the process that started this one is gone.
    """
    agent, settings = build(config, name), config.agents[name]
    async with connect(url, name=f"agent {name}", patience_seconds=PATIENCE_SECONDS) as bus:

        async def main(stop: anyio.Event) -> None:
            await work(
                bus,
                agent,
                stop=stop,
                concurrency=settings.concurrency,
                ack_wait_seconds=settings.ack_wait_seconds,
                retry=Retry(max_attempts=settings.max_attempts),
            )

        await service.run(main, with_parent=with_parent)


def _load(path: str, key: str) -> Callable[..., Any]:
    module_name, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            key, "module:callable that can be imported", f"{path!r}: {error}"
        ) from None
    if not callable(found):
        raise ConfigError(key, "a callable", f"{path!r}, which is a {type(found).__name__}")
    return typing.cast(Callable[..., Any], found)


def _arguments(config: Config, create: Callable[..., Any], key: str) -> list[Any]:
    parameters = list(inspect.signature(create).parameters.values())
    if not parameters:
        return []
    kind = typing.get_type_hints(create).get(parameters[0].name, dict[str, Any])
    return [configs.settings(config, key, kind)]
