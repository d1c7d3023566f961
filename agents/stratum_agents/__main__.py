"""`python -m stratum_agents NAME --url URL [--config FILE]`: one instance, as `stratum up` starts it."""

from __future__ import annotations

import argparse
import os
import sys

import anyio

from stratum_agents.process import run_agent, run_supervised
from stratum_bus import config as configs
from stratum_bus.config import Config
from stratum_bus.errors import ConfigError, IncompatibleType, StratumError
from stratum_bus.service import log_to_stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stratum_agents", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="an agent of stratum.toml")
    parser.add_argument("--url", required=True, help="address of the NATS server")
    parser.add_argument("--config", help="the file to read instead of ./stratum.toml")
    parser.add_argument(
        "--hand", type=int, metavar="FD", help="of a supervisor: see `process.run_supervised`"
    )
    arguments = parser.parse_args()
    log_to_stderr(arguments.name or "spare")
    try:
        config = configs.load(arguments.config)
        anyio.run(_run, config, arguments)
    except (ConfigError, IncompatibleType) as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_CONFIG  # no restart mends it
    except StratumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(config: Config, arguments: argparse.Namespace) -> None:
    if arguments.hand is not None:
        await run_supervised(config, arguments.url, arguments.hand, arguments.name)
    else:
        # Whoever started it is its parent, whose death it must not outlive.
        await run_agent(config, arguments.name, arguments.url, with_parent=True)


if __name__ == "__main__":
    sys.exit(main())
