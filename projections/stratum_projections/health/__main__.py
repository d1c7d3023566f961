"""`python -m stratum_projections.health --url URL`: one health projector, until SIGTERM or SIGINT.

As `stratum up` starts it:

    python -m stratum_projections.health --url URL --instance ID [--config FILE]

`--config` is stratum.toml, of which it takes `[health]`, and `beat_seconds` of `[supervisor]`. It
beats as `health.health.<ID>`, kind `health`; without `--instance` by STRATUM_INSTANCE, else by a
name of its own. One line a fact on stderr. Exit 0 when stopped, 1 when it cannot go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import anyio

from stratum_bus import config as configs
from stratum_bus import connect, service
from stratum_bus.config import Config
from stratum_bus.data_dir import DataDir, locate
from stratum_bus.errors import StratumError
from stratum_bus.event import uuid7
from stratum_projections.health.runner import run

log = logging.getLogger("stratum.health")

PATIENCE_SECONDS = 2.0
"""What could not be stored is decided again: there is no use in waiting for long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a health projector; returns the exit code."""
    parser = argparse.ArgumentParser(prog="stratum_projections.health", description=__doc__)
    parser.add_argument("--url", required=True, help="the NATS server")
    parser.add_argument("--instance", help="its name in heartbeats")
    parser.add_argument("--config", help="the file to read instead of ./stratum.toml")
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when the parent process is gone"
    )
    asked = parser.parse_args(arguments)
    service.log_to_stderr("health")
    try:
        config = configs.load(asked.config)
        instance = asked.instance or configs.instance() or f"health-{os.getpid()}-{uuid7()[-8:]}"
        anyio.run(_run, config, asked.url, instance, asked.with_parent)
    except StratumError as error:
        log.error("%s", error)
        return 1
    return 0


async def _run(config: Config, url: str, instance: str, with_parent: bool) -> None:
    server = locate(config.server.data_dir)
    folder = DataDir(config.server.data_dir) if server and server.url == url else None

    async def judge(stop: anyio.Event) -> None:
        async with connect(url, name="health", patience_seconds=PATIENCE_SECONDS) as bus:
            await run(
                bus, config.health, stop=stop, instance=instance, folder=folder,
                beat_seconds=config.supervisor.beat_seconds,
            )  # fmt: skip

    await service.run(judge, with_parent=with_parent)


if __name__ == "__main__":
    sys.exit(main())
