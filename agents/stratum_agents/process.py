"""A process that runs one instance of an agent of `stratum.toml`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import msgspec

from stratum_agents.agent import Agent
from stratum_agents.worker import new_instance, work
from stratum_bus import config as configs
from stratum_bus import heartbeat, service
from stratum_bus.bus import Bus, connect
from stratum_bus.config import Config
from stratum_bus.consume import Retry
from stratum_bus.contract import record
from stratum_bus.errors import ConfigError
from stratum_bus.hand import Hand
from stratum_bus.heartbeat import Vitals, beating
from stratum_bus.service import log_to_stderr
from stratum_bus.tasks import task_group

PATIENCE_SECONDS = 60.0


class Start(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a supervisor tells the process of an instance; `suspects` as in `work`."""

    name: str
    instance: str
    suspects: list[str] = []


def build(config: Config, name: str) -> Agent:
    """Make the agent `name` as `[agents.<name>]` says.

    Its `create` is called with its settings as the Struct that its parameter is annotated with
    (without a parameter: with nothing) and returns an Agent of that name. Raises ConfigError.
    """
    key = f"agents.{name}"
    if name not in config.agents:
        there = ", ".join(sorted(config.agents)) or "none at all"
        raise ConfigError(key, f"a table for this agent (there are: {there})", "nothing")
    create = _load(config, config.agents[name].create, f"{key}.create")
    agent = create(*_arguments(config, create, f"{key}.settings"))
    if not isinstance(agent, Agent) or agent.name != name:
        got = f"the agent {agent.name}" if isinstance(agent, Agent) else repr(agent)
        raise ConfigError(f"{key}.create", f"a callable that makes the agent {name}", got)
    return agent


def checked(config: Config, name: str) -> Agent:
    """As `build`, where the event types still fit what the project's `contract/` has recorded.

    Raises ConfigError, IncompatibleType.
    """
    agent = build(config, name)
    record.check(Path(config.folder) / record.FOLDER, record.declared(*agent.types()))
    return agent


async def run_agent(
    config: Config, name: str, url: str, *, with_parent: bool = False, start: Start | None = None
) -> None:
    """Run one instance until SIGTERM or SIGINT.

    Raises ConfigError, IncompatibleType, ConnectionLost, NotFound.

    `with_parent` ends it when the process that started this one is gone. `start` is what a
    supervisor says of it.
    """
    agent = checked(config, name)
    async with connect(url, name=f"agent {name}", patience_seconds=PATIENCE_SECONDS) as bus:
        await _run(bus, config, agent, start or Start(name, new_instance()), with_parent)


async def run_supervised(config: Config, url: str, descriptor: int, name: str = "") -> None:
    """Get ready, wait on stdin for the line that says whom to run, and run it.

    Meanwhile it is a spare: it has imported what the agents of the settings need, and is
    connected. `descriptor` is the shared memory for what it has in hand. Ends without a word where
    its supervisor closes its stdin. Raises what `run_agent` raises.
    """
    hand = Hand(descriptor)
    label = f"agent {name}" if name else "spare agent"
    async with connect(url, name=label, patience_seconds=PATIENCE_SECONDS) as bus:
        if not name:
            _import_all(config)
        if line := await _line_of_stdin():
            start = msgspec.json.decode(line, type=Start)
            log_to_stderr(start.name)
            await _run(bus, config, checked(config, start.name), start, True, hand)


async def _run(
    bus: Bus,
    config: Config,
    agent: Agent,
    start: Start,
    with_parent: bool,
    hand: Hand | None = None,
) -> None:
    hand = hand or Hand()
    settings = config.agents[agent.name]
    vitals = Vitals(agent.name, heartbeat.AGENT, start.instance)

    def refresh() -> None:
        vitals.in_hand, vitals.pending = hand.in_hand(), hand.pending
        vitals.progress = max(vitals.progress, hand.progress)

    async def main(stop: anyio.Event) -> None:
        async with task_group() as tasks:
            tasks.start_soon(_say_stopping, stop, vitals)
            await work(
                bus,
                agent,
                stop=stop,
                concurrency=settings.concurrency,
                ack_wait_seconds=settings.ack_wait_seconds,
                retry=Retry(max_attempts=settings.max_attempts),
                grace_seconds=settings.grace_seconds,
                instance=start.instance,
                hand=hand,
                suspects=start.suspects,
            )
            tasks.cancel_scope.cancel()

    vitals.refresh = refresh
    vitals.set_ready()
    async with beating(bus.connection.url, vitals, every_seconds=config.supervisor.beat_seconds):
        await service.run(main, with_parent=with_parent)


async def _say_stopping(stop: anyio.Event, vitals: Vitals) -> None:
    await stop.wait()
    vitals.set_stopping()


async def _line_of_stdin() -> bytes:
    """The first line that comes, b"" where stdin is closed before."""
    line = b""
    while not line.endswith(b"\n"):
        await anyio.wait_readable(sys.stdin.fileno())
        if not (part := os.read(sys.stdin.fileno(), 65536)):
            return b""
        line += part
    return line


def _import_all(config: Config) -> None:
    """So that nothing is left to import when the line comes. What cannot be imported says so then."""
    for agent in config.agents.values():
        with contextlib.suppress(Exception):
            _load(config, agent.create, "")


def _load(config: Config, path: str, key: str) -> Callable[..., Any]:
    if config.folder not in sys.path:
        sys.path.insert(0, config.folder)  # a project's own modules are beside its stratum.toml
    if not path:
        raise ConfigError(key, "module:callable", "nothing: its command is run by `stratum up`")
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
