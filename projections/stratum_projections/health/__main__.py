"""`python -m stratum_projections.health --url URL`: one health projector, until SIGTERM or SIGINT.

As `stratum up` starts it:

    python -m stratum_projections.health --url URL --instance ID --with-parent \\
        --config JSON [--store-bytes N] [--beat-seconds S]

`--config` is the `[health]` section as JSON (`msgspec.json.encode(config.health)`), `--store-bytes`
the `max_file_store` of the embedded server, where there is one. It beats as `health.health.<ID>`,
kind `health`. One line a fact on stderr. Exit 0 when stopped, 1 when it cannot go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import anyio
import msgspec

from stratum_bus import connect, service
from stratum_bus.errors import StratumError
from stratum_bus.event import uuid7
from stratum_bus.heartbeat import EVERY_SECONDS
from stratum_bus.thresholds import HealthConfig
from stratum_projections.health.runner import run

log = logging.getLogger("stratum.health")

PATIENCE_SECONDS = 2.0
"""What could not be stored is decided again: there is no use in waiting for long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a health projector; returns the exit code."""
    parser = argparse.ArgumentParser(prog="stratum_projections.health", description=__doc__)
    parser.add_argument("--url", required=True, help="the NATS server")
    parser.add_argument("--instance", help="its name in heartbeats; default: a new one")
    parser.add_argument(
        "--config", default="{}", help="JSON of the [health] section, as in stratum.toml"
    )
    parser.add_argument("--store-bytes", type=int, default=0, help="limit of the server's store")
    parser.add_argument("--beat-seconds", type=float, default=EVERY_SECONDS)
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when the parent process is gone"
    )
    asked = parser.parse_args(arguments)
    service.log_to_stderr("health")
    config = msgspec.json.decode(asked.config, type=HealthConfig)
    instance = asked.instance or f"health-{os.getpid()}-{uuid7()[-8:]}"

    async def judge(stop: anyio.Event) -> None:
        async with connect(asked.url, name="health", patience_seconds=PATIENCE_SECONDS) as bus:
            await run(
                bus, config, stop=stop, instance=instance, store_bytes=asked.store_bytes,
                beat_seconds=asked.beat_seconds,
            )  # fmt: skip

    try:
        anyio.run(lambda: service.run(judge, with_parent=asked.with_parent))
    except StratumError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
