"""`stratum up` and `stratum down`: everything on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Annotated

import anyio
import typer

from stratum_bus.errors import StratumError
from stratum_cli.command import command
from stratum_cli.context import Cli

DOWN_SECONDS = 40.0
_POLL_SECONDS = 0.05

Detach = Annotated[
    bool, typer.Option("--detach", help="Return when all is ready; the log is in the data folder.")
]


def register(app: typer.Typer) -> None:
    command(app, "up")(up)
    command(app, "down")(down)


def up(cli: Cli, detach: Detach = False) -> None:
    """Start everything on this machine: server, streams, projector, and the agents of stratum.toml.

    Runs until Ctrl-C. What ends by itself is started again. Other `stratum` commands find it by
    the data folder (.stratum, or --data-dir). With `server.url` in stratum.toml, or --nats-url,
    that server is used and none is started.
    """
    if detach:
        _up_detached(cli)
        return
    from stratum_bus.service import log_to_stderr
    from stratum_cli import platform

    log_to_stderr("up")
    anyio.run(platform.run, cli.config, cli.options.config, cli.out.fact)


def down(cli: Cli) -> None:
    """Stop what `stratum up` runs on the data folder, and wait until it has ended."""
    from stratum_cli.platform import UpFile

    file = UpFile(cli.data_dir)
    running = file.running()
    if running is None or not running.pid:
        cli.out.talk(f"nothing runs on {cli.data_dir}")
        return
    os.kill(running.pid, signal.SIGTERM)
    give_up = time.monotonic() + DOWN_SECONDS
    while file.running() is not None:
        if time.monotonic() > give_up:
            raise StratumError(
                f"process {running.pid} did not stop within {DOWN_SECONDS:g} s; "
                f"see what it does, or end it with kill -9 {running.pid}: nothing stored is lost"
            )
        time.sleep(_POLL_SECONDS)
    cli.out.talk("stopped")


def _up_detached(cli: Cli) -> None:
    from stratum_cli.platform import UpFile

    file = UpFile(cli.data_dir)
    if running := file.running():
        raise StratumError(
            f"`stratum up` already runs on {cli.data_dir} (process {running.pid}); "
            "stop it with `stratum down`"
        )
    cli.data_dir.mkdir(parents=True, exist_ok=True)
    log = cli.data_dir / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _foreground(cli), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    while process.poll() is None:
        running = file.running()
        if running is not None and running.ready:
            cli.out.talk(f"ready at {running.url} (process {running.pid}, log in {log})")
            return
        time.sleep(_POLL_SECONDS)
    lines = log.read_text(errors="replace").splitlines() or ["it said nothing"]
    raise StratumError(f"`stratum up` ended at once: {lines[-1].removeprefix('stratum: ')}")


def _foreground(cli: Cli) -> list[str]:
    options = cli.options
    given = {
        "--config": options.config,
        "--data-dir": options.data_dir,
        "--nats-url": options.nats_url,
    }
    named = [part for name, value in given.items() if value for part in (name, value)]
    return [sys.executable, "-m", "stratum_cli", *named, "up"]
