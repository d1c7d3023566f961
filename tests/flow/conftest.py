"""Node.js with the official NATS client, installed once, outside of the repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

NODE_AGENT = Path(__file__).parents[2] / "examples" / "node-agent"
MANIFEST = ("package.json", "package-lock.json", ".npmrc")
INSTALL_SECONDS = 120
OLDEST = 20


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """What examples/node-agent/package-lock.json says, installed in the user's cache folder."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(f"Node.js is not there: install node and npm ({OLDEST} or newer)")
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True)
    if int(version.stdout.strip("v\n").partition(".")[0]) < OLDEST:
        pytest.skip(f"Node.js {version.stdout.strip()} is too old: install {OLDEST} or newer")
    digest = hashlib.sha256((NODE_AGENT / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratum-tests"
    installed = cache / f"node-{digest}"
    if not installed.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _install(cache, installed)
    return installed / "node_modules"


def _install(cache: Path, installed: Path) -> None:
    """There is the whole of it, or nothing."""
    with tempfile.TemporaryDirectory(dir=cache) as folder:
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
            pytest.skip(f"npm cannot install the NATS client: {said.splitlines()[0]}")
        shutil.copytree(folder, installed.with_suffix(".new"), symlinks=True, dirs_exist_ok=True)
        installed.with_suffix(".new").rename(installed)


@pytest.fixture
def in_node(node_modules: Path, tmp_path: Path) -> Callable[..., Path]:
    """Puts files into a folder of their own from which the NATS client can be imported."""

    def put(*files: Path, name: str = "node") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            shutil.copy(file, folder)
        (folder / "node_modules").symlink_to(node_modules, target_is_directory=True)
        return folder

    return put
