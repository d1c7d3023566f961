"""Node.js with the official NATS client, installed once, outside of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

NODE_AGENT = Path(__file__).parents[2] / "examples" / "node-agent"
MANIFEST = ("package.json", "package-lock.json", ".npmrc")
INSTALL_SECONDS = 120
OLDEST = 20


class NoNode(Exception):
    """Why there is none, in a line."""


def modules() -> Path:
    """What examples/node-agent/package-lock.json says, in the user's cache folder. Raises NoNode."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NoNode(f"Node.js is not there: install node and npm ({OLDEST} or newer)")
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)
    if int(version.stdout.strip("v\n").partition(".")[0]) < OLDEST:
        raise NoNode(f"Node.js {version.stdout.strip()} is too old: install {OLDEST} or newer")
    digest = hashlib.sha256((NODE_AGENT / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratum-tests"
    installed = cache / f"node-{digest}"
    if not installed.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _install(cache, installed)
    return installed / "node_modules"


def put(folder: Path, *files: Path) -> None:
    """Copy programs into a folder from which the NATS client can be imported. Raises NoNode."""
    for file in files:
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(modules(), target_is_directory=True)


def _install(cache: Path, installed: Path) -> None:
    """There is the whole of it, or nothing."""
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        folder = Path(temporary) / "installed"
        folder.mkdir()
        for name in MANIFEST:
            shutil.copy(NODE_AGENT / name, folder)
        quickly = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--prefer-offline"]
        command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error", *quickly]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_SECONDS
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            said = (error.stderr or b"").decode(errors="replace").strip() or "no answer in time"
            raise NoNode(f"npm cannot install the NATS client: {said.splitlines()[0]}") from error
        try:
            folder.rename(installed)
        except OSError:
            if not installed.exists():  # else somebody else was faster
                raise
