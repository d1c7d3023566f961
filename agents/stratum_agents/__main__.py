"""`python -m stratum_agents NAME --url URL [--config FILE]`: one instance, as `stratum up` starts it."""

from __future__ import annotations

import argparse
import sys

import anyio

from stratum_agents.process import run_agent
from stratum_bus import config as configs
from stratum_bus.errors import StratumError
from stratum_bus.service import log_to_stderr


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stratum_agents", description=__doc__)
    parser.add_argument("name", help="an agent of stratum.toml")
    parser.add_argument("--url", required=True, help="address of the NATS server")
    parser.add_argument("--config", help="the file to read instead of ./stratum.toml")
    arguments = parser.parse_args()
    log_to_stderr(arguments.name)
    try:
        config = configs.load(arguments.config)
        # A supervisor gives the process a parent whose death it must not outlive.
        anyio.run(lambda: run_agent(config, arguments.name, arguments.url, with_parent=True))
    except StratumError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
