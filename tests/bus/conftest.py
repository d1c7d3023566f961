"""A server with a configuration of its own: users, permissions, limits."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stratum_bus.server import find_binary, free_port

_HEAD = """
listen: "127.0.0.1:{port}"
ports_file_dir: "{folder}"
jetstream {{ store_dir: "{folder}/js" }}
"""


class OwnServer:
    """A nats-server run with `config` behind what it needs to come up."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._file = folder / "server.conf"
        self.write(config)
        self._process = subprocess.Popen(
            [find_binary(), "-c", self._file],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 10
        while not list(folder.glob("*.ports")):
            assert time.monotonic() < deadline
            assert self._process.poll() is None, f"the server refuses its configuration: {config}"
            time.sleep(0.01)

    def write(self, config: str) -> None:
        self._file.write_text(_HEAD.format(port=self.port, folder=self.folder) + config)

    def url(self, user: str = "") -> str:
        """The address for a user, whose password is its name."""
        return f"nats://{user}:{user}@127.0.0.1:{self.port}" if user else self.plain_url

    @property
    def plain_url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def reload(self, config: str) -> None:
        """Take another configuration; returns before the server did."""
        self.write(config)
        os.kill(self._process.pid, signal.SIGHUP)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[[str], OwnServer]]:
    """Starts a server with the given configuration; it is killed behind the test."""
    started: list[OwnServer] = []

    def start(config: str = "") -> OwnServer:
        folder = tmp_path / f"server-{len(started)}"
        folder.mkdir()
        started.append(OwnServer(folder, config))
        return started[-1]

    yield start
    for server in started:
        server.stop()
