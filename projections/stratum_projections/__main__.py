"""`python -m stratum_projections --url URL --path FILE`: one projector, until SIGTERM or SIGINT.

One line a fact on stderr. Exit 0 when stopped, 1 when it cannot go on.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

import anyio
import msgspec
import pyarrow as pa

from stratum_bus import connect, service
from stratum_bus.config import Config, LakeConfig, ProjectorConfig
from stratum_bus.errors import StratumError
from stratum_bus.heartbeat import EVERY_SECONDS, PROJECTOR, Vitals, beating
from stratum_projections import metrics
from stratum_projections.found import check, find
from stratum_projections.runner import run

NAME = "projector"
"""By which it beats and is commanded."""

log = logging.getLogger("stratum.projector")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a projector; returns the exit code."""
    parser = argparse.ArgumentParser(prog="stratum_projections", description=__doc__)
    parser.add_argument("--url", required=True, help="the NATS server")
    parser.add_argument("--path", required=True, help="the DuckDB file")
    parser.add_argument("--projector", default="main", help="it answers on query.<projector>")
    parser.add_argument(
        "--config", default="{}", help="JSON of the [projector] section, as in stratum.toml"
    )
    parser.add_argument(
        "--folder", default=".", help="of stratum.toml; modules are imported from it"
    )
    parser.add_argument("--lake", default="{}", help="JSON of the [lake] section")
    parser.add_argument("--instance", help="its name in heartbeats; default: a new one")
    parser.add_argument(
        "--check", action="store_true", help="only say whether these projections can be kept"
    )
    parser.add_argument("--metrics-port", type=int, help="serve /metrics there; default: nowhere")
    parser.add_argument("--metrics-host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument("--beat-seconds", type=float, default=EVERY_SECONDS)
    parser.add_argument(
        "--with-parent", action="store_true", help="stop when the parent process is gone"
    )
    asked = parser.parse_args(arguments)
    service.log_to_stderr(asked.projector)
    # Arrow's own pool keeps what it once had: 90 MB more of the memory that a projector may take.
    pa.set_memory_pool(pa.system_memory_pool())
    # How long a query waits for the interpreter each time that it needs it while a batch is decoded.
    sys.setswitchinterval(0.0005)
    config = msgspec.json.decode(asked.config, type=ProjectorConfig)
    lake = msgspec.json.decode(asked.lake, type=LakeConfig)

    async def project(stop: anyio.Event) -> None:
        async with connect(asked.url, name=f"projector-{asked.projector}") as bus:
            vitals = Vitals(NAME, PROJECTOR, asked.instance or f"{asked.projector}-{os.getpid()}")
            async with (
                beating(asked.url, vitals, every_seconds=asked.beat_seconds),
                metrics.served(bus, asked.metrics_host, asked.metrics_port, asked.projector),
            ):
                await run(
                    bus, asked.path, stop=stop, projector=asked.projector, config=config,
                    projections=projections, vitals=vitals, lake=lake,
                )  # fmt: skip

    try:
        projections = find(Config(projector=config, folder=asked.folder))
        if asked.check:
            check(projections)
            return 0
        anyio.run(lambda: service.run(project, with_parent=asked.with_parent))
    except StratumError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
